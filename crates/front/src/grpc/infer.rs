//! `ModelInfer` and `ModelStreamInfer`.

use super::stream::Answers;
use super::{Call, Reply, message, success};
use crate::body::{Frames, HEAVY_BINARY_BYTES, aside, hold};
use crate::regions::{Here, Request as Completed, complete};
use crate::registry::ModelVersion;
use crate::server::Server;
use crate::shard::Shard;
use crate::submit::{self, Answered, Terms};
use bytes::Bytes;
use penstock_schema::{Error, Result};
use penstock_wire::Frames as Messages;
use penstock_wire::grpc::{self, StreamPart};
use std::sync::Arc;
use std::time::Instant;

/// The unary call: the path that costs are counted on.
pub async fn infer(shard: &Arc<Shard>, call: Call) -> Result<Reply> {
    let busy = shard.server.enter()?;
    let deadline = call.until();
    let message = message(call.body, call.encoding, shard).await?;
    let request = read(shard, message).await?;
    // One of a nanosecond has passed by now, and such a request is never run.
    if deadline.is_some_and(|at| at <= Instant::now()) {
        return Err(super::deadline_exceeded());
    }
    let terms = Terms { deadline, pinned: request.pinned };
    let Completed { validated, destinations } = request.completed;
    let Answered { model, outputs, plan } = submit::infer(shard, request.model, validated, terms).await?;
    let outputs = destinations.deliver(&model.spec, outputs).await?;
    let frames = grpc::encode(&model.spec, &plan, outputs)?;
    Ok(success(Frames::new(frames).busy(busy)))
}

/// A request that fits the model it names.
struct Request {
    model: Arc<ModelVersion>,
    completed: Completed,
    /// The client named a version.
    pinned: bool,
}

async fn read(shard: &Arc<Shard>, message: Bytes) -> Result<Request> {
    let heavy = message.len() > HEAVY_BINARY_BYTES;
    if let Some(request) = if heavy { None } else { decode(&shard.server, &message, Here::Quick)? } {
        return Ok(request);
    }
    let server = shard.server.clone();
    aside(move || decode(&server, &message, Here::All))
        .await?
        .ok_or_else(|| Error::internal("request could not be read"))
}

fn decode(server: &Server, message: &Bytes, here: Here) -> Result<Option<Request>> {
    let call = grpc::decode(message)?;
    let model = server.registry.get(call.model_name, Some(call.model_version))?;
    let pinned = !call.model_version.is_empty();
    let completed = complete(server, &model.spec, call.request, here)?;
    Ok(completed.map(|completed| Request { model, completed, pinned }))
}

/// The stream: answers keep the order of the requests; what fails, fails inside the stream.
pub fn stream(shard: &Arc<Shard>, call: Call) -> Reply {
    let owner = shard.clone();
    let answer = move |message: Bytes| {
        let shard = owner.clone();
        async move { one(&shard, message).await }
    };
    super::streaming(Answers::start(shard.clone(), call, answer))
}

async fn one(shard: &Arc<Shard>, message: Bytes) -> Messages {
    let id = grpc::decode(&message).map(|call| call.request.id.to_string()).unwrap_or_default();
    let infer = async {
        let busy = shard.server.enter()?;
        let request = read(shard, message).await?;
        let terms = Terms { pinned: request.pinned, ..Terms::default() };
        let Completed { validated, destinations } = request.completed;
        let Answered { model, outputs, plan } = submit::infer(shard, request.model, validated, terms).await?;
        let outputs = destinations.deliver(&model.spec, outputs).await?;
        let mut frames = grpc::encode_stream(&model.spec, &plan, Some(outputs), StreamPart::Final)?;
        hold(&mut frames, busy);
        Ok(frames)
    };
    infer.await.unwrap_or_else(|error| refused(&id, &error))
}

fn refused(id: &str, error: &Error) -> Messages {
    grpc::encode_stream_error(id, &error.message).into_iter().collect()
}

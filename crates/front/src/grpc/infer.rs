//! `ModelInfer` and `ModelStreamInfer`.

use super::stream::Answers;
use super::{Call, Reply, deadline, message, success};
use crate::body::Frames;
use crate::shard::Shard;
use crate::submit::{self, Terms};
use bytes::Bytes;
use penstock_schema::{Error, Result};
use penstock_wire::grpc::{self, StreamPart};
use penstock_wire::{Frames as Messages, validate};
use std::sync::Arc;

/// The unary call: the path that costs are counted on.
pub async fn infer(shard: &Arc<Shard>, call: Call) -> Result<Reply> {
    let busy = shard.server.enter()?;
    let message = message(&mut Some(call.body), call.encoding, &shard.server.config).await?;
    let (model, validated) = {
        let decoded = grpc::decode(&message)?;
        let model = shard.server.registry.get(decoded.model_name, Some(decoded.model_version))?;
        let validated = validate::validate(&model.spec, decoded.request)?;
        (model, validated)
    };
    drop(message);
    let left = match call.timeout {
        None => None,
        Some(timeout) => match timeout.checked_sub(call.started.elapsed()) {
            Some(left) if !left.is_zero() => Some(left),
            _ => return Err(deadline()),
        },
    };
    let (outputs, plan) = submit::infer(shard, &model, validated, Terms { deadline: left }).await?;
    let frames = grpc::encode(&model.spec, &plan, outputs)?;
    Ok(success(Frames::new(frames).busy(busy)))
}

/// The stream: answers keep the order of the requests; what fails, fails inside the stream.
pub fn stream(shard: &Arc<Shard>, call: Call) -> Reply {
    let owner = shard.clone();
    let answer = move |message: Bytes| {
        let shard = owner.clone();
        async move { one(&shard, &message).await }
    };
    super::streaming(Answers::start(shard.clone(), call, answer))
}

async fn one(shard: &Arc<Shard>, message: &Bytes) -> Messages {
    let decoded = match grpc::decode(message) {
        Ok(decoded) => decoded,
        Err(error) => return refused("", &error),
    };
    let id = decoded.request.id.to_string();
    let infer = async {
        let _busy = shard.server.enter()?;
        let model = shard.server.registry.get(decoded.model_name, Some(decoded.model_version))?;
        let validated = validate::validate(&model.spec, decoded.request)?;
        let (outputs, plan) = submit::infer(shard, &model, validated, Terms::default()).await?;
        grpc::encode_stream(&model.spec, &plan, Some(outputs), StreamPart::Final)
    };
    infer.await.unwrap_or_else(|error| refused(&id, &error))
}

fn refused(id: &str, error: &Error) -> Messages {
    grpc::encode_stream_error(id, &error.message).into_iter().collect()
}

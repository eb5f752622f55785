//! `POST .../infer`: the path that costs are counted on.

use super::{Reply, json};
use crate::body::{Frames, HEAVY_BINARY_BYTES, HEAVY_TEXT_BYTES, aside, collect};
use crate::regions::{Here, Request as Completed, complete};
use crate::server::Server;
use crate::shard::Shard;
use crate::submit::{self, Answered, Terms};
use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use penstock_schema::{Error, ModelSpec, Result};
use penstock_wire::{compress, json as codec};
use smallvec::SmallVec;
use std::sync::Arc;

const HEADER_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

pub async fn infer(shard: &Arc<Shard>, name: &str, version: Option<&str>, request: Request<Incoming>) -> Result<Reply> {
    let busy = shard.server.enter()?;
    let model = shard.server.registry.get(name, version)?;
    let (parts, body) = request.into_parts();
    let header_length = match header_length(&parts.headers) {
        Ok(length) => length,
        // The body is not read, so the connection can't go on.
        Err(error) => return Ok(super::refuse(StatusCode::BAD_REQUEST, &error.message)),
    };
    let encoding = match parts.headers.get(CONTENT_ENCODING) {
        Some(value) => compress::content_encoding(text(&CONTENT_ENCODING, value)?)?,
        None => None,
    };
    let accepted = parts.headers.get(ACCEPT_ENCODING).and_then(|value| compress::accept(value.to_str().ok()?));

    let limit = shard.server.config.max_body_bytes;
    let mut body = collect(body, shard, |_| header_length.unwrap_or(0)).await?;
    if let Some(encoding) = encoding {
        body = aside(move || compress::inflate(encoding, &body, limit)).await?.into();
    }
    let text_bytes = header_length.unwrap_or(body.len());
    let heavy = text_bytes > HEAVY_TEXT_BYTES || body.len() > HEAVY_BINARY_BYTES;
    let quick = if heavy { None } else { decode(&shard.server, &model.spec, &body, header_length, Here::Quick)? };
    let request = match quick {
        Some(request) => {
            // Tensors are slices of it: they can be passed on as they are once they alone hold it.
            drop(body);
            request
        }
        None => {
            let (server, model) = (shard.server.clone(), model.clone());
            let all = move || decode(&server, &model.spec, &body, header_length, Here::All);
            aside(all).await?.ok_or_else(|| Error::internal("request could not be read"))?
        }
    };
    let Completed { validated, destinations } = request;

    if validated.plan.empty_final_response {
        return Err(Error::invalid("parameter 'triton_enable_empty_final_response' is for gRPC streams; leave it out"));
    }
    let terms = Terms { pinned: version.is_some(), ..Terms::default() };
    let Answered { model, outputs, plan } = submit::infer(shard, model, validated, terms).await?;
    let outputs = destinations.deliver(&model.spec, outputs).await?;

    let heavy = plan.outputs.iter().any(|output| !output.binary)
        && outputs.iter().map(|tensor| tensor.data.len()).sum::<usize>() > HEAVY_TEXT_BYTES;
    let encoded = if heavy {
        aside(move || codec::encode(&model.spec, &plan, outputs)).await?
    } else {
        codec::encode(&model.spec, &plan, outputs)?
    };
    let mut frames = encoded.frames;
    if let Some(encoding) = accepted {
        let parts = frames;
        let compressed = if parts.iter().map(Bytes::len).sum::<usize>() > HEAVY_TEXT_BYTES {
            aside(move || Ok(compress::deflate(encoding, &parts))).await?
        } else {
            compress::deflate(encoding, &parts)
        };
        frames = SmallVec::from_iter([Bytes::from(compressed)]);
    }
    let mut reply = match encoded.header_length {
        None => json(Bytes::new()),
        Some(length) => {
            let mut reply = Response::new(Frames::default());
            reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
            reply.headers_mut().insert(HEADER_LENGTH, HeaderValue::from(length));
            reply
        }
    };
    if let Some(encoding) = accepted {
        reply.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static(encoding.name()));
    }
    *reply.body_mut() = Frames::new(frames).busy(busy);
    Ok(reply)
}

fn decode(
    server: &Server,
    spec: &ModelSpec,
    body: &Bytes,
    header_length: Option<usize>,
    here: Here,
) -> Result<Option<Completed>> {
    match header_length {
        Some(0) => complete(server, spec, codec::decode_raw(spec, body)?, here),
        length => complete(server, spec, codec::decode(body, length)?, here),
    }
}

fn header_length(headers: &HeaderMap) -> Result<Option<usize>> {
    let Some(value) = headers.get(HEADER_LENGTH) else { return Ok(None) };
    let text = text(&HEADER_LENGTH, value)?;
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let wrong = || {
        Error::invalid(format!(
            "header {HEADER_LENGTH}: expected the length of the JSON part in bytes, got '{}'",
            crate::registry::clip(text)
        ))
    };
    digits.then(|| text.parse().ok()).flatten().ok_or_else(wrong).map(Some)
}

fn text<'a>(name: &HeaderName, value: &'a HeaderValue) -> Result<&'a str> {
    value.to_str().map_err(|_| Error::invalid(format!("header {name}: expected ASCII text")))
}

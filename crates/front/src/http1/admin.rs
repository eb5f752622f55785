//! Everything over HTTP that is not inference: what models say of themselves, and the repository.

use super::{Reply, empty, json};
use crate::body::{HEAVY_TEXT_BYTES, aside, collect};
use crate::operations;
use crate::server::{OperationRequest, Server};
use crate::shard::Shard;
use crate::statistics;
use bytes::Bytes;
use http::{Request, StatusCode};
use hyper::body::Incoming;
use penstock_schema::{Code, Error, Result};
use serde_json::{Map, Value, json};

/// What an index or unload request may say takes a hundred bytes.
pub const SMALL_BYTES: usize = 64 << 10;

pub fn metadata(server: &Server, name: &str, version: Option<&str>) -> Result<Bytes> {
    let model = server.registry.get(name, version)?;
    let versions = server.registry.versions(name);
    Ok(if versions.len() == 1 {
        model.metadata.clone()
    } else {
        penstock_wire::metadata::model_json(&model.spec, &versions)
    })
}

/// 200 when the model can infer, 400 when it can't or isn't there, as in Triton.
pub fn ready(server: &Server, name: &str, version: Option<&str>) -> Result<Reply> {
    server.registry.get(name, version).map_err(|error| Error::new(Code::InvalidArgument, error.message))?;
    Ok(empty(StatusCode::OK))
}

pub fn statistics(server: &Server, name: Option<&str>, version: Option<&str>) -> Result<Bytes> {
    let models = statistics::select(server, name, version)?;
    let rows: Vec<Value> = models.iter().map(|model| statistics::as_json(&statistics::message(model))).collect();
    Ok(json!({ "model_stats": rows }).to_string().into())
}

pub async fn index(shard: &Shard, request: Request<Incoming>) -> Result<Reply> {
    let fields = object(shard, request, SMALL_BYTES).await?;
    let ready_only = match fields.get("ready") {
        None => false,
        Some(Value::Bool(ready)) => *ready,
        Some(other) => return Err(Error::invalid(format!("ready: expected true or false, got {other}"))),
    };
    let rows: Vec<Value> = operations::index(&shard.server, ready_only)
        .await?
        .into_iter()
        .map(|row| {
            let fields = [("name", row.name), ("version", row.version), ("state", row.state), ("reason", row.reason)];
            let present = fields.into_iter().filter(|(key, value)| *key == "name" || !value.is_empty());
            Value::Object(present.map(|(key, value)| (key.to_owned(), Value::String(value))).collect())
        })
        .collect();
    Ok(json(Value::Array(rows).to_string().into()))
}

pub async fn load(shard: &Shard, name: &str, request: Request<Incoming>) -> Result<Reply> {
    operations::authorise(&shard.server, request.headers())?;
    operations::permit(&shard.server, name)?;
    let mut fields = object(shard, request, shard.server.config.max_body_bytes).await?;
    let mut config = None;
    let mut files = Vec::new();
    for (key, value) in parameters(&mut fields)? {
        let Value::String(text) = value else {
            return Err(Error::invalid(format!("parameter '{}': expected a string", crate::registry::clip(&key))));
        };
        match key.strip_prefix("file:") {
            Some(file) => {
                let file = file.to_owned();
                files.push((file, aside(move || operations::base64(&key, &text)).await?));
            }
            None if key == "config" => config = Some(text),
            None => return Err(operations::unknown_parameter(&key)),
        }
    }
    operations::load(&shard.server, name, config, files).await?;
    Ok(empty(StatusCode::OK))
}

pub async fn unload(shard: &Shard, name: &str, request: Request<Incoming>) -> Result<Reply> {
    operations::authorise(&shard.server, request.headers())?;
    operations::permit(&shard.server, name)?;
    let mut fields = object(shard, request, SMALL_BYTES).await?;
    let mut dependents = false;
    for (key, value) in parameters(&mut fields)? {
        match (key.as_str(), value) {
            ("unload_dependents", Value::Bool(value)) => dependents = value,
            _ => return Err(operations::unknown_parameter(&key)),
        }
    }
    operations::operate(&shard.server, name, OperationRequest::Unload { model: name.to_owned(), dependents }).await?;
    Ok(empty(StatusCode::OK))
}

fn parameters(fields: &mut Map<String, Value>) -> Result<Map<String, Value>> {
    match fields.remove("parameters") {
        None => Ok(Map::new()),
        Some(Value::Object(parameters)) => Ok(parameters),
        Some(_) => Err(Error::invalid("parameters: expected an object")),
    }
}

/// The body as a JSON object; an empty body is an empty one.
pub async fn object(shard: &Shard, request: Request<Incoming>, limit: usize) -> Result<Map<String, Value>> {
    let body = collect(request.into_body(), shard, |_| 0).await?;
    if body.len() > limit {
        return Err(Error::too_large(format!("request body: expected at most {limit} bytes, got {}", body.len())));
    }
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(Map::new());
    }
    let parsed = if body.len() > HEAVY_TEXT_BYTES {
        aside(move || Ok(serde_json::from_slice(&body))).await?
    } else {
        serde_json::from_slice(&body)
    };
    match parsed {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(Error::invalid("request body: expected a JSON object")),
        Err(error) => Err(Error::invalid(format!("request body is not valid JSON: {error}"))),
    }
}

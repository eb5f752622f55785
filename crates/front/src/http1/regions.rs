//! Shared memory over HTTP: status, register and unregister.

use super::admin::{SMALL_BYTES, object};
use super::route::RegionPart;
use super::{Reply, empty, json};
use crate::body::aside;
use crate::operations;
use crate::regions::{Kind, Region};
use crate::shard::Shard;
use http::{Request, StatusCode};
use hyper::body::Incoming;
use penstock_schema::{Error, Result};
use serde_json::{Map, Value, json};
use std::sync::Arc;

pub async fn answer(
    shard: &Arc<Shard>,
    kind: Kind,
    region: Option<&str>,
    part: RegionPart,
    request: Request<Incoming>,
) -> Result<Reply> {
    let regions = &shard.server.regions;
    let name = region.map(decoded).transpose()?;
    match part {
        RegionPart::Status => {
            let rows: Vec<Value> = regions.status(kind, name.as_deref())?.iter().map(|region| row(region)).collect();
            Ok(json(Value::Array(rows).to_string().into()))
        }
        // Load generators unregister everything before they start, also where nothing can be registered.
        RegionPart::Unregister => {
            regions.unregister(kind, name.as_deref());
            Ok(empty(StatusCode::OK))
        }
        RegionPart::Register => {
            regions.permit()?;
            let fields = object(shard, request, SMALL_BYTES).await?;
            let (server, name) = (shard.server.clone(), name.unwrap_or_default());
            aside(move || match kind {
                Kind::System => {
                    let (key, offset) = (text(&fields, "key")?, optional(&fields, "offset")?.unwrap_or(0));
                    server.regions.register_system(&name, key, offset, count(&fields, "byte_size")?)
                }
                Kind::Device => {
                    let handle = match fields.get("raw_handle") {
                        Some(Value::Object(handle)) => text(handle, "b64")?,
                        _ => return Err(wrong("raw_handle", "an object with the handle in 'b64'")),
                    };
                    let handle = operations::base64("raw_handle", handle)?;
                    let device = optional(&fields, "device_id")?.unwrap_or(0);
                    let device = i64::try_from(device).map_err(|_| wrong("device_id", "a number of a device"))?;
                    server.regions.register_device(&name, &handle, device, count(&fields, "byte_size")?)
                }
            })
            .await?;
            Ok(empty(StatusCode::OK))
        }
    }
}

fn row(region: &Region) -> Value {
    match (region.object(), region.device()) {
        (Some((key, offset)), _) => {
            json!({ "name": region.name, "key": key, "offset": offset, "byte_size": region.byte_size })
        }
        (None, device) => json!({ "name": region.name, "device_id": device, "byte_size": region.byte_size }),
    }
}

fn text<'a>(fields: &'a Map<String, Value>, name: &str) -> Result<&'a str> {
    fields.get(name).and_then(Value::as_str).ok_or_else(|| wrong(name, "a string"))
}

fn count(fields: &Map<String, Value>, name: &str) -> Result<u64> {
    optional(fields, name)?.ok_or_else(|| wrong(name, "a non-negative integer"))
}

fn optional(fields: &Map<String, Value>, name: &str) -> Result<Option<u64>> {
    match fields.get(name) {
        None => Ok(None),
        Some(value) => value.as_u64().map(Some).ok_or_else(|| wrong(name, "a non-negative integer")),
    }
}

fn wrong(name: &str, wanted: &str) -> Error {
    Error::invalid(format!("{name}: expected {wanted}"))
}

/// A path segment without its percent signs (RFC 3986, section 2.1). Error: 400 for what is none, or not UTF-8.
fn decoded(segment: &str) -> Result<String> {
    let wrong = || Error::invalid("shared memory region: expected percent-encoded UTF-8 as its name");
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.as_bytes();
    while let [first, tail @ ..] = rest {
        (bytes, rest) = match (first, tail) {
            (b'%', [high, low, tail @ ..]) => {
                let digit = |byte: u8| char::from(byte).to_digit(16).ok_or_else(wrong);
                bytes.push((digit(*high)? << 4 | digit(*low)?) as u8);
                (bytes, tail)
            }
            (b'%', _) => return Err(wrong()),
            (byte, tail) => {
                bytes.push(*byte);
                (bytes, tail)
            }
        };
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_percent_decoded() {
        for (segment, name) in [
            ("a.b", Some("a.b")),
            ("a%20b%2Fc", Some("a b/c")),
            ("%c3%bc", Some("\u{fc}")),
            ("%ff", None),
            ("a%2", None),
            ("a%zz", None),
        ] {
            assert_eq!(decoded(segment).ok().as_deref(), name, "{segment}");
        }
    }
}

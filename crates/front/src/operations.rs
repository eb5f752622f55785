//! Repository operations as both protocols call them. Authorised by operation, not by path.

use crate::server::{IndexEntry, OperationAnswer, OperationRequest, Server};
use base64::Engine;
use bytes::Bytes;
use http::{HeaderMap, header::AUTHORIZATION};
use penstock_schema::{Code, Error, Result, limits};

/// Error: 401 when the server wants a token and this is not it.
pub fn authorise(server: &Server, headers: &HeaderMap) -> Result<()> {
    let Some(token) = &server.config.admin_token else { return Ok(()) };
    let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    if given.is_some_and(|given| equal(given.as_bytes(), token.as_bytes())) {
        return Ok(());
    }
    Err(Error::new(
        Code::Unauthenticated,
        "this operation needs the server's admin token: send 'Authorization: Bearer TOKEN'",
    ))
}

/// Compares in time that depends on lengths only, so that a token can't be guessed byte by byte.
fn equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (x, y)| difference | (x ^ y)) == 0
}

/// Whether a model may be loaded and unloaded at all. Errors: 400 for a name that can't be one, 503 while model control
/// is off.
pub fn permit(server: &Server, model: &str) -> Result<()> {
    check_name(model)?;
    if !server.config.model_control {
        return Err(Error::unavailable(
            "explicit model load / unload is not allowed: start the server with --model-control-mode explicit",
        ));
    }
    Ok(())
}

/// Carries out a load or an unload.
pub async fn operate(server: &Server, model: &str, request: OperationRequest) -> Result<()> {
    permit(server, model)?;
    server.operate(request).await.map(|_| ())
}

pub async fn load(server: &Server, model: &str, config: Option<String>, files: Vec<(String, Bytes)>) -> Result<()> {
    if files.len() as u64 > limits::REPOSITORY_OVERRIDE_FILES {
        return Err(Error::invalid(format!(
            "at most {} files come with a load, got {}",
            limits::REPOSITORY_OVERRIDE_FILES,
            files.len()
        )));
    }
    if config.is_none() && !files.is_empty() {
        return Err(Error::invalid(format!(
            "failed to load '{model}': files without a 'config' parameter to go with them"
        )));
    }
    operate(server, model, OperationRequest::Load { model: model.to_owned(), config, files }).await
}

pub async fn index(server: &Server, ready_only: bool) -> Result<Vec<IndexEntry>> {
    match server.operate(OperationRequest::Index { ready_only }).await? {
        OperationAnswer::Index(rows) => Ok(rows),
        OperationAnswer::Done => Ok(Vec::new()),
    }
}

pub fn unknown_parameter(name: &str) -> Error {
    Error::invalid(format!("parameter '{}' is not one of this operation", crate::registry::clip(name)))
}

/// Names are letters, digits, '.', '_' and '-', and never '.' or '..': they become file names.
fn check_name(name: &str) -> Result<()> {
    let sound = !name.is_empty()
        && name.len() as u64 <= limits::NAME_BYTES
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        && !name.bytes().all(|byte| byte == b'.');
    if sound {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "model name '{}': expected 1 to {} letters, digits, '.', '_' or '-', and not only dots",
        crate::registry::clip(&name.escape_debug().to_string()),
        limits::NAME_BYTES
    )))
}

/// Decodes standard base64 (RFC 4648, section 4), in which files travel inside JSON.
pub fn base64(name: &str, text: &str) -> Result<Bytes> {
    let wrong =
        |error| Error::invalid(format!("parameter '{}': expected base64: {error}", crate::registry::clip(name)));
    base64::engine::general_purpose::STANDARD.decode(text).map(Bytes::from).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_paths_are_refused() {
        for (name, sound) in [
            ("resnet-50.v2_x", true),
            ("a", true),
            ("", false),
            (".", false),
            ("..", false),
            (" ..", false),
            ("a/b", false),
            ("%2e%2e", false),
            ("a\0", false),
        ] {
            assert_eq!(check_name(name).is_ok(), sound, "{name:?}");
        }
        assert!(check_name(&"x".repeat(256)).is_err());
    }
}

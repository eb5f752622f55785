//! gRPC on hyper's HTTP/2: which method is what, messages in and out, and how failures are said.

mod infer;
mod reflection;
mod regions;
mod stream;
mod unary;

use crate::body::{self, Frames, aside, collect};
use crate::server::Config;
use crate::shard::Shard;
use crate::stream::Answering;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use penstock_schema::{Code, Error, Result};
use penstock_wire::compress::{self, Encoding};
use penstock_wire::grpc::{PREFIX_BYTES, unframe};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const ACCEPT: HeaderName = HeaderName::from_static("grpc-accept-encoding");
const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// The body of an answer: ready, or a stream that is still being made.
pub enum Answer {
    Ready(Frames),
    Stream(stream::Answers),
}

impl Answer {
    /// The connection counts as answering until this is written.
    fn answering(self, token: Arc<Answering>) -> Answer {
        match self {
            Answer::Ready(frames) => Answer::Ready(frames.answering_until_written(token)),
            Answer::Stream(answers) => Answer::Stream(answers.answering(token)),
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Answer::Ready(frames) => Pin::new(frames).poll_frame(context),
            Answer::Stream(answers) => answers.poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Answer::Ready(frames) => frames.is_end_stream(),
            Answer::Stream(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Answer::Ready(frames) => frames.size_hint(),
            Answer::Stream(_) => SizeHint::default(),
        }
    }
}

pub type Reply = Response<Answer>;

/// A call: what its headers say, and its body.
pub struct Call {
    pub started: Instant,
    pub timeout: Option<Duration>,
    pub encoding: Option<Encoding>,
    pub headers: HeaderMap,
    pub body: Incoming,
}

impl Call {
    /// When the client stops waiting, if it said so.
    pub fn until(&self) -> Option<Instant> {
        self.timeout.and_then(|timeout| self.started.checked_add(timeout))
    }
}

/// Answers one call; whatever goes wrong becomes a status.
pub async fn serve(
    shard: Arc<Shard>,
    answering: Arc<Answering>,
    request: Request<Incoming>,
) -> std::result::Result<Reply, Infallible> {
    let started = Instant::now();
    let (parts, body) = request.into_parts();
    let content_type = parts.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let is_grpc = matches!(content_type.strip_prefix(b"application/grpc"), Some([] | [b'+' | b';', ..]));
    if parts.method != Method::POST || !is_grpc {
        return Ok(not_grpc());
    }
    let answered = match call(started, parts.headers, body) {
        Ok(call) => answer(&shard, parts.uri.path(), call).await,
        Err(error) => Err(error),
    };
    Ok(answered.unwrap_or_else(|error| failure(&error)).map(|answer| answer.answering(answering)))
}

fn call(started: Instant, headers: HeaderMap, body: Incoming) -> Result<Call> {
    let timeout = headers.get(TIMEOUT).map(parse_timeout).transpose()?;
    let encoding = match headers.get(ENCODING).map(HeaderValue::as_bytes) {
        None | Some(b"identity") => None,
        Some(b"gzip") => Some(Encoding::Gzip),
        Some(b"deflate") => Some(Encoding::Deflate),
        Some(_) => return Err(Error::unsupported("grpc-encoding: expected identity, deflate or gzip")),
    };
    Ok(Call { started, timeout, encoding, headers, body })
}

/// Ends with the client's deadline, whatever the call is doing then; what it was doing is dropped and so cancelled.
async fn answer(shard: &Arc<Shard>, path: &str, call: Call) -> Result<Reply> {
    match call.until() {
        None => route(shard, path, call).await,
        Some(at) => {
            tokio::time::timeout_at(at.into(), route(shard, path, call)).await.map_err(|_| deadline_exceeded())?
        }
    }
}

async fn route(shard: &Arc<Shard>, path: &str, call: Call) -> Result<Reply> {
    let (service, method) = path.strip_prefix('/').and_then(|path| path.split_once('/')).unwrap_or_default();
    match (service, method) {
        ("inference.GRPCInferenceService", "ModelInfer") => infer::infer(shard, call).await,
        ("inference.GRPCInferenceService", "ModelStreamInfer") => Ok(infer::stream(shard, call)),
        ("inference.GRPCInferenceService", _) => unary::answer(shard, method, call).await,
        ("grpc.health.v1.Health", "Check") => unary::health(shard, call).await,
        (
            "grpc.reflection.v1.ServerReflection" | "grpc.reflection.v1alpha.ServerReflection",
            "ServerReflectionInfo",
        ) => Ok(reflection::reflect(shard, call)),
        _ => Err(Error::unsupported(format!("unknown method '{}'", crate::registry::clip(path)))),
    }
}

pub fn deadline_exceeded() -> Error {
    Error::new(Code::DeadlineExceeded, "Deadline Exceeded")
}

/// Reads the single message of a unary call.
pub async fn message(body: Incoming, encoding: Option<Encoding>, shard: &Shard) -> Result<Bytes> {
    let config = &shard.server.config;
    // Requests end with their tensors, whose sizes are nearly always multiples of the alignment: aligning the end of the
    // message aligns the tensor.
    let end = |first: &[u8]| prefix(first).map_or(0, |(_, length)| PREFIX_BYTES + length);
    let body = collect(body, shard, end).await?;
    let (compressed, length) =
        prefix(&body).ok_or_else(|| Error::internal("gRPC message: the body ends within the length prefix"))?;
    if length > config.max_body_bytes {
        return Err(body::too_large(config));
    }
    if body.len() != PREFIX_BYTES + length {
        let got = body.len() - PREFIX_BYTES;
        return Err(Error::internal(format!(
            "gRPC message: the prefix announces {length} bytes, the body holds {got}"
        )));
    }
    inflate(body.slice(PREFIX_BYTES..), compressed, encoding, config).await
}

/// Whether a message is compressed, and its length, if its prefix is there.
pub fn prefix(start: &[u8]) -> Option<(bool, usize)> {
    let prefix = unframe(*start.first_chunk()?).ok()?;
    Some((prefix.compressed, prefix.length as usize))
}

pub async fn inflate(message: Bytes, compressed: bool, encoding: Option<Encoding>, config: &Config) -> Result<Bytes> {
    let limit = config.max_body_bytes;
    match (compressed, encoding) {
        (false, _) => Ok(message),
        (true, Some(encoding)) => Ok(aside(move || compress::inflate(encoding, &message, limit)).await?.into()),
        (true, None) => Err(Error::internal("gRPC message: compressed, but the call names no grpc-encoding")),
    }
}

/// A successful unary answer.
pub fn success(frames: Frames) -> Reply {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(STATUS, HeaderValue::from_static("0"));
    let mut reply = Response::new(Answer::Ready(frames.with_trailers(trailers)));
    reply.headers_mut().insert(CONTENT_TYPE, GRPC);
    reply
}

pub fn streaming(answers: stream::Answers) -> Reply {
    let mut reply = Response::new(Answer::Stream(answers));
    reply.headers_mut().insert(CONTENT_TYPE, GRPC);
    reply
}

/// A status without a message: headers only ("Trailers-Only" of the gRPC specification).
fn failure(error: &Error) -> Reply {
    let mut reply = Response::new(Answer::Ready(Frames::default()));
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, GRPC);
    status(headers, error);
    if error.code == Code::Unsupported {
        headers.insert(ACCEPT, HeaderValue::from_static("identity,deflate,gzip"));
    }
    reply
}

/// Writes a status into trailers, or into headers that stand for them.
pub fn status(headers: &mut HeaderMap, error: &Error) {
    headers.insert(STATUS, HeaderValue::from(u16::from(error.code.grpc_status())));
    if let Ok(message) = HeaderValue::from_str(&percent_encode(cut(&error.message))) {
        headers.insert(MESSAGE, message);
    }
}

/// Clients bound the size of all trailers (8 KiB is usual), and a status that breaks the bound is lost whole.
const MESSAGE_BYTES: usize = 2048;

fn cut(message: &str) -> &str {
    let end = (0..=MESSAGE_BYTES.min(message.len())).rev().find(|&end| message.is_char_boundary(end));
    &message[..end.unwrap_or(0)]
}

/// `grpc-message` is percent-encoded outside printable ASCII (gRPC over HTTP/2, "Responses").
fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'%' | 0..0x20 | 0x7f.. => encoded.push_str(&format!("%{byte:02X}")),
            _ => encoded.push(char::from(byte)),
        }
    }
    encoded
}

/// Digits and a unit (gRPC over HTTP/2, "Timeout").
fn parse_timeout(value: &HeaderValue) -> Result<Duration> {
    let wrong = || Error::invalid("grpc-timeout: expected 1 to 8 digits and one of H, M, S, m, u, n");
    let (digits, unit) =
        value.to_str().ok().and_then(|text| text.split_at_checked(text.len().checked_sub(1)?)).ok_or_else(wrong)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    match unit {
        "H" => Ok(Duration::from_secs(number * 3600)),
        "M" => Ok(Duration::from_secs(number * 60)),
        "S" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_millis(number)),
        "u" => Ok(Duration::from_micros(number)),
        "n" => Ok(Duration::from_nanos(number)),
        _ => Err(wrong()),
    }
}

/// For a client that speaks HTTP/2 but not gRPC.
fn not_grpc() -> Reply {
    let text = penstock_wire::json::error(
        "this port serves gRPC: expected POST with content-type application/grpc; plain HTTP is on the other port",
    );
    let mut reply = Response::new(Answer::Ready(Frames::one(text)));
    *reply.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read() {
        for (text, expected) in [
            ("1n", Some(Duration::from_nanos(1))),
            ("5S", Some(Duration::from_secs(5))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("100000000S", None),
            ("S", None),
            ("", None),
            ("-1S", None),
            ("1x", None),
        ] {
            assert_eq!(parse_timeout(&HeaderValue::from_str(text).unwrap()).ok(), expected, "{text}");
        }
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        assert_eq!(cut("short"), "short");
        assert_eq!(cut(&"\u{fc}".repeat(MESSAGE_BYTES)).len(), MESSAGE_BYTES);
        assert_eq!(cut(&format!("x{}", "\u{fc}".repeat(MESSAGE_BYTES))).len(), MESSAGE_BYTES - 1);
    }

    #[test]
    fn messages_are_percent_encoded() {
        assert_eq!(percent_encode("50% \u{fc}\n"), "50%25 %C3%BC%0A");
    }
}

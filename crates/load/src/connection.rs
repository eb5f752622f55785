//! One connection, over which one request after the other goes: HTTP/1.1, or HTTP/2 with gRPC's framing.

use crate::Error;
use crate::item::Prepared;
use crate::stream::Stream;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Uri};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use penstock_wire::grpc::{PREFIX_BYTES, Prefix, prefix, unframe};
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::task::LocalSet;

/// Windows of HTTP/2: answers of several MiB arrive without waiting for permission.
const WINDOW_BYTES: u32 = 16 << 20;
/// Of an answer that is refused, what is read of its text.
const REASON_BYTES: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http,
    Grpc,
    /// One `ModelStreamInfer` call for each connection, one request at a time.
    GrpcStream,
}

/// Where requests go.
#[derive(Clone, Debug)]
pub struct Target {
    pub protocol: Protocol,
    /// `host:port`
    pub address: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
}

/// What is the same in every request to a target.
#[derive(Clone, Debug)]
pub(crate) struct Common {
    pub(crate) protocol: Protocol,
    pub(crate) address: String,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
}

/// Why a request has no answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The server said no, in these words.
    Refused(String),
    /// The connection is of no more use.
    Lost(String),
    Wrong,
}

impl Target {
    pub(crate) fn common(&self) -> Result<Common, Error> {
        let invalid = |problem: String| Error::Invalid(problem);
        let uri = match self.protocol {
            Protocol::Http => self.path.clone(),
            _ => format!("http://{}{}", self.address, self.path),
        };
        let uri = uri.parse().map_err(|error| invalid(format!("path {:?}: {error}", self.path)))?;
        let mut headers = HeaderMap::new();
        let fixed: &[(&str, &str)] = match self.protocol {
            Protocol::Http => &[("host", &self.address)],
            _ => &[("content-type", "application/grpc"), ("te", "trailers")],
        };
        let given = self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        for (name, value) in fixed.iter().copied().chain(given) {
            let name: http::HeaderName = name.parse().map_err(|error| invalid(format!("header {name:?}: {error}")))?;
            let value = value.parse().map_err(|error| invalid(format!("header {name}: {error}")))?;
            headers.append(name, value);
        }
        Ok(Common { protocol: self.protocol, address: self.address.clone(), uri, headers })
    }
}

/// A call of any gRPC method, for what a bench asks about a model. Bytes of messages without prefixes.
pub fn call_blocking(address: &str, path: &str, message: &[u8], timeout: Duration) -> Result<Bytes, Error> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let late = || Error::Unreachable { address: address.into(), problem: format!("no answer within {timeout:?}") };
    LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(timeout, call(address, path, message)).await.unwrap_or_else(|_| Err(late()))
    })
}

async fn call(address: &str, path: &str, message: &[u8]) -> Result<Bytes, Error> {
    let target = Target { protocol: Protocol::Grpc, address: address.into(), path: path.into(), headers: Vec::new() };
    let common = target.common()?;
    let unreachable = |problem: String| Error::Unreachable { address: address.into(), problem };
    let mut body = BytesMut::from(&prefix(Prefix { compressed: false, length: message.len() as u32 })[..]);
    body.extend_from_slice(message);
    let prepared = Prepared { body: body.freeze(), headers: common.headers.clone(), expected: None };
    let mut connection = Connection::open(&common).await.map_err(unreachable)?;
    match connection.exchange(&common, &prepared, true).await {
        Ok(body) if body.len() >= PREFIX_BYTES => Ok(body.slice(PREFIX_BYTES..)),
        Ok(_) => Err(unreachable("the answer has no message".into())),
        Err(Failure::Refused(problem)) => Err(Error::Invalid(problem)),
        Err(Failure::Lost(problem)) => Err(unreachable(problem)),
        Err(Failure::Wrong) => Err(unreachable("the answer can't be read".into())),
    }
}

pub(crate) enum Connection {
    Http(http1::SendRequest<Whole>),
    Grpc(http2::SendRequest<Whole>),
    Stream(Stream),
}

impl Connection {
    pub(crate) async fn open(common: &Common) -> Result<Connection, String> {
        let socket = TcpStream::connect(&common.address).await.map_err(|error| error.to_string())?;
        socket.set_nodelay(true).map_err(|error| error.to_string())?;
        let socket = TokioIo::new(socket);
        if common.protocol == Protocol::Http {
            let (sender, driver) = http1::handshake(socket).await.map_err(described)?;
            tokio::task::spawn_local(driver);
            return Ok(Connection::Http(sender));
        }
        let mut builder = http2::Builder::new(Local);
        builder.initial_stream_window_size(WINDOW_BYTES).initial_connection_window_size(WINDOW_BYTES);
        if common.protocol == Protocol::Grpc {
            let (sender, driver) = builder.handshake(socket).await.map_err(described)?;
            tokio::task::spawn_local(driver);
            return Ok(Connection::Grpc(sender));
        }
        let (sender, driver) = builder.handshake(socket).await.map_err(described)?;
        tokio::task::spawn_local(driver);
        Ok(Connection::Stream(Stream::open(sender, common).await?))
    }

    /// The answer's body where `whole` or where something is expected, else nothing.
    pub(crate) async fn exchange(
        &mut self,
        common: &Common,
        prepared: &Prepared,
        whole: bool,
    ) -> Result<Bytes, Failure> {
        let keep = whole || prepared.expected.is_some();
        let answer = match self {
            Connection::Http(sender) => {
                let request = request(common, prepared);
                sender.ready().await.map_err(lost)?;
                read_http(sender.send_request(request).await.map_err(lost)?, keep).await
            }
            Connection::Grpc(sender) => {
                let request = request(common, prepared);
                sender.ready().await.map_err(lost)?;
                read_grpc(sender.send_request(request).await.map_err(lost)?, keep).await
            }
            Connection::Stream(stream) => stream.exchange(prepared.body.clone()).await,
        }?;
        match &prepared.expected {
            Some(expected) if !answer.ends_with(expected) => Err(Failure::Wrong),
            _ => Ok(answer),
        }
    }
}

fn request(common: &Common, prepared: &Prepared) -> Request<Whole> {
    let mut request = Request::new(Whole(Some(prepared.body.clone())));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = common.uri.clone();
    *request.headers_mut() = prepared.headers.clone();
    if common.protocol != Protocol::Http {
        *request.version_mut() = http::Version::HTTP_2;
    }
    request
}

async fn read_http(response: http::Response<Incoming>, keep: bool) -> Result<Bytes, Failure> {
    let status = response.status();
    if status.is_success() {
        return drained(response.into_body(), if keep { usize::MAX } else { 0 }).await.map(|(body, _)| body);
    }
    let (body, _) = drained(response.into_body(), REASON_BYTES).await?;
    Err(Failure::Refused(format!("{}: {}", status.as_u16(), String::from_utf8_lossy(&body))))
}

async fn read_grpc(response: http::Response<Incoming>, keep: bool) -> Result<Bytes, Failure> {
    let status = response.status();
    if !status.is_success() {
        return Err(Failure::Refused(format!("HTTP status {}", status.as_u16())));
    }
    // A refusal may come without a body, its status among the headers.
    refused(response.headers())?;
    let (body, trailers) = drained(response.into_body(), if keep { usize::MAX } else { 0 }).await?;
    match trailers {
        Some(trailers) => refused(&trailers).map(|()| body),
        None => Err(Failure::Lost("the answer ended without a status".into())),
    }
}

pub(crate) fn refused(headers: &HeaderMap) -> Result<(), Failure> {
    match headers.get("grpc-status") {
        Some(status) if status != "0" => {
            let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
            let message = headers.get("grpc-message").map(text).unwrap_or_default();
            Err(Failure::Refused(format!("grpc-status {}: {message}", text(status))))
        }
        _ => Ok(()),
    }
}

/// Reads a body to its end, and keeps so many bytes of it.
async fn drained(mut body: Incoming, keep: usize) -> Result<(Bytes, Option<HeaderMap>), Failure> {
    let (mut kept, mut first, mut trailers) = (BytesMut::new(), Bytes::new(), None);
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        match frame.map_err(lost)?.into_data() {
            Ok(data) if keep == 0 => drop(data),
            // Most answers are one piece.
            Ok(data) if first.is_empty() && kept.is_empty() && data.len() <= keep => first = data,
            Ok(data) => {
                if !first.is_empty() {
                    kept.extend_from_slice(&std::mem::take(&mut first));
                }
                let room = keep.saturating_sub(kept.len()).min(data.len());
                kept.extend_from_slice(&data[..room]);
            }
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    Ok((if kept.is_empty() { first } else { kept.freeze() }, trailers))
}

pub(crate) fn lost(error: hyper::Error) -> Failure {
    Failure::Lost(described(error))
}

pub(crate) fn described(error: hyper::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(each) = cause {
        text = format!("{text}: {each}");
        cause = each.source();
    }
    text
}

/// Reads the prefix of a message, if it has arrived.
pub(crate) fn announced(arrived: &[u8]) -> Option<usize> {
    let prefix = arrived.get(..PREFIX_BYTES)?.try_into().ok()?;
    unframe(prefix).ok().map(|prefix| prefix.length as usize)
}

/// A body that is there: one piece.
pub(crate) struct Whole(Option<Bytes>);

impl Body for Whole {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}

/// Runs what HTTP/2 does beside requests on the thread of its connection.
#[derive(Clone, Copy)]
pub(crate) struct Local;

impl<F: Future + 'static> hyper::rt::Executor<F> for Local
where
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

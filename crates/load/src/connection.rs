//! One connection, over which one request after the other goes: HTTP/1.1, or gRPC.

use crate::Error;
use crate::grpc;
use crate::http1;
use crate::item::{Item, Prepared};
use crate::stream::Stream;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Uri};
use penstock_wire::grpc::PREFIX_BYTES;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::task::LocalSet;

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

impl Failure {
    pub(crate) fn text(self) -> String {
        match self {
            Failure::Refused(text) | Failure::Lost(text) => text,
            Failure::Wrong => "an answer was not what was expected".into(),
        }
    }
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
    let item = Item::new(Bytes::copy_from_slice(message), None, None);
    let prepared = item.prepared(&common, None);
    let mut connection = Connection::open(&common).await.map_err(unreachable)?;
    match connection.exchange(&common, &prepared, true).await {
        Ok(body) if body.len() >= PREFIX_BYTES => Ok(body.slice(PREFIX_BYTES..)),
        Ok(_) => Err(unreachable("the answer has no message".into())),
        Err(Failure::Refused(problem)) => Err(Error::Invalid(problem)),
        Err(failure) => Err(unreachable(failure.text())),
    }
}

pub(crate) enum Connection {
    Http(http1::Sender),
    Grpc(grpc::Sender),
    Stream(Stream),
}

impl Connection {
    pub(crate) async fn open(common: &Common) -> Result<Connection, String> {
        let socket = TcpStream::connect(&common.address).await.map_err(|error| error.to_string())?;
        socket.set_nodelay(true).map_err(|error| error.to_string())?;
        match common.protocol {
            Protocol::Http => Ok(Connection::Http(http1::Sender::new(socket))),
            Protocol::Grpc => Ok(Connection::Grpc(grpc::open(socket).await?)),
            Protocol::GrpcStream => Ok(Connection::Stream(Stream::open(grpc::open(socket).await?, common).await?)),
        }
    }

    /// Whether another request may be sent over it.
    pub(crate) fn is_open(&self) -> bool {
        match self {
            Connection::Http(sender) => sender.is_open(),
            // A call says so, and is lost.
            Connection::Grpc(_) | Connection::Stream(_) => true,
        }
    }

    /// The answer's body where `whole` or where something is expected, else nothing.
    pub(crate) async fn exchange(
        &mut self,
        common: &Common,
        prepared: &Prepared,
        whole: bool,
    ) -> Result<Bytes, Failure> {
        let keep = if whole || prepared.expected.is_some() { usize::MAX } else { 0 };
        let answer = match self {
            Connection::Http(sender) => sender.exchange(&prepared.head, &prepared.body, keep).await,
            Connection::Grpc(sender) => grpc::exchange(sender, common, prepared, keep).await,
            Connection::Stream(stream) => stream.exchange(prepared.body.clone()).await,
        }?;
        match &prepared.expected {
            Some(expected) if !answer.ends_with(expected) => Err(Failure::Wrong),
            _ => Ok(answer),
        }
    }
}

/// The first bytes of a body. Most bodies are one piece, which is not copied.
pub(crate) struct Kept {
    limit: usize,
    first: Bytes,
    rest: BytesMut,
}

impl Kept {
    pub(crate) fn new(limit: usize) -> Kept {
        Kept { limit, first: Bytes::new(), rest: BytesMut::new() }
    }

    pub(crate) fn add(&mut self, data: Bytes) {
        if self.limit == 0 {
            return;
        }
        if self.first.is_empty() && self.rest.is_empty() && data.len() <= self.limit {
            self.first = data;
            return;
        }
        self.rest.extend_from_slice(&std::mem::take(&mut self.first));
        let room = self.limit.saturating_sub(self.rest.len()).min(data.len());
        self.rest.extend_from_slice(&data[..room]);
    }

    pub(crate) fn finish(self) -> Bytes {
        if self.rest.is_empty() { self.first } else { self.rest.freeze() }
    }
}

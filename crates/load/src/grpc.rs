//! gRPC calls over HTTP/2, by `h2` itself: a client that asks for a body piece by piece has a task for each.

use crate::connection::{Common, Failure, Kept};
use crate::item::Prepared;
use bytes::Bytes;
use h2::RecvStream;
use h2::client::{Builder, ResponseFuture, SendRequest};
use http::{HeaderMap, HeaderValue, Method, Request};
use std::future::poll_fn;
use tokio::net::TcpStream;

/// Answers of several MiB arrive without waiting for permission.
const WINDOW_BYTES: u32 = 16 << 20;

pub(crate) type Sender = SendRequest<Bytes>;

pub(crate) async fn open(socket: TcpStream) -> Result<Sender, String> {
    let mut builder = Builder::new();
    builder.initial_window_size(WINDOW_BYTES).initial_connection_window_size(WINDOW_BYTES).enable_push(false);
    let (sender, driver) = builder.handshake(socket).await.map_err(|error| error.to_string())?;
    tokio::task::spawn_local(driver);
    Ok(sender)
}

/// Sends the head of a call; its messages follow on the stream.
pub(crate) async fn begin(
    sender: &mut Sender,
    common: &Common,
    headers: &HeaderMap,
) -> Result<(ResponseFuture, h2::SendStream<Bytes>), Failure> {
    poll_fn(|context| sender.poll_ready(context)).await.map_err(lost)?;
    let mut request = Request::new(());
    *request.method_mut() = Method::POST;
    *request.uri_mut() = common.uri.clone();
    *request.headers_mut() = headers.clone();
    *request.version_mut() = http::Version::HTTP_2;
    sender.send_request(request, false).map_err(lost)
}

/// So many bytes of the answer's body.
pub(crate) async fn exchange(
    sender: &mut Sender,
    common: &Common,
    prepared: &Prepared,
    keep: usize,
) -> Result<Bytes, Failure> {
    let (answered, mut body) = begin(sender, common, &prepared.headers).await?;
    body.send_data(prepared.body.clone(), true).map_err(lost)?;
    let Some(mut answer) = received(answered).await? else {
        return Err(Failure::Lost("the answer has no message".into()));
    };
    let mut kept = Kept::new(keep);
    while let Some(data) = next(&mut answer).await? {
        kept.add(data);
    }
    ended(&mut answer).await?;
    Ok(kept.finish())
}

/// The head of an answer; a refusal may come with nothing behind it, its status among the headers.
pub(crate) async fn received(answered: ResponseFuture) -> Result<Option<RecvStream>, Failure> {
    let response = answered.await.map_err(lost)?;
    if !response.status().is_success() {
        return Err(Failure::Refused(format!("HTTP status {}", response.status().as_u16())));
    }
    refused(response.headers())?;
    let ended = response.body().is_end_stream();
    Ok((!ended).then(|| response.into_body()))
}

/// What comes next of an answer; None at its end.
pub(crate) async fn next(answer: &mut RecvStream) -> Result<Option<Bytes>, Failure> {
    let Some(data) = answer.data().await else { return Ok(None) };
    let data = data.map_err(lost)?;
    answer.flow_control().release_capacity(data.len()).map_err(lost)?;
    Ok(Some(data))
}

/// What the server said at the end.
pub(crate) async fn ended(answer: &mut RecvStream) -> Result<(), Failure> {
    match answer.trailers().await.map_err(lost)? {
        Some(trailers) => refused(&trailers),
        None => Err(Failure::Lost("the answer ended without a status".into())),
    }
}

fn refused(headers: &HeaderMap) -> Result<(), Failure> {
    match headers.get("grpc-status") {
        Some(status) if status != "0" => {
            let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
            let message = headers.get("grpc-message").map(text).unwrap_or_default();
            Err(Failure::Refused(format!("grpc-status {}: {message}", text(status))))
        }
        _ => Ok(()),
    }
}

pub(crate) fn lost(error: h2::Error) -> Failure {
    Failure::Lost(error.to_string())
}

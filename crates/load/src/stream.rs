//! A `ModelStreamInfer` call that stays open: a request is a message up, its answer the next message down.

use crate::connection::{Common, Failure, announced, described, lost, refused};
use bytes::{Bytes, BytesMut};
use http::{Method, Request};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use penstock_wire::grpc::{PREFIX_BYTES, pb};
use prost::Message;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

pub(crate) struct Stream {
    up: UnboundedSender<Bytes>,
    down: Down,
    arrived: BytesMut,
}

/// Servers may answer the call itself with the first message only.
enum Down {
    Waiting(Pin<Box<dyn Future<Output = hyper::Result<http::Response<Incoming>>>>>),
    Open(Incoming),
}

impl Stream {
    pub(crate) async fn open(mut sender: http2::SendRequest<Messages>, common: &Common) -> Result<Stream, String> {
        let (up, messages) = unbounded_channel();
        let mut request = Request::new(Messages(messages));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = common.uri.clone();
        *request.headers_mut() = common.headers.clone();
        *request.version_mut() = http::Version::HTTP_2;
        sender.ready().await.map_err(described)?;
        let answered = async move {
            let answered = sender.send_request(request).await;
            drop(sender);
            answered
        };
        Ok(Stream { up, down: Down::Waiting(Box::pin(answered)), arrived: BytesMut::new() })
    }

    /// A framed request up; the message that comes next, without its prefix.
    pub(crate) async fn exchange(&mut self, message: Bytes) -> Result<Bytes, Failure> {
        self.up.send(message).map_err(|_| Failure::Lost("the stream ended".into()))?;
        let length = loop {
            if let Some(length) = announced(&self.arrived)
                && self.arrived.len() >= PREFIX_BYTES + length
            {
                break length;
            }
            self.receive().await?;
        };
        drop(self.arrived.split_to(PREFIX_BYTES));
        let message = self.arrived.split_to(length).freeze();
        match error_of(&message) {
            Some(problem) => Err(Failure::Refused(problem)),
            None => Ok(message),
        }
    }

    async fn receive(&mut self) -> Result<(), Failure> {
        let body = match &mut self.down {
            Down::Open(body) => body,
            Down::Waiting(answered) => {
                let response = answered.await.map_err(lost)?;
                refused(response.headers())?;
                self.down = Down::Open(response.into_body());
                return Ok(());
            }
        };
        match poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await {
            Some(frame) => match frame.map_err(lost)?.into_data() {
                Ok(data) => self.arrived.extend_from_slice(&data),
                Err(frame) => {
                    refused(&frame.into_trailers().unwrap_or_default())?;
                    return Err(Failure::Lost("the server ended the stream".into()));
                }
            },
            None => return Err(Failure::Lost("the server ended the stream".into())),
        }
        Ok(())
    }
}

/// Field 1 of `ModelStreamInferResponse`, if it is there: it stands first.
fn error_of(message: &[u8]) -> Option<String> {
    if message.first() != Some(&0x0a) {
        return None;
    }
    let found = pb::ModelStreamInferResponse::decode(message).ok()?;
    (!found.error_message.is_empty()).then_some(found.error_message)
}

/// What is sent up, message by message, until the stream is dropped.
pub(crate) struct Messages(UnboundedReceiver<Bytes>);

impl Body for Messages {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|message| message.map(|bytes| Ok(Frame::data(bytes))))
    }
}

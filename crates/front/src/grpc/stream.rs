//! Bidirectional streams: messages are taken off as they come, worked on side by side, and answered in order.

use super::{Call, STATUS, inflate, prefix, status};
use crate::body;
use crate::server::Config;
use crate::shard::Shard;
use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue};
use http_body::Frame;
use hyper::body::Incoming;
use penstock_schema::{Error, Result};
use penstock_wire::Frames;
use penstock_wire::compress::Encoding;
use penstock_wire::grpc::PREFIX_BYTES;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Requests of one stream that are worked on at a time; further ones wait in the socket.
const IN_FLIGHT: usize = 512;

/// One answer on its way. Dropping it, because the client is gone, stops the work.
struct Pending(JoinHandle<Frames>);

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The answering side of a stream.
pub struct Answers {
    pending: mpsc::Receiver<Result<Pending>>,
    current: Option<Pending>,
    frames: std::collections::VecDeque<Bytes>,
    ended: bool,
    reader: JoinHandle<()>,
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Answers {
    /// Reads the call's messages and hands each to `answer`, whose frames go out in the order of the messages.
    pub fn start<F, R>(shard: Arc<Shard>, call: Call, answer: F) -> Answers
    where
        F: Fn(Bytes) -> R + Send + 'static,
        R: Future<Output = Frames> + Send + 'static,
    {
        let (sender, pending) = mpsc::channel(IN_FLIGHT);
        let reader = tokio::spawn(async move {
            let mut messages = Messages { body: call.body, encoding: call.encoding, buffer: BytesMut::new() };
            loop {
                let next = match messages.next(&shard.server.config).await {
                    Ok(None) => return,
                    Ok(Some(message)) => Ok(Pending(tokio::spawn(answer(message)))),
                    Err(error) => Err(error),
                };
                let broken = next.is_err();
                if sender.send(next).await.is_err() || broken {
                    return;
                }
            }
        });
        Answers { pending, current: None, frames: Default::default(), ended: false, reader }
    }

    pub fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            if let Some(frame) = self.frames.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(frame))));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            if let Some(pending) = &mut self.current {
                match ready!(Pin::new(&mut pending.0).poll(context)) {
                    Ok(frames) => {
                        self.frames.extend(frames);
                        self.current = None;
                    }
                    Err(_) => return self.end(Some(&Error::internal("the answer was lost"))),
                }
                continue;
            }
            match ready!(self.pending.poll_recv(context)) {
                Some(Ok(pending)) => self.current = Some(pending),
                Some(Err(error)) => return self.end(Some(&error)),
                None => return self.end(None),
            }
        }
    }

    fn end(&mut self, error: Option<&Error>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.ended = true;
        let mut trailers = HeaderMap::with_capacity(2);
        match error {
            None => drop(trailers.insert(STATUS, HeaderValue::from_static("0"))),
            Some(error) => status(&mut trailers, error),
        }
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }
}

/// Cuts a body into messages.
struct Messages {
    body: Incoming,
    encoding: Option<Encoding>,
    buffer: BytesMut,
}

impl Messages {
    async fn next(&mut self, config: &Config) -> Result<Option<Bytes>> {
        loop {
            if let Some((compressed, length)) = prefix(&self.buffer) {
                if length > config.max_body_bytes {
                    return Err(body::too_large(config));
                }
                if self.buffer.len() >= PREFIX_BYTES + length {
                    self.buffer.advance(PREFIX_BYTES);
                    let message = self.buffer.split_to(length).freeze();
                    return inflate(message, compressed, self.encoding, config).map(Some);
                }
            }
            match body::next(&mut Pin::new(&mut self.body)).await? {
                Some(data) => self.buffer.extend_from_slice(&data),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(Error::internal("gRPC stream: it ends within a message")),
            }
        }
    }
}

//! Bidirectional streams: messages are taken off as they come, worked on side by side, and answered in order.

use super::{Call, STATUS, inflate, prefix, status};
use crate::body::{self, hold_until_written};
use crate::server::Config;
use crate::shard::Shard;
use crate::stream::Answering;
use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue};
use http_body::Frame;
use hyper::body::Incoming;
use penstock_schema::{Error, Result};
use penstock_wire::Frames;
use penstock_wire::compress::Encoding;
use penstock_wire::grpc::PREFIX_BYTES;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Sleep;

/// Requests of one stream that are worked on at a time; further ones wait in the socket.
const IN_FLIGHT: usize = 128;

/// Answers that a client has not taken yet, above which no further requests are read: two of the largest images.
const BACKLOG_BYTES: usize = 16 << 20;

/// Bytes of a stream's answers that are ready and not taken.
#[derive(Default)]
struct Backlog {
    bytes: AtomicUsize,
    taken: Notify,
}

impl Backlog {
    fn add(&self, frames: &Frames) {
        self.bytes.fetch_add(frames.iter().map(Bytes::len).sum(), Relaxed);
    }

    fn take(&self, frame: &Bytes) {
        self.bytes.fetch_sub(frame.len(), Relaxed);
        self.taken.notify_one();
    }

    async fn has_room(&self) {
        while self.bytes.load(Relaxed) > BACKLOG_BYTES {
            self.taken.notified().await;
        }
    }
}

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
    frames: VecDeque<Bytes>,
    backlog: Arc<Backlog>,
    ended: bool,
    reader: JoinHandle<()>,
    deadline: Option<Pin<Box<Sleep>>>,
    /// Held by each message, too, until it is written.
    answering: Option<Arc<Answering>>,
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
        let deadline = call.until().map(|at| Box::pin(tokio::time::sleep_until(at.into())));
        let backlog = Arc::new(Backlog::default());
        let ready = backlog.clone();
        let reader = tokio::spawn(async move {
            let mut messages = Messages { body: call.body, encoding: call.encoding, buffer: BytesMut::new() };
            let mut arrival = shard.arrival();
            loop {
                ready.has_room().await;
                // A stream in which nothing is under way may stay open for ever.
                let next = tokio::select! {
                    biased;
                    next = messages.next(&shard.server.config) => next,
                    error = arrival.is_over() => Err(error),
                };
                let next = match next {
                    Ok(None) => return,
                    Ok(Some(message)) => {
                        let (ready, answer) = (ready.clone(), answer(message));
                        Ok(Pending(tokio::spawn(async move {
                            let frames = answer.await;
                            ready.add(&frames);
                            frames
                        })))
                    }
                    Err(error) => Err(error),
                };
                let broken = next.is_err();
                if sender.send(next).await.is_err() || broken {
                    return;
                }
            }
        });
        Answers {
            pending,
            current: None,
            frames: VecDeque::new(),
            backlog,
            ended: false,
            reader,
            deadline,
            answering: None,
        }
    }

    /// The connection counts as answering until the stream has ended and all of it is written.
    pub fn answering(mut self, token: Arc<Answering>) -> Answers {
        self.answering = Some(token);
        self
    }

    pub fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            if let Some(frame) = self.frames.pop_front() {
                self.backlog.take(&frame);
                return Poll::Ready(Some(Ok(Frame::data(frame))));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            if self.deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(context).is_ready()) {
                return self.end(Some(&super::deadline_exceeded()));
            }
            if let Some(pending) = &mut self.current {
                match ready!(Pin::new(&mut pending.0).poll(context)) {
                    Ok(mut frames) => {
                        if let Some(token) = &self.answering {
                            hold_until_written(&mut frames, token);
                        }
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
        self.reader.abort();
        self.current = None;
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
                    return inflate(message, compressed, self.encoding, config).await.map(Some);
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

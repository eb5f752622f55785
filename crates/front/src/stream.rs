//! The socket under hyper: keeps the time, gives hyper's own refusals a body, and closes without losing the answer.
//!
//! hyper answers a malformed head by itself with an empty body and closes. Those answers are replaced here by ones
//! that say what was wrong. Closing a socket with unread input makes the kernel reset the connection, and the client
//! may lose the answer; so the writing side is closed first and the rest of the input is read over for a while.

use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::AbortHandle;

/// What a connection is doing, which decides how long it may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Between requests.
    Idle = 0,
    /// The head of a request is coming in.
    Head = 1,
    /// A request is being received or worked on; the request itself keeps the time.
    Busy = 2,
    /// An answer is going out.
    Reply = 3,
    /// The answer is out, the connection is closing.
    Linger = 4,
}

/// What a connection is answering: requests that have reached a handler and answers that are not written hold it.
#[derive(Default)]
pub struct Answering {
    /// An answer was so large that much of it may be in the kernel's buffers when it is written.
    large: AtomicBool,
}

impl Answering {
    pub fn is_large(&self) {
        self.large.store(true, Relaxed);
    }
}

/// What the sweeper of a shard sees of a connection. Times are ticks of the shard's coarse clock.
pub struct Watch {
    phase: AtomicU8,
    since: AtomicU32,
    clock: Arc<AtomicU32>,
    /// When the last byte came or went.
    active: AtomicU32,
    task: Mutex<Option<AbortHandle>>,
    answering: Arc<Answering>,
    /// The server ends and this connection was idle: its peer has nothing to read.
    leaving: AtomicBool,
    _permit: OwnedSemaphorePermit,
}

impl Watch {
    pub fn new(clock: Arc<AtomicU32>, permit: OwnedSemaphorePermit) -> Arc<Watch> {
        let since = AtomicU32::new(clock.load(Relaxed));
        Arc::new(Watch {
            phase: AtomicU8::new(Phase::Idle as u8),
            active: AtomicU32::new(since.load(Relaxed)),
            since,
            clock,
            task: Mutex::new(None),
            answering: Arc::default(),
            leaving: AtomicBool::new(false),
            _permit: permit,
        })
    }

    pub fn attach(&self, task: AbortHandle) {
        *self.task.lock() = Some(task);
    }

    pub fn abort(&self) {
        if let Some(task) = self.task.lock().take() {
            task.abort();
        }
    }

    pub fn phase(&self) -> Phase {
        match self.phase.load(Relaxed) {
            0 => Phase::Idle,
            1 => Phase::Head,
            2 => Phase::Busy,
            3 => Phase::Reply,
            _ => Phase::Linger,
        }
    }

    pub fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Relaxed);
        self.touch();
    }

    /// What a request holds from its head to the end of its answer.
    pub fn answering(&self) -> Arc<Answering> {
        self.answering.clone()
    }

    fn is_answering(&self) -> bool {
        Arc::strong_count(&self.answering) > 1
    }

    fn touch(&self) {
        self.since.store(self.clock.load(Relaxed), Relaxed);
    }

    /// From now on closing does not wait for the peer to close, too.
    pub fn leave(&self) {
        self.leaving.store(true, Relaxed);
    }

    /// Whether nothing was left to wait for, should the peer stay silent.
    pub fn is_done(&self) -> bool {
        match self.phase() {
            Phase::Idle | Phase::Head => true,
            // HTTP/2 has no other phase between its requests.
            Phase::Busy => !self.is_answering(),
            Phase::Reply => false,
            Phase::Linger => true,
        }
    }

    /// Whether the peer may still be reading what was written long ago.
    pub fn wrote_much(&self) -> bool {
        self.answering.large.load(Relaxed)
    }

    /// Ticks since a byte came or went.
    pub fn silence(&self) -> u32 {
        self.clock.load(Relaxed).wrapping_sub(self.active.load(Relaxed))
    }

    fn moved(&self) {
        self.active.store(self.clock.load(Relaxed), Relaxed);
    }

    /// Ticks spent in the present phase.
    pub fn age(&self) -> u32 {
        self.clock.load(Relaxed).wrapping_sub(self.since.load(Relaxed))
    }
}

pub struct Stream {
    socket: TcpStream,
    watch: Arc<Watch>,
    /// Our own text of a refusal that hyper made, while it is being written.
    refusal: Option<Bytes>,
    closed_for_writing: bool,
    lingered: usize,
    /// HTTP/2 has no head of a connection beyond its preface: bytes of it still to come.
    preface: usize,
}

/// The length of HTTP/2's client preface (RFC 9113, section 3.4).
const PREFACE: usize = 24;

/// Input that is read over after the last answer, at most: as much as a client sends before it looks for an answer.
const LINGER_BYTES: usize = 8 << 20;

impl Stream {
    pub fn http1(socket: TcpStream, watch: Arc<Watch>) -> Stream {
        Stream { socket, watch, refusal: None, closed_for_writing: false, lingered: 0, preface: 0 }
    }

    pub fn http2(socket: TcpStream, watch: Arc<Watch>) -> Stream {
        Stream { preface: PREFACE, ..Stream::http1(socket, watch) }
    }

    /// Writes our own text in place of hyper's refusal, then tells hyper that its own went out.
    fn poll_refuse(&mut self, context: &mut Context<'_>, length: usize) -> Poll<io::Result<usize>> {
        while let Some(rest) = self.refusal.as_mut().filter(|rest| rest.has_remaining()) {
            let written = ready!(Pin::new(&mut self.socket).poll_write(context, rest))?;
            rest.advance(written);
        }
        self.refusal = None;
        self.watch.enter(Phase::Reply);
        Poll::Ready(Ok(length))
    }

    /// Whether these bytes are an answer that hyper gave by itself: no request has reached a handler since the last
    /// answer was written.
    fn is_refusal(&self, start: &[u8]) -> bool {
        matches!(self.watch.phase(), Phase::Head | Phase::Idle)
            && !self.watch.is_answering()
            && start.starts_with(b"HTTP/1.1 4")
    }
}

fn refusal(start: &[u8]) -> Bytes {
    let (status, reason, message) = match start.get(9..12) {
        Some(b"414") => (414, "URI Too Long", "request target is too long"),
        Some(b"431") => {
            (431, "Request Header Fields Too Large", "request head has too many or too large header fields")
        }
        Some(b"413") => (413, "Payload Too Large", "request body is too large"),
        _ => (400, "Bad Request", "request is not valid HTTP/1.1: check the request line, header names and lengths"),
    };
    let body = format!("{{\"error\":\"{message}\"}}");
    Bytes::from(format!(
        "HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    ))
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.socket).poll_read(context, buffer))?;
        let received = buffer.filled().len() - before;
        self.watch.moved();
        if self.preface > 0 {
            self.preface = self.preface.saturating_sub(received);
            if self.preface == 0 {
                self.watch.enter(Phase::Busy);
            }
        } else if received > 0 && self.watch.phase() == Phase::Idle {
            self.watch.enter(Phase::Head);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if self.refusal.is_none() && self.is_refusal(data) {
            self.refusal = Some(refusal(data));
        }
        if self.refusal.is_some() {
            return self.poll_refuse(context, data.len());
        }
        let written = ready!(Pin::new(&mut self.socket).poll_write(context, data))?;
        self.watch.touch();
        self.watch.moved();
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.refusal.is_none() && data.first().is_some_and(|start| self.is_refusal(start)) {
            self.refusal = Some(refusal(&data[0]));
        }
        if self.refusal.is_some() {
            return self.poll_refuse(context, data.iter().map(|slice| slice.len()).sum());
        }
        let written = ready!(Pin::new(&mut self.socket).poll_write_vectored(context, data))?;
        self.watch.touch();
        self.watch.moved();
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.watch.phase() == Phase::Reply && !self.watch.is_answering() {
            self.watch.enter(Phase::Idle);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.closed_for_writing {
            ready!(Pin::new(&mut self.socket).poll_shutdown(context))?;
            self.closed_for_writing = true;
            self.watch.enter(Phase::Linger);
        }
        let mut scrap = [0; 16 << 10];
        while self.lingered < LINGER_BYTES {
            let mut buffer = ReadBuf::new(&mut scrap);
            match Pin::new(&mut self.socket).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    self.lingered += buffer.filled().len();
                    self.watch.moved();
                }
                Poll::Pending if !self.watch.leaving.load(Relaxed) => return Poll::Pending,
                _ => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

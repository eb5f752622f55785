//! Bodies: collecting what a client sends under the limits, and sending ready-made frames without copying them.

use crate::server::{Busy, Config};
use crate::shard::{Arrival, Shard};
use crate::stream::Answering;
use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use penstock_schema::{Code, Error, Result, limits};
use smallvec::SmallVec;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;

/// Tensors start at a multiple of this, so that vector code and libraries can use them where they lie.
pub const ALIGNMENT: usize = 64;

/// What is reserved for a body before any of it has come. Less than the blocks that the allocator keeps (the bridge's
/// `large`): those are memory that was written before, which a length that is only declared must not hold.
const FIRST_RESERVATION: usize = (1 << 20) - 4096;

/// How many times as much a body that outgrows its buffer gets, up to what was declared.
const GROWTH: usize = 8;

/// A response body whose frames are ready: data, then perhaps trailers.
#[derive(Default)]
pub struct Frames {
    data: SmallVec<[Bytes; 3]>,
    next: usize,
    trailers: Option<HeaderMap>,
    /// Dropped with the body: small answers are in the socket's buffer then.
    _busy: Option<Busy>,
    /// As `_busy`, for the connection: an answer is under way.
    _answering: Option<Arc<Answering>>,
}

/// From here on an answer may not fit a socket's buffer, so that it is still being written when its body is dropped.
const LARGE_BYTES: usize = 64 << 10;

/// Bytes that hold something until they are written, or the client is gone.
struct Held<T> {
    data: Bytes,
    _token: T,
}

impl<T> AsRef<[u8]> for Held<T> {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

/// Ties the end of a request to the last of its large frames; gives the token back when there is none.
pub fn hold(frames: &mut [Bytes], busy: Busy) -> Option<Busy> {
    match frames.iter_mut().rev().find(|frame| frame.len() > LARGE_BYTES) {
        Some(large) => {
            hold_one(large, busy);
            None
        }
        None => Some(busy),
    }
}

/// Ties a token to one frame.
fn hold_one<T: Send + 'static>(frame: &mut Bytes, token: T) {
    *frame = Bytes::from_owner(Held { data: std::mem::take(frame), _token: token });
}

/// The connection counts as answering until these frames are written.
pub fn hold_until_written(frames: &mut [Bytes], token: &Arc<Answering>) {
    if frames.iter().any(|frame| frame.len() > LARGE_BYTES) {
        token.is_large();
    }
    if let Some(last) = frames.last_mut() {
        hold_one(last, token.clone());
    }
}

/// Text of this length takes about half a millisecond to read or write, which other connections may wait.
pub const HEAVY_TEXT_BYTES: usize = 128 << 10;

/// Binary tensors are mostly sliced; what is looked into (elements of BYTES, typed contents) takes some milliseconds
/// at this size.
pub const HEAVY_BINARY_BYTES: usize = 4 << 20;

/// Runs something long on the blocking pool: on a shard's thread it would hold up every other connection.
pub async fn aside<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::internal("request could not be worked on"))?
}

impl Frames {
    pub fn new(data: SmallVec<[Bytes; 3]>) -> Frames {
        Frames { data, ..Frames::default() }
    }

    pub fn one(data: Bytes) -> Frames {
        Frames::new(SmallVec::from_iter([data]))
    }

    pub fn with_trailers(mut self, trailers: HeaderMap) -> Frames {
        self.trailers = Some(trailers);
        self
    }

    /// The request counts as in flight until this is written.
    pub fn busy(mut self, busy: Busy) -> Frames {
        self._busy = hold(&mut self.data, busy);
        self
    }

    /// The connection counts as answering until hyper has taken all of this.
    pub fn answering(mut self, token: Arc<Answering>) -> Frames {
        if self.data.iter().any(|frame| frame.len() > LARGE_BYTES) {
            token.is_large();
        }
        self._answering = Some(token);
        self
    }

    /// As `answering`, until all of this is written: HTTP/2 keeps what its peer has no window for.
    pub fn answering_until_written(mut self, token: Arc<Answering>) -> Frames {
        hold_until_written(&mut self.data, &token);
        self._answering = Some(token);
        self
    }

    pub fn chunks(&self) -> &[Bytes] {
        &self.data[self.next..]
    }
}

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, Infallible>>> {
        let this = &mut *self;
        if let Some(data) = this.data.get_mut(this.next) {
            this.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(data)))));
        }
        Poll::Ready(this.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.next == self.data.len() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.chunks().iter().map(|chunk| chunk.len() as u64).sum())
    }
}

/// Reads a whole body into one buffer.
///
/// `skip` tells from the first piece where a tensor begins; that byte is placed at an aligned address. A body that
/// arrives in one piece, as small ones do, is not copied at all.
///
/// Errors: 413 over the limit or in too many chunks, 408 when it comes too slowly, 400 when it breaks off, 503 when the
/// server ends and no more of it comes.
pub async fn collect(body: Incoming, shard: &Shard, skip: impl FnOnce(&[u8]) -> usize) -> Result<Bytes> {
    let config = &shard.server.config;
    let declared = body.size_hint().exact();
    if declared.is_some_and(|length| length > config.max_body_bytes as u64) {
        return Err(too_large(config));
    }
    let mut body = pin!(body);
    let started = Instant::now();
    let mut arrival = shard.arrival();
    let first = piece(&mut body, &mut arrival, started + config.body_grace, 0).await?;
    let Some(first) = first else { return Ok(Bytes::new()) };
    if first.len() > config.max_body_bytes {
        return Err(too_large(config));
    }
    if body.is_end_stream() {
        return Ok(first);
    }
    let skip = skip(&first);
    // gRPC declares no length, but it asks for its message's end to be aligned.
    let expected = declared.map_or(skip, |length| length as usize);
    let mut buffer = Aligned::new(first, expected, skip);
    let mut chunks = 1;
    loop {
        let deadline =
            started + config.body_grace + Duration::from_secs(buffer.len() as u64 / limits::BODY_MIN_BYTES_PER_SECOND);
        let frame = piece(&mut body, &mut arrival, deadline, buffer.len()).await?;
        let Some(data) = frame else { return Ok(buffer.freeze()) };
        chunks += 1;
        if buffer.len() + data.len() > config.max_body_bytes {
            return Err(too_large(config));
        }
        if declared.is_none() && chunks > limits::CHUNKS {
            return Err(Error::too_large(format!(
                "request body is in more than {} chunks; send larger ones",
                limits::CHUNKS
            )));
        }
        buffer.extend(data);
    }
}

/// The next piece of a body, of which `got` bytes have come.
async fn piece(
    body: &mut Pin<&mut Incoming>,
    arrival: &mut Arrival,
    deadline: Instant,
    got: usize,
) -> Result<Option<Bytes>> {
    tokio::select! {
        biased;
        data = next(body) => data,
        () = tokio::time::sleep_until(deadline) => Err(too_slow(got)),
        error = arrival.is_given_up() => Err(error),
    }
}

/// The next piece of data; `None` at the end. Trailers are read over.
pub async fn next(body: &mut Pin<&mut Incoming>) -> Result<Option<Bytes>> {
    loop {
        match poll_fn(|context| body.as_mut().poll_frame(context)).await {
            None => return Ok(None),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
            Some(Err(error)) => return Err(Error::invalid(format!("request body could not be read: {error}"))),
        }
    }
}

pub fn too_large(config: &Config) -> Error {
    Error::too_large(format!(
        "request body is larger than the limit of {} bytes; send fewer rows or raise the server's limit",
        config.max_body_bytes
    ))
}

fn too_slow(got: usize) -> Error {
    Error::new(Code::RequestTimeout, format!("request body came too slowly: {got} bytes so far"))
}

/// A growing buffer in which byte `skip` of the content lies at a multiple of [`ALIGNMENT`].
struct Aligned {
    buffer: BytesMut,
    pad: usize,
    skip: usize,
    /// The length that was declared, if one was.
    expected: usize,
}

impl Aligned {
    fn new(first: Bytes, expected: usize, skip: usize) -> Aligned {
        let mut aligned = Aligned { buffer: BytesMut::new(), pad: 0, skip, expected };
        aligned.grow(expected.min(FIRST_RESERVATION).max(first.len()));
        aligned.buffer.extend_from_slice(&first);
        aligned
    }

    fn len(&self) -> usize {
        self.buffer.len() - self.pad
    }

    /// Moves to a buffer with room for `capacity` bytes of content, realigned.
    fn grow(&mut self, capacity: usize) {
        let mut buffer = BytesMut::with_capacity(capacity + ALIGNMENT);
        // Wrapping, since `skip` comes from a header and may be any number.
        let address = (buffer.as_ptr() as usize).wrapping_add(self.skip);
        let pad = address.wrapping_neg() % ALIGNMENT;
        buffer.resize(pad, 0);
        buffer.extend_from_slice(&self.buffer[self.pad..]);
        (self.buffer, self.pad) = (buffer, pad);
    }

    fn extend(&mut self, data: Bytes) {
        if self.buffer.len() + data.len() > self.buffer.capacity() {
            let (least, ample) = (self.len() + data.len(), self.len().saturating_mul(GROWTH));
            self.grow(if self.expected >= least {
                ample.clamp(least, self.expected)
            } else {
                least.max(self.len() * 2)
            });
        }
        self.buffer.extend_from_slice(&data);
    }

    fn freeze(mut self) -> Bytes {
        self.buffer.advance(self.pad);
        self.buffer.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_tensor_is_aligned_however_the_body_arrives() {
        for skip in [0, 1, 63, 64, 150, 4097] {
            let mut buffer = Aligned::new(Bytes::from(vec![1; 10]), 0, skip);
            let mut content = vec![1; 10];
            for piece in 0..50u8 {
                let data = vec![piece; 1 + usize::from(piece) * 97];
                content.extend_from_slice(&data);
                buffer.extend(Bytes::from(data));
            }
            let body = buffer.freeze();
            assert_eq!(body, content);
            assert_eq!((body.as_ptr() as usize + skip) % ALIGNMENT, 0);
        }
    }
}

//! HTTP/1.1, one request at a time: heads are read by `httparse`, bodies by their length, in chunks or to the end.
//!
//! Whoever sends reads the answer itself and sends the next request, without a task for the connection between: what
//! the generator costs is taken from the server that it measures, and what it does late is counted as the server's.

use crate::connection::{Common, Failure, Kept};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::HeaderMap;
use std::io::{self, ErrorKind, IoSlice};
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::TcpStream;

const HEADERS: usize = 100;
const HEAD_BYTES: usize = 64 << 10;
/// Read at once: at first, and once answers turn out to be long.
const LEAST_READ: usize = 8 << 10;
const MOST_READ: usize = 256 << 10;
/// Of an answer that is refused, what is kept of its text.
const REASON_BYTES: usize = 4096;

/// The head of a request whose body has `length` bytes.
pub(crate) fn head(common: &Common, headers: &HeaderMap, length: usize) -> Bytes {
    let path = common.uri.path_and_query().map_or("/", |path| path.as_str());
    let mut head = BytesMut::with_capacity(256);
    head.put_slice(format!("POST {path} HTTP/1.1\r\n").as_bytes());
    for (name, value) in headers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            head.put_slice(part);
        }
    }
    head.put_slice(format!("content-length: {length}\r\n\r\n").as_bytes());
    head.freeze()
}

pub(crate) struct Sender {
    socket: TcpStream,
    /// What came and has not been looked at.
    arrived: BytesMut,
    step: usize,
    reusable: bool,
}

impl Sender {
    pub(crate) fn new(socket: TcpStream) -> Sender {
        Sender { socket, arrived: BytesMut::new(), step: LEAST_READ, reusable: true }
    }

    /// Whether another request may be sent: a server may close what is idle, or say that it will.
    pub(crate) fn is_open(&self) -> bool {
        // Where nothing was heard of the socket the kernel is not asked.
        let quiet = |error: &io::Error| error.kind() == ErrorKind::WouldBlock;
        self.reusable && self.arrived.is_empty() && self.socket.try_read(&mut [0]).as_ref().is_err_and(quiet)
    }

    /// So many bytes of the answer's body.
    pub(crate) async fn exchange(&mut self, head: &Bytes, body: &Bytes, keep: usize) -> Result<Bytes, Failure> {
        let whole = self.send(head, body).await.map_err(lost)?;
        let mut answer = Answer::new(keep);
        while !answer.read(&mut self.arrived).map_err(Failure::Lost)? {
            if self.receive().await.map_err(lost)? == 0 {
                answer.closed().map_err(Failure::Lost)?;
                break;
            }
        }
        self.reusable = whole && answer.reusable;
        answer.finish()
    }

    /// Whether all of it went: a server may answer before it has read what it refuses, and close.
    async fn send(&mut self, head: &Bytes, body: &Bytes) -> io::Result<bool> {
        let mut rest = head.clone().chain(body.clone());
        while rest.has_remaining() {
            let mut parts = [IoSlice::new(&[]); 2];
            let count = rest.chunks_vectored(&mut parts);
            match self.socket.try_write_vectored(&parts[..count]) {
                Ok(count) => rest.advance(count),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let ready = self.socket.ready(Interest::READABLE | Interest::WRITABLE).await?;
                    if ready.is_readable() && self.answers_early() {
                        return Ok(false);
                    }
                }
                // What it said before it closed may be there.
                Err(_) => return Ok(false),
            }
        }
        Ok(true)
    }

    fn answers_early(&mut self) -> bool {
        self.arrived.reserve(self.step);
        !matches!(self.socket.try_read_buf(&mut self.arrived), Err(error) if error.kind() == ErrorKind::WouldBlock)
    }

    async fn receive(&mut self) -> io::Result<usize> {
        self.arrived.reserve(self.step);
        let count = self.socket.read_buf(&mut self.arrived).await?;
        if count >= self.step {
            self.step = MOST_READ.min(2 * self.step);
        }
        Ok(count)
    }
}

fn lost(error: io::Error) -> Failure {
    Failure::Lost(error.to_string())
}

/// What of an answer is still to come.
#[derive(Debug, PartialEq, Eq)]
enum Rest {
    Head,
    Bytes(u64),
    UntilClosed,
    ChunkSize,
    /// Bytes of the chunk.
    Chunk(u64),
    ChunkEnd,
    Trailers,
    Nothing,
}

/// An answer as it comes, in pieces of any size.
struct Answer {
    rest: Rest,
    status: u16,
    /// Whether the connection is, after it.
    reusable: bool,
    keep: usize,
    kept: Kept,
}

impl Answer {
    fn new(keep: usize) -> Answer {
        Answer { rest: Rest::Head, status: 0, reusable: true, keep, kept: Kept::new(0) }
    }

    /// Takes what it can from the front; whether that was the end of the answer.
    fn read(&mut self, arrived: &mut BytesMut) -> Result<bool, String> {
        loop {
            let next = match self.rest {
                Rest::Nothing => return Ok(true),
                Rest::Head => self.head(arrived)?,
                Rest::Bytes(left) => self.part(left, arrived).map(|left| match left {
                    0 => Rest::Nothing,
                    left => Rest::Bytes(left),
                }),
                Rest::UntilClosed => self.part(u64::MAX, arrived).map(|_| Rest::UntilClosed),
                Rest::ChunkSize => chunk_size(arrived)?,
                Rest::Chunk(left) => self.part(left, arrived).map(|left| match left {
                    0 => Rest::ChunkEnd,
                    left => Rest::Chunk(left),
                }),
                Rest::ChunkEnd => chunk_end(arrived)?,
                Rest::Trailers => trailers(arrived)?,
            };
            match next {
                Some(next) => self.rest = next,
                None => return Ok(false),
            }
        }
    }

    /// The connection ended, which is the end of some answers.
    fn closed(&mut self) -> Result<(), String> {
        self.reusable = false;
        match self.rest {
            Rest::UntilClosed => Ok(()),
            Rest::Head => Err("the connection was closed before an answer".into()),
            _ => Err("the connection was closed within an answer".into()),
        }
    }

    fn finish(self) -> Result<Bytes, Failure> {
        let kept = self.kept.finish();
        if (200..300).contains(&self.status) {
            return Ok(kept);
        }
        Err(Failure::Refused(format!("{}: {}", self.status, String::from_utf8_lossy(&kept))))
    }

    /// Up to so many bytes of the body: how many are left, None where there is nothing to take.
    fn part(&mut self, left: u64, arrived: &mut BytesMut) -> Option<u64> {
        let count = usize::try_from(left).map_or(arrived.len(), |left| left.min(arrived.len()));
        if count == 0 && left > 0 {
            return None;
        }
        if self.keep == 0 {
            arrived.advance(count);
        } else {
            self.kept.add(arrived.split_to(count).freeze());
        }
        Some(left - count as u64)
    }

    fn head(&mut self, arrived: &mut BytesMut) -> Result<Option<Rest>, String> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS];
        let mut head = httparse::Response::new(&mut headers);
        let length = match head.parse(arrived) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) if arrived.len() < HEAD_BYTES => return Ok(None),
            Ok(httparse::Status::Partial) => return Err(format!("the answer's head is over {HEAD_BYTES} bytes")),
            Err(error) => return Err(format!("what came is no answer: {error}")),
        };
        self.status = head.code.unwrap_or(0);
        let framing = Framing::of(head.headers)?;
        // Version 1.0 closes unless it says otherwise.
        self.reusable = if head.version == Some(0) { framing.keeps_alive } else { !framing.closes };
        arrived.advance(length);
        if self.status == 101 {
            return Err("the server wants to speak another protocol".into());
        }
        if (100..200).contains(&self.status) {
            return Ok(Some(Rest::Head));
        }
        if !(200..300).contains(&self.status) {
            self.keep = REASON_BYTES;
        }
        self.kept = Kept::new(self.keep);
        Ok(Some(match self.status {
            204 | 304 => Rest::Nothing,
            _ => framing.body(),
        }))
    }
}

/// What the headers say of the body and the connection.
#[derive(Default)]
struct Framing {
    length: Option<u64>,
    encoded: bool,
    chunked: bool,
    closes: bool,
    keeps_alive: bool,
}

impl Framing {
    fn of(headers: &[httparse::Header<'_>]) -> Result<Framing, String> {
        let mut found = Framing::default();
        for header in headers {
            if header.name.eq_ignore_ascii_case("content-length") {
                let length = std::str::from_utf8(header.value).ok().and_then(|text| text.trim().parse().ok());
                if length.is_none() || found.length.is_some_and(|other| Some(other) != length) {
                    return Err("the answer's length is no number".into());
                }
                found.length = length;
            } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
                found.encoded = true;
                found.chunked = tokens(header.value).last().is_some_and(|last| last.eq_ignore_ascii_case(b"chunked"));
            } else if header.name.eq_ignore_ascii_case("connection") {
                found.closes |= tokens(header.value).any(|token| token.eq_ignore_ascii_case(b"close"));
                found.keeps_alive |= tokens(header.value).any(|token| token.eq_ignore_ascii_case(b"keep-alive"));
            }
        }
        Ok(found)
    }

    fn body(&self) -> Rest {
        match self.length {
            _ if self.chunked => Rest::ChunkSize,
            Some(length) if !self.encoded => Rest::Bytes(length),
            _ => Rest::UntilClosed,
        }
    }
}

fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

fn chunk_size(arrived: &mut BytesMut) -> Result<Option<Rest>, String> {
    match httparse::parse_chunk_size(arrived) {
        Ok(httparse::Status::Complete((length, size))) => {
            arrived.advance(length);
            Ok(Some(if size == 0 { Rest::Trailers } else { Rest::Chunk(size) }))
        }
        Ok(httparse::Status::Partial) if arrived.len() < HEAD_BYTES => Ok(None),
        _ => Err("a chunk of the answer has no size".into()),
    }
}

fn chunk_end(arrived: &mut BytesMut) -> Result<Option<Rest>, String> {
    match arrived.get(..2) {
        None => Ok(None),
        Some(b"\r\n") => {
            arrived.advance(2);
            Ok(Some(Rest::ChunkSize))
        }
        Some(_) => Err("a chunk of the answer is longer than it said".into()),
    }
}

fn trailers(arrived: &mut BytesMut) -> Result<Option<Rest>, String> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    match httparse::parse_headers(arrived, &mut headers) {
        Ok(httparse::Status::Complete((length, _))) => {
            arrived.advance(length);
            Ok(Some(Rest::Nothing))
        }
        Ok(httparse::Status::Partial) if arrived.len() < HEAD_BYTES => Ok(None),
        _ => Err("what follows the answer's chunks is no header".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: &str = "HTTP/1.1 200 OK\r\n";

    /// The answer that comes in pieces of so many bytes, whether the connection is good after it, and what is left over.
    fn read(text: &str, step: usize, keep: usize) -> Result<(Bytes, bool, Bytes), String> {
        let mut arrived = BytesMut::new();
        let mut answer = Answer::new(keep);
        let mut pieces = text.as_bytes().chunks(step);
        while !answer.read(&mut arrived)? {
            match pieces.next() {
                Some(piece) => arrived.extend_from_slice(piece),
                None => {
                    answer.closed()?;
                    break;
                }
            }
        }
        pieces.for_each(|piece| arrived.extend_from_slice(piece));
        let reusable = answer.reusable;
        match answer.finish() {
            Ok(body) => Ok((body, reusable, arrived.freeze())),
            Err(failure) => Err(failure.text()),
        }
    }

    #[test]
    fn bodies_are_read_however_they_come() {
        for (rest, body, reusable) in [
            ("content-length: 5\r\n\r\nhello", "hello", true),
            ("Content-Length: 5\r\ncontent-length:5\r\nConnection: close\r\n\r\nhello", "hello", false),
            ("content-length: 0\r\n\r\n", "", true),
            ("transfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3;a=b\r\nllo\r\n0\r\n\r\n", "hello", true),
            ("transfer-encoding: gzip, Chunked\r\n\r\nA\r\n0123456789\r\n0\r\nx: y\r\n\r\n", "0123456789", true),
            ("transfer-encoding: gzip\r\ncontent-length: 1\r\n\r\nhello", "hello", false),
            ("connection: x, keep-alive\r\n\r\nto the end", "to the end", false),
        ] {
            let text = format!("{OK}{rest}");
            for step in 1..=text.len() {
                let (found, good, left) = read(&text, step, usize::MAX).unwrap();
                assert_eq!((&found[..], good, left.len()), (body.as_bytes(), reusable, 0), "{rest:?} by {step}");
                assert_eq!(read(&text, step, 0).unwrap().0, "", "{rest:?} by {step}");
            }
        }
    }

    #[test]
    fn what_comes_before_an_answer_is_not_the_answer() {
        let text =
            format!("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 x\r\nlink: y\r\n\r\n{OK}content-length: 2\r\n\r\nok");
        for step in 1..=text.len() {
            assert_eq!(read(&text, step, 9).unwrap().0, "ok");
        }
    }

    #[test]
    fn version_1_0_closes_unless_it_says_otherwise() {
        let (_, reusable, _) = read("HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\nx", 9, 0).unwrap();
        assert!(!reusable);
        let text = "HTTP/1.0 200 OK\r\nconnection: Keep-Alive\r\ncontent-length: 1\r\n\r\nx";
        assert!(read(text, 9, 0).unwrap().1);
    }

    #[test]
    fn what_was_not_asked_for_is_left() {
        let (_, _, left) = read(&format!("{OK}content-length: 1\r\n\r\nxHTTP/1.1 200 OK\r\n"), 1000, 0).unwrap();
        assert_eq!(left, "HTTP/1.1 200 OK\r\n");
    }

    #[test]
    fn refusals_are_in_the_servers_words() {
        let text = "HTTP/1.1 503 Busy\r\ncontent-length: 5\r\n\r\nlater";
        assert_eq!(read(text, 7, 0).unwrap_err(), "503: later");
        assert_eq!(read("HTTP/1.1 304 x\r\ncontent-length: 5\r\n\r\n", 7, 0).unwrap_err(), "304: ");
        let long = format!("HTTP/1.1 400 x\r\n\r\n{}", "a".repeat(3 * REASON_BYTES));
        assert_eq!(read(&long, 100, 0).unwrap_err().len(), "400: ".len() + REASON_BYTES);
    }

    #[test]
    fn what_is_no_answer_is_said() {
        for (text, expected) in [
            ("", "the connection was closed before an answer"),
            ("HTTP/1.1 200", "the connection was closed before an answer"),
            ("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx", "the connection was closed within an answer"),
            ("HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", "the answer's length is no number"),
            ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx", "the answer's length is no number"),
            ("HTTP/1.1 101 x\r\n\r\n", "the server wants to speak another protocol"),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", "a chunk of the answer has no size"),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nxyz",
                "a chunk of the answer is longer than it said",
            ),
            ("SSH-2.0-OpenSSH_9.6\r\n", "what came is no answer: invalid HTTP version"),
        ] {
            assert_eq!(read(text, 1000, 0).unwrap_err(), expected, "{text:?}");
        }
        let endless = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(HEAD_BYTES));
        assert_eq!(read(&endless, 1000, 0).unwrap_err(), "the answer's head is over 65536 bytes");
        let endless = format!("{OK}transfer-encoding: chunked\r\n\r\n0\r\nx: {}", "y".repeat(HEAD_BYTES));
        assert_eq!(read(&endless, 1000, 0).unwrap_err(), "what follows the answer's chunks is no header");
    }
}

//! Content codings: gzip and deflate (zlib), bounded while inflating.
//!
//! Called by `front` on bodies and gRPC messages.

use flate2::{Compression, Decompress, FlushDecompress, Status, bufread, write};
use penstock_schema::{Code, Error, Result, limits};
use std::io::{self, Read, Write};

/// A coding this server speaks. `Deflate` is the zlib format, as HTTP and gRPC both mean it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Gzip,
    Deflate,
}

impl Encoding {
    pub const fn name(self) -> &'static str {
        match self {
            Encoding::Gzip => "gzip",
            Encoding::Deflate => "deflate",
        }
    }

    fn parse(name: &str) -> Option<Encoding> {
        let is = |wanted: &str| name.eq_ignore_ascii_case(wanted);
        if is("gzip") || is("x-gzip") {
            Some(Encoding::Gzip)
        } else if is("deflate") {
            Some(Encoding::Deflate)
        } else {
            None
        }
    }
}

/// What a `Content-Encoding` or `grpc-encoding` header asks for; `None` is no coding at all.
pub fn content_encoding(header: &str) -> Result<Option<Encoding>> {
    let name = header.trim();
    if name.is_empty() || name.eq_ignore_ascii_case("identity") {
        return Ok(None);
    }
    Encoding::parse(name).map(Some).ok_or_else(|| {
        Error::new(
            Code::UnsupportedMedia,
            format!("content encoding {}: expected gzip, deflate or identity", crate::request::Quoted(name)),
        )
    })
}

/// The coding to answer with, by an `Accept-Encoding` header: the one of the highest quality, gzip among equals, none when
/// plain is preferred or nothing fits (RFC 9110, section 12.5.3).
pub fn accept(header: &str) -> Option<Encoding> {
    let (mut gzip, mut deflate, mut identity, mut others) = (None, None, None, None);
    for item in header.split(',') {
        let mut parts = item.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let quality = parts.find_map(quality).unwrap_or(1.0);
        match Encoding::parse(name) {
            Some(Encoding::Gzip) => gzip = Some(quality),
            Some(Encoding::Deflate) => deflate = Some(quality),
            None if name == "*" => others = Some(quality),
            None if name.eq_ignore_ascii_case("identity") => identity = Some(quality),
            None => {}
        }
    }
    let gzip = gzip.or(others).unwrap_or(0.0);
    let deflate = deflate.or(others).unwrap_or(0.0);
    let best = if gzip >= deflate { (Encoding::Gzip, gzip) } else { (Encoding::Deflate, deflate) };
    (best.1 > 0.0 && best.1 >= identity.unwrap_or(0.0)).then_some(best.0)
}

/// The value of a `q=` parameter; an unreadable one counts as a refusal.
fn quality(parameter: &str) -> Option<f32> {
    let (name, value) = parameter.split_once('=')?;
    if !name.trim().eq_ignore_ascii_case("q") {
        return None;
    }
    Some(value.trim().parse().ok().filter(|quality| (0.0..=1.0).contains(quality)).unwrap_or(0.0))
}

/// The plain form of `body`, at most `limit` bytes. A bomb is noticed one step past the limit, never held whole.
///
/// One stream only: bytes behind it are refused, so no second meaning can hide there.
pub fn inflate(encoding: Encoding, body: &[u8], limit: usize) -> Result<Vec<u8>> {
    match encoding {
        Encoding::Gzip => {
            let mut decoder = bufread::GzDecoder::new(body);
            let plain = grow(body.len(), limit, |room| read_some(&mut decoder, room))?;
            ended(decoder.into_inner())?;
            Ok(plain)
        }
        Encoding::Deflate => {
            let mut stream = ZlibStream { state: Decompress::new(true), rest: body };
            let plain = grow(body.len(), limit, |room| stream.read(room))?;
            ended(stream.rest)?;
            Ok(plain)
        }
    }
}

/// Calls `fill` with fresh room until it fills nothing.
fn grow(compressed: usize, limit: usize, mut fill: impl FnMut(&mut [u8]) -> Result<usize>) -> Result<Vec<u8>> {
    let step = limits::INFLATE_STEP_BYTES as usize;
    let mut plain = Vec::new();
    loop {
        let filled = plain.len();
        // The first step fits what came; each later one doubles, so that large bodies are moved few times.
        let room = filled.max(compressed).clamp(64, step.max(filled)).min(limit.saturating_add(1) - filled);
        plain.resize(filled + room, 0);
        let count = fill(&mut plain[filled..])?;
        plain.truncate(filled + count);
        if plain.len() > limit {
            return Err(Error::too_large(format!(
                "body: expected at most {limit} bytes after decompression, got more"
            )));
        }
        if count == 0 {
            return Ok(plain);
        }
    }
}

fn read_some(decoder: &mut impl Read, buffer: &mut [u8]) -> Result<usize> {
    loop {
        match decoder.read(buffer) {
            Ok(count) => return Ok(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(cut()),
            Err(_) => return Err(corrupt()),
        }
    }
}

/// flate2's own reader takes the end of its input for the end of the stream, so a cut body would pass as whole.
struct ZlibStream<'a> {
    state: Decompress,
    rest: &'a [u8],
}

impl ZlibStream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        loop {
            let (taken, given) = (self.state.total_in(), self.state.total_out());
            let status = self.state.decompress(self.rest, buffer, FlushDecompress::None).map_err(|_| corrupt())?;
            let (taken, given) = ((self.state.total_in() - taken) as usize, (self.state.total_out() - given) as usize);
            self.rest = self.rest.get(taken..).unwrap_or_default();
            if given > 0 || status == Status::StreamEnd {
                return Ok(given);
            }
            if taken == 0 {
                return Err(cut());
            }
        }
    }
}

fn cut() -> Error {
    Error::invalid("compressed body: cut off before its end; send the whole stream")
}

fn corrupt() -> Error {
    Error::invalid("compressed body: not a valid stream of its content encoding")
}

fn ended(rest: &[u8]) -> Result<()> {
    if rest.is_empty() {
        return Ok(());
    }
    Err(Error::invalid(format!("compressed body: expected one stream, got {} bytes behind its end", rest.len())))
}

/// The parts, joined and compressed. Fastest level: an answer waits for it, and tensors hardly compress.
pub fn deflate<T: AsRef<[u8]>>(encoding: Encoding, parts: &[T]) -> Vec<u8> {
    // Writing into a Vec can't fail; should flate2 think otherwise, an empty stream is refused by every client.
    match encoding {
        Encoding::Gzip => write_all(write::GzEncoder::new(Vec::new(), Compression::fast()), parts)
            .and_then(write::GzEncoder::finish)
            .unwrap_or_default(),
        Encoding::Deflate => write_all(write::ZlibEncoder::new(Vec::new(), Compression::fast()), parts)
            .and_then(write::ZlibEncoder::finish)
            .unwrap_or_default(),
    }
}

fn write_all<W: Write, T: AsRef<[u8]>>(mut encoder: W, parts: &[T]) -> io::Result<W> {
    for part in parts {
        encoder.write_all(part.as_ref())?;
    }
    Ok(encoder)
}

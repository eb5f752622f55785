//! The 5-byte prefix of every gRPC message: a compressed flag, then the length in network order.

use bytes::{BufMut, Bytes, BytesMut};
use penstock_schema::{Error, Result};
use prost::Message;

pub const PREFIX_BYTES: usize = 5;

/// What a prefix announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    pub compressed: bool,
    pub length: u32,
}

/// Reads a prefix. The caller compares the length with its limit before it waits for that many bytes.
pub fn unframe(prefix: [u8; PREFIX_BYTES]) -> Result<Prefix> {
    let [flag, length @ ..] = prefix;
    if flag > 1 {
        return Err(Error::internal(format!("gRPC message prefix: expected a compressed flag of 0 or 1, got {flag}")));
    }
    Ok(Prefix { compressed: flag == 1, length: u32::from_be_bytes(length) })
}

/// Writes a prefix.
pub fn prefix(Prefix { compressed, length }: Prefix) -> [u8; PREFIX_BYTES] {
    let [a, b, c, d] = length.to_be_bytes();
    [u8::from(compressed), a, b, c, d]
}

/// A message with its prefix, in one allocation.
pub fn frame(message: &impl Message) -> Result<Bytes> {
    let length = length(message.encoded_len())?;
    let mut framed = BytesMut::with_capacity(PREFIX_BYTES + length as usize);
    framed.put_slice(&prefix(Prefix { compressed: false, length }));
    message.encode_raw(&mut framed);
    Ok(framed.freeze())
}

/// Already compressed bytes with their prefix.
pub fn frame_compressed(bytes: &[u8]) -> Result<Bytes> {
    let length = length(bytes.len())?;
    let mut framed = BytesMut::with_capacity(PREFIX_BYTES + bytes.len());
    framed.put_slice(&prefix(Prefix { compressed: true, length }));
    framed.put_slice(bytes);
    Ok(framed.freeze())
}

/// A message length as the prefix holds it.
pub(super) fn length(bytes: usize) -> Result<u32> {
    u32::try_from(bytes).map_err(|_| {
        Error::internal(format!("answer: a gRPC message holds at most 4 GiB, got {bytes} bytes; ask for fewer rows"))
    })
}

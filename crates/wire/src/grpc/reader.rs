//! Protobuf wire format, reading side: fields of one message, borrowed (protobuf.dev/programming-guides/encoding).

use penstock_schema::{Error, Result};

/// Field numbers have 29 bits.
const MAX_FIELD: u64 = (1 << 29) - 1;

/// One field as it stands in the message.
#[derive(Clone, Copy, Debug)]
pub(super) enum Field<'a> {
    Varint(u64),
    Fixed64([u8; 8]),
    Bytes(&'a [u8]),
    Fixed32([u8; 4]),
}

/// A cursor over one encoded message.
pub(super) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// The next field and its number; `None` at the end.
    pub fn field(&mut self) -> Result<Option<(u64, Field<'a>)>> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let field = match tag & 7 {
            0 => Field::Varint(self.varint()?),
            1 => Field::Fixed64(self.array()?),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| malformed())?;
                let (bytes, rest) = self.0.split_at_checked(length).ok_or_else(malformed)?;
                self.0 = rest;
                Field::Bytes(bytes)
            }
            5 => Field::Fixed32(self.array()?),
            // Groups (3, 4) are in no message of this protocol, and skipping them would mean to recurse.
            _ => return Err(malformed()),
        };
        match tag >> 3 {
            number @ 1..=MAX_FIELD => Ok(Some((number, field))),
            _ => Err(malformed()),
        }
    }

    pub fn varint(&mut self) -> Result<u64> {
        // Nearly every tag, length and dimension is one byte.
        if let [byte @ 0..=0x7f, rest @ ..] = self.0 {
            self.0 = rest;
            return Ok(u64::from(*byte));
        }
        let mut value = 0u64;
        for (position, &byte) in self.0.iter().take(10).enumerate() {
            // The tenth byte holds one bit.
            if position == 9 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << (7 * position);
            if byte < 0x80 {
                self.0 = &self.0[position + 1..];
                return Ok(value);
            }
        }
        Err(malformed())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk().ok_or_else(malformed)?;
        self.0 = rest;
        Ok(*array)
    }
}

impl<'a> Field<'a> {
    pub fn bytes(self) -> Result<&'a [u8]> {
        match self {
            Field::Bytes(bytes) => Ok(bytes),
            _ => Err(malformed()),
        }
    }

    pub fn text(self) -> Result<&'a str> {
        std::str::from_utf8(self.bytes()?)
            .map_err(|_| Error::invalid("message: expected UTF-8 in every string, got other bytes"))
    }

    /// Hands on each value of a repeated varint field, packed or not.
    pub fn varints(self, mut each: impl FnMut(u64) -> Result<()>) -> Result<()> {
        match self {
            Field::Varint(value) => each(value),
            Field::Bytes(bytes) => {
                let mut packed = Reader(bytes);
                while !packed.0.is_empty() {
                    each(packed.varint()?)?;
                }
                Ok(())
            }
            _ => Err(malformed()),
        }
    }
}

pub(super) fn malformed() -> Error {
    Error::invalid(
        "message: not a valid protobuf ModelInferRequest; it is cut off or was made from another .proto file",
    )
}

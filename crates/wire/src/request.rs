//! The shapes of a request on its way in, and what is kept of it for the way out.

use crate::Parameters;
use bytes::Bytes;
use penstock_schema::{DataType, Error, Inputs, OnDevice, Result, Shape, limits};
use smallvec::SmallVec;
use std::{borrow::Cow, fmt};

/// Consecutive pieces of one body, to be written in order. Small answers are one piece.
pub type Frames = SmallVec<[Bytes; 3]>;

/// Syntax that is sound, names as sent, nothing checked against a model. Text borrows from the body it was read from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RawRequest<'a> {
    pub id: Cow<'a, str>,
    pub inputs: SmallVec<[RawTensor<'a>; 2]>,
    /// Empty: every output is wanted.
    pub outputs: SmallVec<[RawOutput<'a>; 2]>,
    pub parameters: Parameters<'a>,
}

/// One input as sent.
#[derive(Clone, Debug, PartialEq)]
pub struct RawTensor<'a> {
    pub name: Cow<'a, str>,
    pub datatype: DataType,
    /// Never negative.
    pub shape: Shape,
    /// A slice of the body, or what its JSON or typed elements came to; empty while it is still at its place.
    pub data: Bytes,
    /// Where the data is instead, in shared memory. Who can read it fills `data` in and takes this away.
    pub place: Option<Box<Place>>,
    /// Where the data is instead, on a device; of calls within the process only.
    pub device: Option<Box<OnDevice>>,
}

/// A range of a registered region of shared memory, as the parameters of a tensor name it. The sum does not overflow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub region: String,
    pub offset: u64,
    pub byte_size: u64,
}

/// One requested output as sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawOutput<'a> {
    pub name: Cow<'a, str>,
    /// Its own `binary_data`; `None` leaves it to the request's `binary_data_output`.
    pub binary: Option<bool>,
    /// Where in shared memory it is to be written, rather than into the answer.
    pub place: Option<Box<Place>>,
}

/// A request that fits its model: nothing about it can fail any more.
#[derive(Debug)]
pub struct Validated {
    /// In the order of the specification.
    pub inputs: Inputs,
    /// Size of the batch dimension; 1 for a model without one.
    pub rows: u32,
    /// 1 is the highest; 0 leaves it to the model.
    pub priority: u32,
    /// `None` when absent or 0, which mean the same.
    pub timeout_us: Option<u64>,
    pub plan: ReplyPlan,
}

/// What the front keeps while the request is away: how to answer it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplyPlan {
    /// Empty (and then without an allocation) when the client sent none.
    pub id: String,
    /// Never left empty to mean "all": those are listed.
    pub outputs: SmallVec<[WantedOutput; 2]>,
    /// A stream client asked for an empty last message.
    pub empty_final_response: bool,
}

/// One output to answer with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedOutput {
    /// Into `ModelSpec::outputs`.
    pub index: usize,
    /// Binary rather than JSON; HTTP only.
    pub binary: bool,
    /// It goes into shared memory, and the answer only says where.
    pub place: Option<Box<Place>>,
}

/// Refuses ids that would grow answers or break log lines.
pub(crate) fn check_id(id: &str) -> Result<()> {
    if id.len() as u64 > limits::ID_BYTES {
        return Err(Error::invalid(format!("id: expected at most {} bytes, got {}", limits::ID_BYTES, id.len())));
    }
    if id.chars().any(char::is_control) {
        return Err(Error::invalid("id: expected no control characters, got at least one; send printable text"));
    }
    Ok(())
}

/// A name from outside, quoted, escaped and cut so that it cannot flood or split a message.
pub(crate) struct Quoted<'a>(pub &'a str);

/// Long enough to recognise any sane name by.
const QUOTED_CHARS: usize = 64;

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("'")?;
        for character in self.0.chars().take(QUOTED_CHARS) {
            write!(formatter, "{}", character.escape_debug())?;
        }
        if self.0.chars().nth(QUOTED_CHARS).is_some() {
            formatter.write_str("...")?;
        }
        formatter.write_str("'")
    }
}

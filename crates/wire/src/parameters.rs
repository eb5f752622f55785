//! The typed values that ride along with a request, and the names among them that mean something here.
//!
//! JSON and protobuf both end in [`Parameters::set`], so a reserved name means the same on both wires.

use crate::request::{Place, Quoted};
use penstock_schema::{Error, Result, limits};
use std::borrow::Cow;
use std::fmt;

/// One parameter value. JSON integers are `Int` when they fit, else `Uint`.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Cow<'a, str>),
}

impl Value<'_> {
    /// The value as a count, if it is one.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::Int(value) => u64::try_from(value).ok(),
            Value::Uint(value) => Some(value),
            _ => None,
        }
    }

    pub(crate) fn describe(&self) -> String {
        match self {
            Value::Bool(value) => value.to_string(),
            Value::Int(value) => value.to_string(),
            Value::Uint(value) => value.to_string(),
            Value::Double(value) => Float(*value).to_string(),
            Value::String(value) => Quoted(value).to_string(),
        }
    }
}

/// A number that was read as a float, so that `1.0` is told from `1`, and what lost digits says so.
pub(crate) struct Float(pub f64);

/// From here on (2^53) neighbouring integers are one float.
const LAST_EXACT: f64 = 9_007_199_254_740_992.0;

impl fmt::Display for Float {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let about = if self.0.abs() < LAST_EXACT { "" } else { "about " };
        write!(formatter, "{about}{:?}", self.0)
    }
}

/// The parameters of a request: reserved ones by name, the rest as sent, for the model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parameters<'a> {
    /// 1 is the highest; 0 leaves it to the model.
    pub priority: u32,
    /// Microseconds; 0 is none.
    pub timeout_us: u64,
    /// What outputs without their own `binary_data` do.
    pub binary_data_output: bool,
    /// Streams only: end with an empty message.
    pub empty_final_response: bool,
    /// Names without a meaning here, in the order sent.
    pub custom: Vec<(Cow<'a, str>, Value<'a>)>,
}

/// Whether a name belongs to the protocol, so that it must not be forwarded from a header or reach a model.
pub fn is_reserved(name: &str) -> bool {
    const NAMES: [&str; 7] =
        ["sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "headers", "binary_data_output"];
    NAMES.contains(&name) || name.starts_with("triton_")
}

impl<'a> Parameters<'a> {
    /// Takes one request-level parameter. The caller has refused doubled names where its format forbids them; where it
    /// doesn't (protobuf maps), the last one counts.
    pub fn set(&mut self, name: Cow<'a, str>, value: Value<'a>) -> Result<()> {
        match name.as_ref() {
            "priority" => {
                let wanted = "an integer from 0 to 4294967295";
                self.priority = value
                    .as_u64()
                    .and_then(|value| value.try_into().ok())
                    .ok_or_else(|| wrong(&name, wanted, &value))?;
            }
            "timeout" => {
                let wanted = "microseconds as a non-negative integer";
                self.timeout_us = value.as_u64().ok_or_else(|| wrong(&name, wanted, &value))?;
            }
            "binary_data_output" => self.binary_data_output = boolean(&name, &value)?,
            "triton_enable_empty_final_response" => self.empty_final_response = boolean(&name, &value)?,
            // Models without a sequence batcher ignore sequences, as in Triton.
            "sequence_start" | "sequence_end" => {
                boolean(&name, &value)?;
            }
            "sequence_id" => {
                if !matches!(value, Value::String(_)) && value.as_u64().is_none() {
                    return Err(wrong(&name, "a string or a non-negative integer", &value));
                }
            }
            reserved if is_reserved(reserved) => {
                return Err(Error::invalid(format!(
                    "parameter {}: the name is reserved; use another one",
                    Quoted(&name)
                )));
            }
            _ => {
                if self.custom.len() as u64 >= limits::PARAMETERS_PER_REQUEST {
                    return Err(too_many());
                }
                self.custom.push((name, value));
            }
        }
        Ok(())
    }
}

pub(crate) fn too_many() -> Error {
    Error::invalid(format!("parameters: expected at most {}, got more", limits::PARAMETERS_PER_REQUEST))
}

/// What the parameters of one input say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct InputParameters {
    pub binary_data_size: Option<u64>,
    pub place: PlaceParameters,
}

impl InputParameters {
    pub fn set(&mut self, name: &str, value: &Value<'_>) -> Result<()> {
        match name {
            "binary_data_size" => {
                let wanted = "a byte count";
                self.binary_data_size = Some(value.as_u64().ok_or_else(|| wrong(name, wanted, value))?);
                Ok(())
            }
            _ => self.place.set(name, value),
        }
    }
}

/// What the parameters of one requested output say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OutputParameters {
    pub binary_data: Option<bool>,
    pub place: PlaceParameters,
}

impl OutputParameters {
    pub fn set(&mut self, name: &str, value: &Value<'_>) -> Result<()> {
        match name {
            "binary_data" => {
                self.binary_data = Some(boolean(name, value)?);
                Ok(())
            }
            // 0 asks for nothing, and some clients always send it.
            "classification" => match value.as_u64() {
                Some(0) => Ok(()),
                Some(_) => Err(Error::unsupported(
                    "parameter 'classification' is not supported by this server; ask for the whole output and rank it in the client",
                )),
                None => Err(wrong(name, "a non-negative integer", value)),
            },
            _ => self.place.set(name, value),
        }
    }
}

/// Where in shared memory a tensor is, as far as its parameters have been read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PlaceParameters {
    region: Option<String>,
    offset: Option<u64>,
    byte_size: Option<u64>,
}

impl PlaceParameters {
    /// Takes one parameter; those that are about something else are left alone.
    fn set(&mut self, name: &str, value: &Value<'_>) -> Result<()> {
        let bytes = || value.as_u64().map(Some).ok_or_else(|| wrong(name, "a byte count", value));
        match name {
            "shared_memory_region" => match value {
                Value::String(region) => self.region = Some(region.as_ref().to_owned()),
                _ => return Err(wrong(name, "the name of a region", value)),
            },
            "shared_memory_offset" => self.offset = bytes()?,
            "shared_memory_byte_size" => self.byte_size = bytes()?,
            _ => {}
        }
        Ok(())
    }

    /// The place, if any of this was said. `tensor` is for messages: "input 'x'".
    pub fn finish(self, tensor: impl Fn() -> String) -> Result<Option<Box<Place>>> {
        let missing = |name| Err(Error::invalid(format!("{}: expected parameter {name} beside the others", tensor())));
        let (region, byte_size) = match self {
            PlaceParameters { region: None, offset: None, byte_size: None } => return Ok(None),
            PlaceParameters { region: Some(region), byte_size: Some(byte_size), .. } => (region, byte_size),
            PlaceParameters { region: None, .. } => return missing("'shared_memory_region'"),
            PlaceParameters { .. } => return missing("'shared_memory_byte_size'"),
        };
        let offset = self.offset.unwrap_or(0);
        if offset.checked_add(byte_size).is_none() {
            return Err(Error::invalid(format!(
                "{}: shared_memory_offset {offset} and shared_memory_byte_size {byte_size} add up to more than 2^64",
                tensor()
            )));
        }
        Ok(Some(Box::new(Place { region, offset, byte_size })))
    }
}

fn boolean(name: &str, value: &Value<'_>) -> Result<bool> {
    match value {
        Value::Bool(value) => Ok(*value),
        _ => Err(wrong(name, "true or false", value)),
    }
}

fn wrong(name: &str, wanted: &str, value: &Value<'_>) -> Error {
    Error::invalid(format!("parameter {}: expected {wanted}, got {}", Quoted(name), value.describe()))
}

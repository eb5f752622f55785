//! The typed values that ride along with a request, and the names among them that mean something here.
//!
//! JSON and protobuf both end in [`Parameters::set`], so a reserved name means the same on both wires.

use crate::request::Quoted;
use penstock_schema::{Error, Result, limits};
use std::borrow::Cow;

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
            Value::Double(value) => value.to_string(),
            Value::String(value) => Quoted(value).to_string(),
        }
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct InputParameters {
    pub binary_data_size: Option<u64>,
}

impl InputParameters {
    pub fn set(&mut self, name: &str, value: &Value<'_>) -> Result<()> {
        match name {
            "binary_data_size" => {
                let wanted = "a byte count";
                self.binary_data_size = Some(value.as_u64().ok_or_else(|| wrong(name, wanted, value))?);
                Ok(())
            }
            _ => refuse_shared_memory(name),
        }
    }
}

/// What the parameters of one requested output say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct OutputParameters {
    pub binary_data: Option<bool>,
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
            _ => refuse_shared_memory(name),
        }
    }
}

fn refuse_shared_memory(name: &str) -> Result<()> {
    if name.starts_with("shared_memory_") {
        return Err(Error::unsupported(format!(
            "parameter {}: shared memory is not enabled on this server; send the tensor in the request",
            Quoted(name)
        )));
    }
    Ok(())
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

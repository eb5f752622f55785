//! `ModelInferRequest`, read by hand: tensors stay slices, and counts are checked before anything is kept.

use super::reader::{Field, Reader, malformed};
use super::typed;
use crate::parameters::{self, InputParameters, OutputParameters};
use crate::request::{Quoted, check_id};
use crate::{RawOutput, RawRequest, RawTensor, Value};
use bytes::Bytes;
use penstock_schema::{DataType, Error, Result, Shape, limits};
use smallvec::SmallVec;
use std::borrow::Cow;

/// A `ModelInferRequest`: which model, and the request itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Call<'a> {
    pub model_name: &'a str,
    /// Empty: the server chooses.
    pub model_version: &'a str,
    /// Every output is marked binary, since answers are always raw.
    pub request: RawRequest<'a>,
}

/// Reads an encoded `ModelInferRequest` (prefix taken off, inflated).
pub fn decode(message: &Bytes) -> Result<Call<'_>> {
    let mut call = Call::default();
    let mut raw: SmallVec<[&[u8]; 4]> = SmallVec::new();
    let mut typed = None;
    let mut parameter_count = 0;
    let mut reader = Reader(message);
    while let Some((number, field)) = reader.field()? {
        match number {
            1 => call.model_name = field.text()?,
            2 => call.model_version = field.text()?,
            3 => call.request.id = Cow::Borrowed(field.text()?),
            4 => {
                parameter_count += 1;
                if parameter_count > limits::PARAMETERS_PER_REQUEST {
                    return Err(parameters::too_many());
                }
                let (name, value) = parameter(field)?;
                call.request.parameters.set(Cow::Borrowed(name), value)?;
            }
            5 => {
                limit("inputs", call.request.inputs.len(), limits::INPUTS_PER_REQUEST)?;
                let (input, has_contents) = input(field)?;
                if has_contents {
                    typed.get_or_insert(call.request.inputs.len());
                }
                call.request.inputs.push(input);
            }
            6 => {
                limit("outputs", call.request.outputs.len(), limits::OUTPUTS_PER_REQUEST)?;
                call.request.outputs.push(output(field)?);
            }
            7 => {
                limit("raw_input_contents", raw.len(), limits::INPUTS_PER_REQUEST)?;
                raw.push(field.bytes()?);
            }
            _ => {}
        }
    }
    check_id(&call.request.id)?;
    call.request.parameters.binary_data_output = true;
    if !raw.is_empty() {
        attach(&mut call.request.inputs, &raw, typed, message)?;
    }
    Ok(call)
}

/// Gives each input its raw contents, by position; those in shared memory have none.
fn attach(inputs: &mut [RawTensor<'_>], raw: &[&[u8]], typed: Option<usize>, message: &Bytes) -> Result<()> {
    if let Some(index) = typed {
        return Err(Error::invalid(format!(
            "input {}: expected either typed contents or raw_input_contents in a request, got both",
            Quoted(&inputs[index].name),
        )));
    }
    let expected = inputs.iter().filter(|input| input.place.is_none()).count();
    if raw.len() != expected {
        let but = if expected < inputs.len() { " that are not in shared memory" } else { "" };
        return Err(Error::invalid(format!(
            "raw_input_contents: expected one for each of {expected} inputs{but}, got {}",
            raw.len(),
        )));
    }
    for (input, contents) in inputs.iter_mut().filter(|input| input.place.is_none()).zip(raw) {
        input.data = message.slice_ref(contents);
    }
    Ok(())
}

fn limit(what: &str, held: usize, most: u64) -> Result<()> {
    if held as u64 >= most {
        return Err(Error::invalid(format!("{what}: expected at most {most} in one request, got more")));
    }
    Ok(())
}

fn input<'a>(field: Field<'a>) -> Result<(RawTensor<'a>, bool)> {
    let mut name = "";
    let mut datatype = "";
    let mut shape = Shape::new();
    let mut contents: &[u8] = &[];
    let mut parameters = InputParameters::default();
    let mut reader = Reader(field.bytes()?);
    while let Some((number, field)) = reader.field()? {
        match number {
            1 => name = field.text()?,
            2 => datatype = field.text()?,
            3 => field.varints(|size| push_dimension(name, &mut shape, size))?,
            4 => {
                let (parameter_name, value) = parameter(field)?;
                parameters.set(parameter_name, &value)?;
            }
            5 if contents.is_empty() => contents = field.bytes()?,
            // Protobuf would join them; no client writes a message field twice.
            5 => return Err(Error::invalid(format!("input {}: contents are there twice", Quoted(name)))),
            _ => {}
        }
    }
    let datatype = DataType::parse(datatype).ok_or_else(|| {
        Error::invalid(format!("input {}: expected a datatype such as FP32, got {}", Quoted(name), Quoted(datatype)))
    })?;
    let data = if contents.is_empty() { Bytes::new() } else { typed::decode(name, datatype, contents)? };
    let place = parameters.place.finish(|| format!("input {}", Quoted(name)))?;
    if place.is_some() && !contents.is_empty() {
        return Err(Error::invalid(format!(
            "input {}: expected either shared memory or data in the request, got both",
            Quoted(name)
        )));
    }
    Ok((RawTensor { name: Cow::Borrowed(name), datatype, shape, data, place, device: None }, !contents.is_empty()))
}

fn push_dimension(name: &str, shape: &mut Shape, size: u64) -> Result<()> {
    // An int64 on the wire is its two's complement.
    let size = size.cast_signed();
    if size < 0 {
        return Err(Error::invalid(format!(
            "input {}: expected sizes of 0 or more in its shape, got {size}",
            Quoted(name)
        )));
    }
    if shape.len() as u64 >= limits::TENSOR_DIMS {
        return Err(Error::invalid(format!(
            "input {}: expected at most {} dimensions, got more",
            Quoted(name),
            limits::TENSOR_DIMS,
        )));
    }
    shape.push(size);
    Ok(())
}

fn output<'a>(field: Field<'a>) -> Result<RawOutput<'a>> {
    let mut name = "";
    let mut parameters = OutputParameters::default();
    let mut reader = Reader(field.bytes()?);
    while let Some((number, field)) = reader.field()? {
        match number {
            1 => name = field.text()?,
            2 => {
                let (parameter_name, value) = parameter(field)?;
                parameters.set(parameter_name, &value)?;
            }
            _ => {}
        }
    }
    let place = parameters.place.finish(|| format!("output {}", Quoted(name)))?;
    Ok(RawOutput { name: Cow::Borrowed(name), binary: Some(true), place })
}

/// One entry of a `map<string, InferParameter>`.
fn parameter<'a>(field: Field<'a>) -> Result<(&'a str, Value<'a>)> {
    let mut name = "";
    let mut value = None;
    let mut reader = Reader(field.bytes()?);
    while let Some((number, field)) = reader.field()? {
        match number {
            1 => name = field.text()?,
            2 => value = parameter_value(field)?,
            _ => {}
        }
    }
    match value {
        Some(value) => Ok((name, value)),
        None => Err(Error::invalid(format!("parameter {}: expected a value, got none", Quoted(name)))),
    }
}

fn parameter_value<'a>(field: Field<'a>) -> Result<Option<Value<'a>>> {
    let mut value = None;
    let mut reader = Reader(field.bytes()?);
    while let Some((number, field)) = reader.field()? {
        value = match (number, field) {
            (1, Field::Varint(varint)) => Some(Value::Bool(varint != 0)),
            (2, Field::Varint(varint)) => Some(Value::Int(varint.cast_signed())),
            (3, field) => Some(Value::String(Cow::Borrowed(field.text()?))),
            (4, Field::Fixed64(bytes)) => Some(Value::Double(f64::from_le_bytes(bytes))),
            (5, Field::Varint(varint)) => Some(Value::Uint(varint)),
            (1 | 2 | 4 | 5, _) => return Err(malformed()),
            _ => value,
        };
    }
    Ok(value)
}

//! Infer bodies of HTTP.

use super::envelope::Envelope;
use super::input::Tail;
use super::values::Refusal;
use crate::elements;
use crate::request::Quoted;
use crate::{Parameters, RawRequest, RawTensor};
use bytes::Bytes;
use penstock_schema::{DataType, Error, ModelSpec, Result, Shape, TensorSpec, limits};
use serde::de::DeserializeSeed;
use smallvec::{SmallVec, smallvec};
use std::borrow::Cow;

/// Reads an infer body. `header_length` is `Inference-Header-Content-Length`; `None` means that all of it is JSON.
/// A value of 0 is another format: [`decode_raw`].
pub fn decode<'a>(body: &'a Bytes, header_length: Option<usize>) -> Result<RawRequest<'a>> {
    let length = header_length.unwrap_or(body.len());
    let header = body.get(..length).ok_or_else(|| {
        Error::invalid(format!(
            "Inference-Header-Content-Length: expected at most the {} bytes of the body, got {length}",
            body.len(),
        ))
    })?;
    if length < body.len() && length as u64 > limits::JSON_HEADER_BYTES {
        return Err(Error::invalid(format!(
            "JSON header: expected at most {} bytes before binary data, got {length}; send large tensors as binary",
            limits::JSON_HEADER_BYTES,
        )));
    }
    let text = std::str::from_utf8(header).map_err(|error| {
        Error::invalid(format!("JSON: expected UTF-8, got other bytes at byte {}", error.valid_up_to()))
    })?;
    let refusal = Refusal::default();
    let mut tail = Tail { body, position: length };
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let request = Envelope { refusal: &refusal, tail: &mut tail, text_bytes: length }
        .deserialize(&mut deserializer)
        .and_then(|request| deserializer.end().map(|()| request))
        .map_err(|error| refusal.or_syntax(&error))?;
    if tail.position != body.len() {
        return Err(Error::invalid(format!(
            "binary data: the sizes of the inputs add up to {} bytes, but {} follow the JSON header",
            tail.position - length,
            body.len() - length,
        )));
    }
    Ok(request)
}

/// Reads a raw body (header value 0): all of it is the model's single input, batch 1, every output wanted as binary.
///
/// One size of -1 is found from the length. A BYTES input is one element, sent without its prefix.
pub fn decode_raw(spec: &ModelSpec, body: &Bytes) -> Result<RawRequest<'static>> {
    let [input] = spec.inputs.as_slice() else {
        return Err(Error::invalid(format!(
            "raw request: expected a model with one input, but {} has {}; send a JSON header that names them",
            Quoted(&spec.name),
            spec.inputs.len(),
        )));
    };
    let mut shape: Shape = if spec.max_batch_size > 0 { smallvec![1] } else { Shape::new() };
    let (sizes, data) = match input.datatype.size() {
        Some(size) => (fill_in(input, size, body.len())?, body.clone()),
        None => one_element(input, body)?,
    };
    shape.extend(sizes);
    let tensor = RawTensor {
        name: Cow::Owned(input.name.clone()),
        datatype: input.datatype,
        shape,
        data,
        place: None,
        device: None,
    };
    Ok(RawRequest {
        id: Cow::Borrowed(""),
        inputs: smallvec![tensor],
        outputs: SmallVec::new(),
        parameters: Parameters { binary_data_output: true, ..Parameters::default() },
    })
}

/// The sizes of an input with its one unknown found from `bytes`; a remainder is left to `validate` to refuse.
fn fill_in(input: &TensorSpec, element: usize, bytes: usize) -> Result<Shape> {
    let known: Shape = input.dims.iter().copied().filter(|&size| size >= 0).collect();
    if input.dims.len() - known.len() > 1 {
        return Err(Error::invalid(format!(
            "raw request: the shape of input {} has more than one unknown size; send a JSON header with its shape",
            Quoted(&input.name),
        )));
    }
    let row = elements::count(&known).and_then(|count| count.checked_mul(element)).filter(|&row| row > 0);
    let unknown = row.map_or(0, |row| bytes / row);
    let unknown = i64::try_from(unknown).unwrap_or(i64::MAX);
    Ok(input.dims.iter().map(|&size| if size < 0 { unknown } else { size }).collect())
}

fn one_element(input: &TensorSpec, body: &Bytes) -> Result<(Shape, Bytes)> {
    debug_assert_eq!(input.datatype, DataType::Bytes);
    if input.dims.iter().any(|&size| size >= 0 && size != 1) {
        return Err(Error::invalid(format!(
            "raw request: expected BYTES input {} to hold one element, but its shape is {:?}; send a JSON header",
            Quoted(&input.name),
            input.dims,
        )));
    }
    let mut data = Vec::with_capacity(elements::LENGTH_BYTES + body.len());
    elements::push_bytes(&mut data, body)
        .ok_or_else(|| Error::too_large("raw request: a BYTES element holds at most 4 GiB"))?;
    Ok((input.dims.iter().map(|_| 1).collect(), data.into()))
}

//! Infer answers and errors of HTTP.

use crate::elements;
use crate::frames::{FrameWriter, take_output};
use crate::request::Quoted;
use crate::{Frames, Place, ReplyPlan};
use bytes::{BufMut, Bytes, BytesMut};
use penstock_schema::{DataType, Error, ModelSpec, Outputs, Result, Tensor};
use serde::Serialize;
use smallvec::SmallVec;
use std::io::Write;

/// A body ready to write.
#[derive(Debug)]
pub struct Encoded {
    /// Value of `Inference-Header-Content-Length`; `None` when all of the body is JSON.
    pub header_length: Option<usize>,
    pub frames: Frames,
}

/// Writes an infer answer: each output as JSON or binary, as planned.
pub fn encode(spec: &ModelSpec, plan: &ReplyPlan, mut outputs: Outputs) -> Result<Encoded> {
    let mut writer = FrameWriter::with_capacity(estimate(spec, plan, &outputs));
    let mut binary: SmallVec<[Bytes; 2]> = SmallVec::new();
    let head = &mut writer.head;
    head.put_u8(b'{');
    if !plan.id.is_empty() {
        head.put_slice(b"\"id\":");
        put_text(head, &plan.id)?;
        head.put_u8(b',');
    }
    head.put_slice(b"\"model_name\":");
    put_text(head, &spec.name)?;
    head.put_slice(b",\"model_version\":\"");
    put(head, &spec.version)?;
    head.put_slice(b"\",\"outputs\":[");
    for (position, wanted) in plan.outputs.iter().enumerate() {
        let (name, tensor) = take_output(spec, &mut outputs, wanted.index)?;
        if position > 0 {
            head.put_u8(b',');
        }
        put_description(head, name, &tensor)?;
        if let Some(place) = &wanted.place {
            put_place(head, place, tensor.data.len())?;
        } else if wanted.binary {
            head.put_slice(b",\"parameters\":{\"binary_data_size\":");
            put(head, &tensor.data.len())?;
            head.put_slice(b"}}");
            binary.push(tensor.data);
        } else {
            head.put_slice(b",\"data\":[");
            put_data(head, &tensor)
                .map_err(|problem| Error::internal(format!("output {}: {problem}", Quoted(name))))?;
            head.put_slice(b"]}");
        }
    }
    head.put_slice(b"]}");
    let header_length = (!binary.is_empty()).then_some(head.len());
    for data in binary {
        writer.tensor(data);
    }
    Ok(Encoded { header_length, frames: writer.finish() })
}

/// The body of every HTTP error.
pub fn error(message: &str) -> Bytes {
    let mut body = BytesMut::with_capacity(message.len() + 16);
    body.put_slice(b"{\"error\":");
    if put_text(&mut body, message).is_err() {
        body.put_slice(b"\"\"");
    }
    body.put_u8(b'}');
    body.freeze()
}

/// Bytes the head will probably take; too low a guess costs one more allocation.
fn estimate(spec: &ModelSpec, plan: &ReplyPlan, outputs: &Outputs) -> usize {
    /// Keys, punctuation, version, and for an output also datatype, shape and size.
    const FIXED: usize = 80;
    const PER_OUTPUT: usize = 112;
    let output = |wanted: &crate::WantedOutput| {
        let name = spec.outputs.get(wanted.index).map_or(0, |output| output.name.len());
        let data = outputs.get(wanted.index).map_or(0, |tensor| match (wanted.binary, tensor.datatype.size()) {
            _ if wanted.place.is_some() => 0,
            (true, _) => FrameWriter::copied(&tensor.data),
            (false, None) => tensor.data.len() + tensor.data.len() / 4,
            // Nine significant digits with sign, point, exponent and comma for 4 bytes; 8-byte floats take twice that.
            (false, Some(size)) => tensor.data.len() / size * (2 + 3 * size),
        });
        PER_OUTPUT + name + data
    };
    FIXED + spec.name.len() + plan.id.len() + plan.outputs.iter().map(output).sum::<usize>()
}

/// Ends an output that is in shared memory: where, and how many bytes of the place it takes.
fn put_place(head: &mut BytesMut, place: &Place, length: usize) -> Result<()> {
    head.put_slice(b",\"parameters\":{\"shared_memory_region\":");
    put_text(head, &place.region)?;
    head.put_slice(b",\"shared_memory_byte_size\":");
    put(head, &length)?;
    if place.offset > 0 {
        head.put_slice(b",\"shared_memory_offset\":");
        put(head, &place.offset)?;
    }
    head.put_slice(b"}}");
    Ok(())
}

fn put_description(head: &mut BytesMut, name: &str, tensor: &Tensor) -> Result<()> {
    head.put_slice(b"{\"name\":");
    put_text(head, name)?;
    head.put_slice(b",\"datatype\":\"");
    head.put_slice(tensor.datatype.name().as_bytes());
    head.put_slice(b"\",\"shape\":[");
    for (position, size) in tensor.shape.iter().enumerate() {
        if position > 0 {
            head.put_u8(b',');
        }
        put(head, size)?;
    }
    head.put_u8(b']');
    Ok(())
}

/// A JSON string. Nearly all names need no escape and are copied.
fn put_text(head: &mut BytesMut, text: &str) -> Result<()> {
    if text.bytes().any(|byte| byte < 0x20 || byte == b'"' || byte == b'\\') {
        return put(head, text);
    }
    head.put_u8(b'"');
    head.put_slice(text.as_bytes());
    head.put_u8(b'"');
    Ok(())
}

/// Anything serde_json can write.
fn put<T: Serialize + ?Sized>(head: &mut BytesMut, value: &T) -> Result<()> {
    serde_json::to_writer(head.writer(), value).map_err(|error| Error::internal(format!("answer: {error}")))
}

fn put_data(head: &mut BytesMut, tensor: &Tensor) -> std::result::Result<(), String> {
    elements::check(tensor.datatype, &tensor.shape, &tensor.data)?;
    let data = &tensor.data;
    match tensor.datatype {
        DataType::Bool => put_all(head, data, |[byte]: [u8; 1]| byte != 0),
        DataType::Uint8 => put_all(head, data, u8::from_le_bytes),
        DataType::Uint16 => put_all(head, data, u16::from_le_bytes),
        DataType::Uint32 => put_all(head, data, u32::from_le_bytes),
        DataType::Uint64 => put_all(head, data, u64::from_le_bytes),
        DataType::Int8 => put_all(head, data, i8::from_le_bytes),
        DataType::Int16 => put_all(head, data, i16::from_le_bytes),
        DataType::Int32 => put_all(head, data, i32::from_le_bytes),
        DataType::Int64 => put_all(head, data, i64::from_le_bytes),
        DataType::Fp32 => {
            finite(data, |bytes| f32::from_le_bytes(bytes).is_finite())?;
            put_all(head, data, f32::from_le_bytes)
        }
        DataType::Fp64 => {
            finite(data, |bytes| f64::from_le_bytes(bytes).is_finite())?;
            put_all(head, data, f64::from_le_bytes)
        }
        DataType::Bytes => put_strings(head, data),
        DataType::Fp16 | DataType::Bf16 => {
            Err(format!("{} can't be written as JSON; ask for it with \"binary_data\": true", tensor.datatype))
        }
    }
}

fn put_all<const N: usize, T: Serialize>(
    head: &mut BytesMut,
    data: &[u8],
    read: impl Fn([u8; N]) -> T,
) -> std::result::Result<(), String> {
    // The whole chunks: `elements::check` has seen that there is no remainder.
    let (chunks, _) = data.as_chunks::<N>();
    let mut writer = head.writer();
    for (position, chunk) in chunks.iter().enumerate() {
        let separator: &[u8] = if position > 0 { b"," } else { b"" };
        let written = writer.write_all(separator).map_err(serde_json::Error::io);
        written.and_then(|()| serde_json::to_writer(&mut writer, &read(*chunk))).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// JSON has no words for NaN and infinity, and a null would pass for a number nowhere.
fn finite<const N: usize>(data: &[u8], is_finite: impl Fn([u8; N]) -> bool) -> std::result::Result<(), String> {
    let (chunks, _) = data.as_chunks::<N>();
    match chunks.iter().position(|chunk| !is_finite(*chunk)) {
        None => Ok(()),
        Some(position) => Err(format!(
            "element {position} is NaN or infinite, which JSON can't say; ask for binary with \"binary_data\": true"
        )),
    }
}

fn put_strings(head: &mut BytesMut, data: &[u8]) -> std::result::Result<(), String> {
    for (position, element) in elements::split(data).enumerate() {
        let text = std::str::from_utf8(element).map_err(|_| {
            format!("BYTES element {position} is not UTF-8, which JSON can't hold; ask for binary with \"binary_data\": true")
        })?;
        if position > 0 {
            head.put_u8(b',');
        }
        put_text(head, text).map_err(|error| error.to_string())?;
    }
    Ok(())
}

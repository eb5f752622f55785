//! `ModelInferResponse` and `ModelStreamInferResponse`, written by hand with their prefix: sizes first, then every byte once.

use super::framing::{self, PREFIX_BYTES, Prefix};
use crate::frames::{FrameWriter, take_output};
use crate::{Frames, Place, ReplyPlan};
use bytes::{BufMut, Bytes, BytesMut};
use penstock_schema::{ModelSpec, Outputs, Result, Tensor};
use prost::encoding::{encode_varint, encoded_len_varint};
use smallvec::SmallVec;

/// Where in a stream of answers a message stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamPart {
    More,
    /// Carries `triton_final_response: true`.
    Final,
}

/// A framed `ModelInferResponse`.
pub fn encode(spec: &ModelSpec, plan: &ReplyPlan, outputs: Outputs) -> Result<Frames> {
    let answer = Answer::new(spec, plan, Some(outputs), None)?;
    let mut writer = answer.start(answer.bytes)?;
    answer.write(&mut writer);
    Ok(writer.finish())
}

/// A framed `ModelStreamInferResponse`. `outputs` is `None` for the empty last message.
pub fn encode_stream(spec: &ModelSpec, plan: &ReplyPlan, outputs: Option<Outputs>, part: StreamPart) -> Result<Frames> {
    let answer = Answer::new(spec, plan, outputs, Some(part))?;
    let mut writer = answer.start(field_len(answer.bytes))?;
    put_header(&mut writer.head, 2, answer.bytes);
    answer.write(&mut writer);
    Ok(writer.finish())
}

/// A framed `ModelStreamInferResponse` that reports an error, always final. `id` is the request's, as far as it was understood.
pub fn encode_stream_error(id: &str, message: &str) -> Result<Bytes> {
    let response = if id.is_empty() { 0 } else { field_len(id.len()) } + FINAL_PARAMETER.len();
    let length = field_len(message.len()) + field_len(response);
    let mut framed = BytesMut::with_capacity(PREFIX_BYTES + length);
    framed.put_slice(&framing::prefix(Prefix { compressed: false, length: framing::length(length)? }));
    put_bytes(&mut framed, 1, message.as_bytes());
    put_header(&mut framed, 2, response);
    if !id.is_empty() {
        put_bytes(&mut framed, 3, id.as_bytes());
    }
    framed.put_slice(FINAL_PARAMETER);
    Ok(framed.freeze())
}

/// Field 4 of a response, the map entry `triton_final_response: { bool_param: true }`.
const FINAL_PARAMETER: &[u8] = b"\x22\x1b\x0a\x15triton_final_response\x12\x02\x08\x01";
/// The same with false: set fields of a oneof are written even when they hold the default.
const MORE_PARAMETER: &[u8] = b"\x22\x1b\x0a\x15triton_final_response\x12\x02\x08\x00";

/// A response with the sizes of its parts, so that lengths can be written before what they measure.
struct Answer<'a> {
    spec: &'a ModelSpec,
    plan: &'a ReplyPlan,
    version: Digits,
    parameter: &'static [u8],
    tensors: SmallVec<[Planned<'a>; 2]>,
    /// Length of the encoded `ModelInferResponse`.
    bytes: usize,
    /// How much of it is copied rather than its own frame.
    copied: usize,
}

struct Planned<'a> {
    name: &'a str,
    tensor: Tensor,
    shape_bytes: usize,
    /// Encoded; says where in shared memory the tensor is, if it is there.
    parameters: Vec<u8>,
    message_bytes: usize,
}

impl<'a> Answer<'a> {
    fn new(
        spec: &'a ModelSpec,
        plan: &'a ReplyPlan,
        outputs: Option<Outputs>,
        part: Option<StreamPart>,
    ) -> Result<Answer<'a>> {
        let version = Digits::new(spec.version);
        let parameter = match part {
            None => &[][..],
            Some(StreamPart::More) => MORE_PARAMETER,
            Some(StreamPart::Final) => FINAL_PARAMETER,
        };
        let id = if plan.id.is_empty() { 0 } else { field_len(plan.id.len()) };
        let mut small = field_len(spec.name.len()) + field_len(version.as_bytes().len()) + id + parameter.len();
        let mut large = 0;
        let mut tensors = SmallVec::new();
        if let Some(mut outputs) = outputs {
            for wanted in &plan.outputs {
                let (name, mut tensor) = take_output(spec, &mut outputs, wanted.index)?;
                let mut parameters = Vec::new();
                if let Some(place) = &wanted.place {
                    put_place(&mut parameters, place, tensor.data.len());
                    // Contents go by position, so one in shared memory has empty ones.
                    tensor.data = Bytes::new();
                }
                let shape_bytes = tensor.shape.iter().map(|size| encoded_len_varint(size.cast_unsigned())).sum();
                let shape_field = if tensor.shape.is_empty() { 0 } else { field_len(shape_bytes) };
                let message_bytes = field_len(name.len()) + field_len(tensor.datatype.name().len()) + shape_field;
                let message_bytes = message_bytes + parameters.len();
                let copied = FrameWriter::copied(&tensor.data);
                small += field_len(message_bytes) + field_len(tensor.data.len()) - tensor.data.len() + copied;
                large += tensor.data.len() - copied;
                tensors.push(Planned { name, tensor, shape_bytes, parameters, message_bytes });
            }
        }
        Ok(Answer { spec, plan, version, parameter, tensors, bytes: small + large, copied: small })
    }

    /// A writer with the prefix of a message of `length` bytes in it and room for the rest.
    fn start(&self, length: usize) -> Result<FrameWriter> {
        let around = length - self.bytes;
        let mut writer = FrameWriter::with_capacity(PREFIX_BYTES + around + self.copied);
        writer.head.put_slice(&framing::prefix(Prefix { compressed: false, length: framing::length(length)? }));
        Ok(writer)
    }

    fn write(self, writer: &mut FrameWriter) {
        let head = &mut writer.head;
        put_bytes(head, 1, self.spec.name.as_bytes());
        put_bytes(head, 2, self.version.as_bytes());
        if !self.plan.id.is_empty() {
            put_bytes(head, 3, self.plan.id.as_bytes());
        }
        head.put_slice(self.parameter);
        for Planned { name, tensor, shape_bytes, parameters, message_bytes } in &self.tensors {
            put_header(head, 5, *message_bytes);
            put_bytes(head, 1, name.as_bytes());
            put_bytes(head, 2, tensor.datatype.name().as_bytes());
            if !tensor.shape.is_empty() {
                put_header(head, 3, *shape_bytes);
                for size in &tensor.shape {
                    encode_varint(size.cast_unsigned(), head);
                }
            }
            head.put_slice(parameters);
        }
        for planned in self.tensors {
            put_header(&mut writer.head, 6, planned.tensor.data.len());
            writer.tensor(planned.tensor.data);
        }
    }
}

/// Field 4 of an output: entries of a `map<string, InferParameter>`.
fn put_place(parameters: &mut Vec<u8>, place: &Place, length: usize) {
    let mut entry = |name: &str, value: &[u8]| {
        put_header(parameters, 4, field_len(name.len()) + field_len(value.len()));
        put_bytes(parameters, 1, name.as_bytes());
        put_bytes(parameters, 2, value);
    };
    let mut region = Vec::new();
    put_bytes(&mut region, 3, place.region.as_bytes());
    entry("shared_memory_region", &region);
    entry("shared_memory_byte_size", &int64(length as u64));
    if place.offset > 0 {
        entry("shared_memory_offset", &int64(place.offset));
    }
}

/// An `InferParameter` with an `int64_param`, the type that clients send these numbers in.
fn int64(value: u64) -> Vec<u8> {
    const INT64_PARAM: u8 = 2 << 3;
    let mut encoded = vec![INT64_PARAM];
    encode_varint(value, &mut encoded);
    encoded
}

/// Bytes of a length-delimited field with a number below 16.
fn field_len(length: usize) -> usize {
    1 + encoded_len_varint(length as u64) + length
}

fn put_header(head: &mut impl BufMut, number: u8, length: usize) {
    head.put_u8(number << 3 | 2);
    encode_varint(length as u64, head);
}

fn put_bytes(head: &mut impl BufMut, number: u8, bytes: &[u8]) {
    put_header(head, number, bytes.len());
    head.put_slice(bytes);
}

/// A version number as text, without an allocation.
struct Digits {
    digits: [u8; 20],
    start: usize,
}

impl Digits {
    fn new(mut value: u64) -> Digits {
        let mut digits = [b'0'; 20];
        let mut start = digits.len();
        loop {
            start -= 1;
            digits[start] = b'0' + (value % 10) as u8;
            value /= 10;
            if value == 0 {
                return Digits { digits, start };
            }
        }
    }

    fn as_bytes(&self) -> &[u8] {
        &self.digits[self.start..]
    }
}

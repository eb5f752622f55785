//! The inputs of an infer object. Binary tensors stand behind the JSON in the same order.

use super::data::{Data, Dimensions, Target};
use super::objects::{Entries, ITEM_DEPTH, once, too_many};
use super::values::{Keys, Refusal, Skip, Text};
use crate::RawTensor;
use crate::elements;
use crate::parameters::InputParameters;
use crate::request::Quoted;
use bytes::Bytes;
use penstock_schema::{DataType, Error, Result, Shape, limits};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use smallvec::SmallVec;
use std::{borrow::Cow, fmt};

/// What follows the JSON: each input takes its bytes as it ends.
pub(super) struct Tail<'a> {
    pub body: &'a Bytes,
    /// Where the next binary tensor starts.
    pub position: usize,
}

impl Tail<'_> {
    fn take(&mut self, name: &str, size: u64) -> Result<Bytes> {
        let left = self.body.len() - self.position;
        match usize::try_from(size) {
            Ok(size) if size <= left => {
                let start = self.position;
                self.position += size;
                Ok(self.body.slice(start..self.position))
            }
            _ => Err(Error::invalid(format!(
                "input {}: binary_data_size says {size} bytes, but {left} are left behind the JSON header; \
                 check the sizes and Inference-Header-Content-Length",
                Quoted(name),
            ))),
        }
    }
}

pub(super) struct Inputs<'r, 'a> {
    pub refusal: &'r Refusal,
    pub tail: &'r mut Tail<'a>,
    /// Length of the JSON.
    pub text_bytes: usize,
}

impl<'de> DeserializeSeed<'de> for Inputs<'_, '_> {
    type Value = SmallVec<[RawTensor<'de>; 2]>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Inputs<'_, '_> {
    type Value = SmallVec<[RawTensor<'de>; 2]>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("'inputs': an array of tensors")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> std::result::Result<Self::Value, A::Error> {
        let mut inputs = SmallVec::new();
        loop {
            let input = Input { refusal: self.refusal, tail: &mut *self.tail, text_bytes: self.text_bytes };
            let Some(input) = items.next_element_seed(input)? else {
                return Ok(inputs);
            };
            if inputs.len() as u64 >= limits::INPUTS_PER_REQUEST {
                return Err(self.refusal.stop(too_many("inputs", limits::INPUTS_PER_REQUEST)));
            }
            inputs.push(input);
        }
    }
}

struct Input<'r, 'a> {
    refusal: &'r Refusal,
    tail: &'r mut Tail<'a>,
    text_bytes: usize,
}

impl<'de> DeserializeSeed<'de> for Input<'_, '_> {
    type Value = RawTensor<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

/// `data` as it came: read at once when its type is known by then, as with every usual client; else kept as text.
enum Sent<'de> {
    Read(Vec<u8>),
    Text(&'de RawValue),
}

impl<'de> Visitor<'de> for Input<'_, '_> {
    type Value = RawTensor<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a tensor: an object with 'name', 'datatype', 'shape' and 'data'")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> std::result::Result<Self::Value, A::Error> {
        let refusal = self.refusal;
        let mut name: Option<Cow<'de, str>> = None;
        let mut datatype: Option<DataType> = None;
        let mut shape: Option<Shape> = None;
        let mut data: Option<Sent<'de>> = None;
        let mut parameters: Option<InputParameters> = None;
        let mut others = Keys::default();
        while let Some(key) = entries.next_key_seed(Text)? {
            let called = name.as_deref().unwrap_or_default();
            match key.as_ref() {
                "name" => {
                    once(refusal, &key, name.is_some())?;
                    name = Some(entries.next_value_seed(Text)?);
                }
                "datatype" => {
                    once(refusal, &key, datatype.is_some())?;
                    let text = entries.next_value_seed(Text)?;
                    datatype = Some(refusal.check(parse_datatype(called, &text))?);
                }
                "shape" => {
                    once(refusal, &key, shape.is_some())?;
                    shape = Some(entries.next_value_seed(Dimensions { refusal, name: called })?);
                }
                "data" => {
                    once(refusal, &key, data.is_some())?;
                    data = Some(match datatype {
                        None => Sent::Text(entries.next_value()?),
                        Some(datatype) => {
                            let elements = shape.as_ref().and_then(|shape| elements::count(shape));
                            let target = Target { name: called, datatype, elements, text_bytes: self.text_bytes };
                            Sent::Read(entries.next_value_seed(Data { refusal, target, depth: ITEM_DEPTH })?)
                        }
                    });
                }
                "parameters" => {
                    once(refusal, &key, parameters.is_some())?;
                    let mut read = InputParameters::default();
                    entries.next_value_seed(Entries {
                        refusal,
                        each: |name: Cow<'de, str>, value| read.set(&name, &value),
                    })?;
                    parameters = Some(read);
                }
                _ => {
                    refusal.check(others.add(key))?;
                    entries.next_value_seed(Skip { refusal, depth: ITEM_DEPTH })?;
                }
            }
        }
        let missing = |called: &str, what: &str| {
            refusal.stop(Error::invalid(format!("input {}: expected '{what}', got none", Quoted(called))))
        };
        let name = name.ok_or_else(|| missing("", "name"))?;
        let called = name.as_ref();
        let shape = shape.ok_or_else(|| missing(called, "shape"))?;
        let datatype = datatype.ok_or_else(|| missing(called, "datatype"))?;
        let InputParameters { binary_data_size, place } = parameters.unwrap_or_default();
        let place = refusal.check(place.finish(|| format!("input {}", Quoted(called))))?;
        let data = match (data, binary_data_size) {
            (None, None) if place.is_some() => Bytes::new(),
            _ if place.is_some() => {
                return Err(refusal.stop(Error::invalid(format!(
                    "input {}: expected either shared memory or data in the request, got both",
                    Quoted(called)
                ))));
            }
            (Some(Sent::Read(data)), None) => data.into(),
            (Some(Sent::Text(text)), None) => {
                let target =
                    Target { name: called, datatype, elements: elements::count(&shape), text_bytes: text.get().len() };
                refusal.check(read_later(target, text))?.into()
            }
            (None, Some(size)) => refusal.check(self.tail.take(called, size))?,
            (None, None) => return Err(missing(called, "data")),
            (Some(_), Some(_)) => {
                return Err(refusal.stop(Error::invalid(format!(
                    "input {}: expected either 'data' or binary_data_size, got both",
                    Quoted(called)
                ))));
            }
        };
        Ok(RawTensor { name, datatype, shape, data, place, device: None })
    }
}

fn parse_datatype(name: &str, text: &str) -> Result<DataType> {
    DataType::parse(text).ok_or_else(|| {
        Error::invalid(format!("input {}: expected a datatype such as FP32, got {}", Quoted(name), Quoted(text)))
    })
}

/// Reads data that came before its type. Its syntax is known to be sound, its nesting and numbers are not.
fn read_later(target: Target<'_>, text: &RawValue) -> Result<Vec<u8>> {
    let refusal = Refusal::default();
    let mut deserializer = serde_json::Deserializer::from_str(text.get());
    Data { refusal: &refusal, target, depth: ITEM_DEPTH }
        .deserialize(&mut deserializer)
        .map_err(|error| refusal.or_syntax(&error))
}

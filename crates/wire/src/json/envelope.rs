//! The infer object and its requested outputs, as visitors that borrow from the text.

use super::input::{Inputs, Tail};
use super::objects::{Entries, ITEM_DEPTH, once, too_many};
use super::values::{Keys, Refusal, Skip, Text};
use crate::parameters::{OutputParameters, Parameters};
use crate::request::{Quoted, check_id};
use crate::{RawOutput, RawRequest};
use penstock_schema::{Error, limits};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use smallvec::SmallVec;
use std::{borrow::Cow, fmt};

/// The whole infer object.
pub(super) struct Envelope<'r, 'a> {
    pub refusal: &'r Refusal,
    pub tail: &'r mut Tail<'a>,
    pub text_bytes: usize,
}

impl<'de> DeserializeSeed<'de> for Envelope<'_, '_> {
    type Value = RawRequest<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Envelope<'_, '_> {
    type Value = RawRequest<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an infer request: an object with 'inputs'")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> std::result::Result<Self::Value, A::Error> {
        let refusal = self.refusal;
        let (mut id, mut inputs, mut outputs, mut parameters) = (None, None, None, None);
        let mut others = Keys::default();
        while let Some(key) = entries.next_key_seed(Text)? {
            match key.as_ref() {
                "id" => {
                    once(refusal, &key, id.is_some())?;
                    let text = entries.next_value_seed(Text)?;
                    refusal.check(check_id(&text))?;
                    id = Some(text);
                }
                "inputs" => {
                    once(refusal, &key, inputs.is_some())?;
                    let list = Inputs { refusal, tail: &mut *self.tail, text_bytes: self.text_bytes };
                    inputs = Some(entries.next_value_seed(list)?);
                }
                "outputs" => {
                    once(refusal, &key, outputs.is_some())?;
                    outputs = Some(entries.next_value_seed(Outputs { refusal })?);
                }
                "parameters" => {
                    once(refusal, &key, parameters.is_some())?;
                    let mut read = Parameters::default();
                    entries.next_value_seed(Entries { refusal, each: |name, value| read.set(name, value) })?;
                    parameters = Some(read);
                }
                _ => {
                    refusal.check(others.add(key))?;
                    entries.next_value_seed(Skip { refusal, depth: 1 })?;
                }
            }
        }
        let missing = || refusal.stop(Error::invalid("request: expected 'inputs', an array of tensors, got none"));
        Ok(RawRequest {
            id: id.unwrap_or_default(),
            inputs: inputs.ok_or_else(missing)?,
            outputs: outputs.unwrap_or_default(),
            parameters: parameters.unwrap_or_default(),
        })
    }
}

struct Outputs<'r> {
    refusal: &'r Refusal,
}

impl<'de> DeserializeSeed<'de> for Outputs<'_> {
    type Value = SmallVec<[RawOutput<'de>; 2]>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Outputs<'_> {
    type Value = SmallVec<[RawOutput<'de>; 2]>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("'outputs': an array of requested outputs")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> std::result::Result<Self::Value, A::Error> {
        let mut outputs = SmallVec::new();
        while let Some(output) = items.next_element_seed(Output { refusal: self.refusal })? {
            if outputs.len() as u64 >= limits::OUTPUTS_PER_REQUEST {
                return Err(self.refusal.stop(too_many("outputs", limits::OUTPUTS_PER_REQUEST)));
            }
            outputs.push(output);
        }
        Ok(outputs)
    }
}

struct Output<'r> {
    refusal: &'r Refusal,
}

impl<'de> DeserializeSeed<'de> for Output<'_> {
    type Value = RawOutput<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Output<'_> {
    type Value = RawOutput<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a requested output: an object with 'name'")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> std::result::Result<Self::Value, A::Error> {
        let refusal = self.refusal;
        let (mut name, mut parameters) = (None, None);
        let mut others = Keys::default();
        while let Some(key) = entries.next_key_seed(Text)? {
            match key.as_ref() {
                "name" => {
                    once(refusal, &key, name.is_some())?;
                    name = Some(entries.next_value_seed(Text)?);
                }
                "parameters" => {
                    once(refusal, &key, parameters.is_some())?;
                    let mut read = OutputParameters::default();
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
        let missing = || refusal.stop(Error::invalid("output: expected 'name', got none"));
        let name: Cow<'de, str> = name.ok_or_else(missing)?;
        let OutputParameters { binary_data: binary, place } = parameters.unwrap_or_default();
        let place = refusal.check(place.finish(|| format!("output {}", Quoted(&name))))?;
        Ok(RawOutput { name, binary, place })
    }
}

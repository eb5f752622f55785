//! What objects have in common: each key once, and parameters.

use super::values::{Keys, Refusal, Scalar, Text, doubled_key};
use crate::Value;
use crate::parameters;
use penstock_schema::{Error, Result, limits};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
use std::{borrow::Cow, fmt};

/// Containers around the keys of an input or a requested output.
pub(super) const ITEM_DEPTH: u64 = 3;

/// Refuses a key of an object that was seen in it before.
pub(super) fn once<E: serde::de::Error>(refusal: &Refusal, key: &str, seen: bool) -> std::result::Result<(), E> {
    if seen { Err(refusal.stop(doubled_key(key))) } else { Ok(()) }
}

pub(super) fn too_many(what: &str, most: u64) -> Error {
    Error::invalid(format!("{what}: expected at most {most} in one request, got more"))
}

/// An object of parameters, each handed to `each`.
pub(super) struct Entries<'r, F> {
    pub refusal: &'r Refusal,
    pub each: F,
}

impl<'de, F: FnMut(Cow<'de, str>, Value<'de>) -> Result<()>> DeserializeSeed<'de> for Entries<'_, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, F: FnMut(Cow<'de, str>, Value<'de>) -> Result<()>> Visitor<'de> for Entries<'_, F> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("'parameters': an object of booleans, numbers and strings")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut entries: A) -> std::result::Result<(), A::Error> {
        let mut keys = Keys::default();
        let mut count = 0;
        while let Some(key) = entries.next_key_seed(Text)? {
            count += 1;
            if count > limits::PARAMETERS_PER_REQUEST {
                return Err(self.refusal.stop(parameters::too_many()));
            }
            self.refusal.check(keys.add(key.clone()))?;
            let value = entries.next_value_seed(Scalar)?;
            self.refusal.check((self.each)(key, value))?;
        }
        Ok(())
    }
}

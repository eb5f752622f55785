//! The pieces JSON visitors share: borrowed text, scalars, key sets, skipping, and errors that keep their code.

use crate::Value;
use crate::request::Quoted;
use penstock_schema::{Error, Result, limits};
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use smallvec::SmallVec;
use std::{borrow::Cow, cell::Cell, collections::BTreeSet, fmt};

/// Carries our own errors past serde, whose error type knows neither codes nor how to leave a sentence alone.
#[derive(Default)]
pub(super) struct Refusal(Cell<Option<Error>>);

impl Refusal {
    /// Keeps `error` for [`Refusal::or_syntax`] and stops the parser.
    pub fn stop<E: de::Error>(&self, error: Error) -> E {
        self.0.set(Some(error));
        E::custom("refused")
    }

    pub fn check<T, E: de::Error>(&self, result: Result<T>) -> std::result::Result<T, E> {
        result.map_err(|error| self.stop(error))
    }

    /// What to tell the client after the parser stopped.
    pub fn or_syntax(&self, error: &serde_json::Error) -> Error {
        self.0.take().unwrap_or_else(|| Error::invalid(shortened(error)))
    }
}

/// serde quotes what it found, however long; the client knows what it sent and needs the place.
fn shortened(error: &serde_json::Error) -> String {
    const CHARS: usize = 100;
    let message = error.to_string();
    match message.char_indices().rev().nth(CHARS) {
        Some((tail, _)) if tail > CHARS => {
            let head: String = message.chars().take(CHARS).collect();
            format!("JSON: {head} ... {}", &message[tail..])
        }
        _ => format!("JSON: {message}"),
    }
}

/// A string: borrowed from the text unless it had escapes.
pub(super) struct Text;

impl<'de> DeserializeSeed<'de> for Text {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Text {
    type Value = Cow<'de, str>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a string")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> std::result::Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E>(self, text: &str) -> std::result::Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

/// A parameter value: boolean, number or string.
pub(super) struct Scalar;

impl<'de> DeserializeSeed<'de> for Scalar {
    type Value = Value<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Scalar {
    type Value = Value<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a boolean, a number or a string")
    }

    fn visit_bool<E>(self, value: bool) -> std::result::Result<Self::Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> std::result::Result<Self::Value, E> {
        Ok(Value::Int(value))
    }

    fn visit_u64<E>(self, value: u64) -> std::result::Result<Self::Value, E> {
        Ok(i64::try_from(value).map_or(Value::Uint(value), Value::Int))
    }

    fn visit_f64<E>(self, value: f64) -> std::result::Result<Self::Value, E> {
        Ok(Value::Double(value))
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> std::result::Result<Self::Value, E> {
        Ok(Value::String(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> std::result::Result<Self::Value, E> {
        Ok(Value::String(Cow::Owned(text.to_owned())))
    }
}

/// Keys seen in one object whose keys are not known beforehand.
#[derive(Default)]
pub(super) struct Keys<'de> {
    few: SmallVec<[Cow<'de, str>; 8]>,
    many: BTreeSet<Cow<'de, str>>,
}

impl<'de> Keys<'de> {
    /// Refuses a key that is there already.
    pub fn add(&mut self, key: Cow<'de, str>) -> Result<()> {
        let doubled = if self.few.len() < self.few.inline_size() {
            let doubled = self.few.contains(&key);
            self.few.push(key.clone());
            doubled
        } else {
            self.few.contains(&key) || !self.many.insert(key.clone())
        };
        if doubled { Err(doubled_key(&key)) } else { Ok(()) }
    }
}

pub(super) fn doubled_key(key: &str) -> Error {
    Error::invalid(format!("JSON: key {} is there twice in one object; send it once", Quoted(key)))
}

pub(super) fn too_deep() -> Error {
    Error::invalid(format!("JSON: expected at most {} nested arrays and objects, got more", limits::JSON_DEPTH))
}

/// A value nobody asked for: read with every rule of the format, kept nowhere. `depth` counts the containers around it.
pub(super) struct Skip<'r> {
    pub refusal: &'r Refusal,
    pub depth: u64,
}

impl Skip<'_> {
    fn inside<E: de::Error>(&self) -> std::result::Result<u64, E> {
        if self.depth >= limits::JSON_DEPTH { Err(self.refusal.stop(too_deep())) } else { Ok(self.depth + 1) }
    }
}

impl<'de> DeserializeSeed<'de> for Skip<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Skip<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any value")
    }

    fn visit_unit<E>(self) -> std::result::Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> std::result::Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> std::result::Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> std::result::Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> std::result::Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> std::result::Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> std::result::Result<(), A::Error> {
        let depth = self.inside()?;
        while items.next_element_seed(Skip { refusal: self.refusal, depth })?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> std::result::Result<(), A::Error> {
        let depth = self.inside()?;
        let mut keys = Keys::default();
        while let Some(key) = entries.next_key_seed(Text)? {
            self.refusal.check(keys.add(key))?;
            entries.next_value_seed(Skip { refusal: self.refusal, depth })?;
        }
        Ok(())
    }
}

//! The `data` of a JSON tensor: nested or flat arrays, written straight into the tensor's bytes.

use super::values::{Refusal, Scalar, too_deep};
use crate::Value;
use crate::elements;
use crate::parameters::Float;
use crate::request::Quoted;
use penstock_schema::{DataType, Error, Result, Shape, limits};
use serde::de::{self, DeserializeSeed, Deserializer, SeqAccess, Visitor};
use std::{fmt, marker::PhantomData};

/// One element type: which JSON values it takes, and how they look in a tensor. A value that is not taken is refused.
trait Element {
    fn boolean(_value: bool, _data: &mut Vec<u8>) -> Option<()> {
        None
    }
    fn unsigned(_value: u64, _data: &mut Vec<u8>) -> Option<()> {
        None
    }
    fn signed(_value: i64, _data: &mut Vec<u8>) -> Option<()> {
        None
    }
    fn float(_value: f64, _data: &mut Vec<u8>) -> Option<()> {
        None
    }
    fn text(_value: &str, _data: &mut Vec<u8>) -> Option<()> {
        None
    }
}

macro_rules! integer {
    ($($name:ident)*) => {$(
        impl Element for $name {
            fn unsigned(value: u64, data: &mut Vec<u8>) -> Option<()> {
                data.extend_from_slice(&$name::try_from(value).ok()?.to_le_bytes());
                Some(())
            }

            fn signed(value: i64, data: &mut Vec<u8>) -> Option<()> {
                data.extend_from_slice(&$name::try_from(value).ok()?.to_le_bytes());
                Some(())
            }
        }
    )*};
}

integer!(u8 u16 u32 u64 i8 i16 i32 i64);

macro_rules! float {
    ($($name:ident)*) => {$(
        impl Element for $name {
            fn unsigned(value: u64, data: &mut Vec<u8>) -> Option<()> {
                $name::float(value as f64, data)
            }

            fn signed(value: i64, data: &mut Vec<u8>) -> Option<()> {
                $name::float(value as f64, data)
            }

            /// A number too large for the type is refused rather than turned into infinity.
            fn float(value: f64, data: &mut Vec<u8>) -> Option<()> {
                let value = value as $name;
                if value.is_finite() {
                    data.extend_from_slice(&value.to_le_bytes());
                    Some(())
                } else {
                    None
                }
            }
        }
    )*};
}

float!(f32 f64);

/// Takes true and false only, as Triton does.
impl Element for bool {
    fn boolean(value: bool, data: &mut Vec<u8>) -> Option<()> {
        data.push(u8::from(value));
        Some(())
    }
}

impl Element for str {
    fn text(value: &str, data: &mut Vec<u8>) -> Option<()> {
        elements::push_bytes(data, value.as_bytes())
    }
}

/// What is known of a tensor when its data comes.
pub(super) struct Target<'t> {
    pub name: &'t str,
    pub datatype: DataType,
    /// Elements the shape promises, if it came first, and bytes of text there are at all: room is made for the smaller.
    pub elements: Option<usize>,
    pub text_bytes: usize,
}

/// Reads `data` at a nesting of `depth` containers around it.
pub(super) struct Data<'t> {
    pub refusal: &'t Refusal,
    pub target: Target<'t>,
    pub depth: u64,
}

impl<'de> DeserializeSeed<'de> for Data<'_> {
    type Value = Vec<u8>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Vec<u8>, D::Error> {
        match self.target.datatype {
            DataType::Bool => self.read::<bool, D>(deserializer),
            DataType::Uint8 => self.read::<u8, D>(deserializer),
            DataType::Uint16 => self.read::<u16, D>(deserializer),
            DataType::Uint32 => self.read::<u32, D>(deserializer),
            DataType::Uint64 => self.read::<u64, D>(deserializer),
            DataType::Int8 => self.read::<i8, D>(deserializer),
            DataType::Int16 => self.read::<i16, D>(deserializer),
            DataType::Int32 => self.read::<i32, D>(deserializer),
            DataType::Int64 => self.read::<i64, D>(deserializer),
            DataType::Fp32 => self.read::<f32, D>(deserializer),
            DataType::Fp64 => self.read::<f64, D>(deserializer),
            DataType::Bytes => self.read::<str, D>(deserializer),
            DataType::Fp16 | DataType::Bf16 => Err(self.refusal.stop(Error::invalid(format!(
                "input {}: {} can't be sent as JSON; send it as binary data",
                Quoted(self.target.name),
                self.target.datatype,
            )))),
        }
    }
}

impl Data<'_> {
    fn read<'de, K: Element + ?Sized, D: Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> std::result::Result<Vec<u8>, D::Error> {
        // Every element takes two bytes of text at least: itself and what separates it from the next.
        let bound = self.target.text_bytes / 2 + 1;
        let elements = self.target.elements.map_or(0, |elements| elements.min(bound));
        let mut data = Vec::with_capacity(elements * self.target.datatype.size().unwrap_or(elements::LENGTH_BYTES));
        let depth = self.depth;
        Nested::<K> { data: &mut data, field: &self, depth, element: PhantomData }.deserialize(deserializer)?;
        Ok(data)
    }
}

struct Nested<'t, K: ?Sized> {
    data: &'t mut Vec<u8>,
    field: &'t Data<'t>,
    depth: u64,
    element: PhantomData<K>,
}

impl<K: ?Sized> Nested<'_, K> {
    fn take<E: de::Error>(&self, taken: Option<()>, value: impl fmt::Display) -> std::result::Result<(), E> {
        taken.ok_or_else(|| {
            let Target { name, datatype, .. } = &self.field.target;
            let problem =
                format!("input {}: expected elements that fit {datatype} in 'data', got {value}", Quoted(name));
            self.field.refusal.stop(Error::invalid(problem))
        })
    }
}

impl<'de, K: Element + ?Sized> DeserializeSeed<'de> for Nested<'_, K> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, K: Element + ?Sized> Visitor<'de> for Nested<'_, K> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "an array of {} elements", self.field.target.datatype)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> std::result::Result<(), E> {
        let taken = K::boolean(value, self.data);
        self.take(taken, value)
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> std::result::Result<(), E> {
        let taken = K::unsigned(value, self.data);
        self.take(taken, value)
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> std::result::Result<(), E> {
        let taken = K::signed(value, self.data);
        self.take(taken, value)
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> std::result::Result<(), E> {
        let taken = K::float(value, self.data);
        self.take(taken, Float(value))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> std::result::Result<(), E> {
        let taken = K::text(value, self.data);
        self.take(taken, Quoted(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> std::result::Result<(), A::Error> {
        if self.depth >= limits::JSON_DEPTH {
            return Err(self.field.refusal.stop(too_deep()));
        }
        loop {
            let item =
                Nested::<K> { data: &mut *self.data, field: self.field, depth: self.depth + 1, element: PhantomData };
            if items.next_element_seed(item)?.is_none() {
                return Ok(());
            }
        }
    }
}

/// Sizes of a tensor.
pub(super) struct Dimensions<'t> {
    pub refusal: &'t Refusal,
    pub name: &'t str,
}

impl<'de> DeserializeSeed<'de> for Dimensions<'_> {
    type Value = Shape;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Dimensions<'_> {
    type Value = Shape;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a shape: an array of sizes")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> std::result::Result<Self::Value, A::Error> {
        let mut shape = Shape::new();
        while let Some(size) = items.next_element_seed(Scalar)? {
            let size = self.refusal.check(self.dimension(&shape, &size))?;
            shape.push(size);
        }
        Ok(shape)
    }
}

impl Dimensions<'_> {
    fn dimension(&self, shape: &[i64], size: &Value<'_>) -> Result<i64> {
        if shape.len() as u64 >= limits::TENSOR_DIMS {
            let most = limits::TENSOR_DIMS;
            return Err(Error::invalid(format!(
                "input {}: expected at most {most} dimensions, got more",
                Quoted(self.name)
            )));
        }
        size.as_u64().and_then(|size| i64::try_from(size).ok()).ok_or_else(|| {
            Error::invalid(format!(
                "input {}: expected integers from 0 to {} in its shape, got {}",
                Quoted(self.name),
                i64::MAX,
                size.describe(),
            ))
        })
    }
}

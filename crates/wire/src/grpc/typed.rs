//! `InferTensorContents`: elements as typed lists, turned into tensor bytes. Slower than raw contents, and rare.

use super::reader::{Field, Reader, malformed};
use crate::elements;
use crate::request::Quoted;
use bytes::Bytes;
use penstock_schema::{DataType, Error, Result};

const FIELDS: [&str; 8] = [
    "bool_contents",
    "int_contents",
    "int64_contents",
    "uint_contents",
    "uint64_contents",
    "fp32_contents",
    "fp64_contents",
    "bytes_contents",
];

/// Number of the field that holds elements of a type; FP16 and BF16 have none.
fn number_of(datatype: DataType) -> Option<u64> {
    match datatype {
        DataType::Bool => Some(1),
        DataType::Int8 | DataType::Int16 | DataType::Int32 => Some(2),
        DataType::Int64 => Some(3),
        DataType::Uint8 | DataType::Uint16 | DataType::Uint32 => Some(4),
        DataType::Uint64 => Some(5),
        DataType::Fp32 => Some(6),
        DataType::Fp64 => Some(7),
        DataType::Bytes => Some(8),
        DataType::Fp16 | DataType::Bf16 => None,
    }
}

pub(super) fn decode(name: &str, datatype: DataType, contents: &[u8]) -> Result<Bytes> {
    let Some(wanted) = number_of(datatype) else {
        return Err(Error::invalid(format!(
            "input {}: {datatype} has no typed contents; send it in raw_input_contents",
            Quoted(name)
        )));
    };
    let mut data = Vec::new();
    let mut reader = Reader(contents);
    while let Some((number, field)) = reader.field()? {
        if number == wanted {
            push(name, datatype, field, &mut data)?;
        } else if number == 8 || (1..8).contains(&number) && !matches!(field, Field::Bytes([])) {
            return Err(Error::invalid(format!(
                "input {}: expected {} for datatype {datatype}, got {}",
                Quoted(name),
                FIELDS[wanted as usize - 1],
                FIELDS[number as usize - 1],
            )));
        }
    }
    Ok(data.into())
}

fn push(name: &str, datatype: DataType, field: Field<'_>, data: &mut Vec<u8>) -> Result<()> {
    let out_of_range = |value: i64| {
        Error::invalid(format!("input {}: expected elements that fit {datatype}, got {value}", Quoted(name)))
    };
    // An int32 or uint32 on the wire counts modulo 2^32.
    let signed = |value: u64| value as u32 as i32;
    let unsigned = |value: u64| value as u32;
    match datatype {
        DataType::Bool => field.varints(|value| {
            data.push(u8::from(value != 0));
            Ok(())
        }),
        DataType::Int8 => field.varints(|value| {
            let value = i8::try_from(signed(value)).map_err(|_| out_of_range(signed(value).into()))?;
            data.extend_from_slice(&value.to_le_bytes());
            Ok(())
        }),
        DataType::Int16 => field.varints(|value| {
            let value = i16::try_from(signed(value)).map_err(|_| out_of_range(signed(value).into()))?;
            data.extend_from_slice(&value.to_le_bytes());
            Ok(())
        }),
        DataType::Uint8 => field.varints(|value| {
            let value = u8::try_from(unsigned(value)).map_err(|_| out_of_range(unsigned(value).into()))?;
            data.extend_from_slice(&value.to_le_bytes());
            Ok(())
        }),
        DataType::Uint16 => field.varints(|value| {
            let value = u16::try_from(unsigned(value)).map_err(|_| out_of_range(unsigned(value).into()))?;
            data.extend_from_slice(&value.to_le_bytes());
            Ok(())
        }),
        DataType::Int32 | DataType::Uint32 => field.varints(|value| {
            data.extend_from_slice(&unsigned(value).to_le_bytes());
            Ok(())
        }),
        DataType::Int64 | DataType::Uint64 => field.varints(|value| {
            data.extend_from_slice(&value.to_le_bytes());
            Ok(())
        }),
        DataType::Fp32 => match field {
            Field::Fixed32(bytes) => extend(data, &bytes),
            // Packed floats look as they do in a tensor.
            Field::Bytes(packed) if packed.len().is_multiple_of(4) => extend(data, packed),
            _ => Err(malformed()),
        },
        DataType::Fp64 => match field {
            Field::Fixed64(bytes) => extend(data, &bytes),
            Field::Bytes(packed) if packed.len().is_multiple_of(8) => extend(data, packed),
            _ => Err(malformed()),
        },
        DataType::Bytes => elements::push_bytes(data, field.bytes()?).ok_or_else(malformed),
        // `number_of` has sent these away.
        DataType::Fp16 | DataType::Bf16 => Err(malformed()),
    }
}

fn extend(data: &mut Vec<u8>, bytes: &[u8]) -> Result<()> {
    data.extend_from_slice(bytes);
    Ok(())
}

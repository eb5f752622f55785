//! Small models and shorthands for the tests of this crate.
#![allow(dead_code)] // Each test file uses its part.

use bytes::Bytes;
use penstock_schema::{Code, DataType, Error, ModelSpec, Outputs, Tensor, TensorSpec};

pub fn tensor(name: &str, datatype: DataType, dims: &[i64]) -> TensorSpec {
    TensorSpec { name: name.to_owned(), datatype, dims: dims.to_vec(), optional: false }
}

pub fn spec(max_batch_size: u32, inputs: Vec<TensorSpec>, outputs: Vec<TensorSpec>) -> ModelSpec {
    ModelSpec {
        name: "m".to_owned(),
        version: 3,
        platform: "python".to_owned(),
        max_batch_size,
        inputs,
        outputs,
        padding: None,
        on_device: false,
        config_json: Bytes::new(),
        config_proto: Bytes::new(),
    }
}

/// FP32 x[4] and optional INT64 n[] in batches of up to 8; FP32 y[2] and BYTES s[1] out.
pub fn batched() -> ModelSpec {
    let optional = TensorSpec { optional: true, ..tensor("n", DataType::Int64, &[]) };
    spec(
        8,
        vec![tensor("x", DataType::Fp32, &[4]), optional],
        vec![tensor("y", DataType::Fp32, &[2]), tensor("s", DataType::Bytes, &[1])],
    )
}

pub fn output(datatype: DataType, shape: &[i64], data: Vec<u8>) -> Tensor {
    Tensor::new(datatype, shape.iter().copied().collect(), data.into())
}

/// One answer of `batched`.
pub fn answer() -> Outputs {
    Outputs::from_vec(vec![
        output(DataType::Fp32, &[1, 2], floats(&[1.0, -2.5])),
        output(DataType::Bytes, &[1, 1], strings(&[b"h\"i"])),
    ])
}

pub fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

pub fn strings(values: &[&[u8]]) -> Vec<u8> {
    values.iter().flat_map(|value| [&(value.len() as u32).to_le_bytes()[..], value].concat()).collect()
}

/// Fails unless `result` is an error of that code whose message holds every given piece.
pub fn expect_refusal<T: std::fmt::Debug>(case: &str, result: Result<T, Error>, code: Code, pieces: &[&str]) {
    let error = match result {
        Ok(taken) => panic!("{case}: taken as {taken:?}"),
        Err(error) => error,
    };
    assert_eq!(error.code, code, "{case}: {error}");
    for piece in pieces {
        assert!(error.message.contains(piece), "{case}: expected {piece:?} in {:?}", error.message);
    }
    assert!(error.message.len() < 1024 && !error.message.contains(char::is_control), "{case}: {:?}", error.message);
}

//! Bytes to requests and answers to bytes: v2 JSON with binary tensors, protobuf, compression.
//!
//! Called by `front` and by the load generator. It promises: no I/O, no clock, no async, no panic on any bytes; memory is
//! taken for bytes that arrived, never for sizes that were declared; tensors are slices of the received body wherever the
//! wire format allows it. What `decode` returns is sound syntax that knows no model; what [`validate::validate`] returns fits one model.
//!
//! ```text
//! body ── json::decode / json::decode_raw / grpc::decode ──► RawRequest ── validate ──► Validated { inputs, ..., plan }
//! body ◄── json::encode / grpc::encode ◄── (ModelSpec, ReplyPlan, Outputs)
//! ```
#![forbid(unsafe_code)]

pub mod compress;
mod elements;
mod frames;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod grpc;
pub mod json;
pub mod metadata;
pub mod parameters;
mod request;
pub mod validate;

pub use parameters::{Parameters, Value};
pub use request::{Frames, Place, RawOutput, RawRequest, RawTensor, ReplyPlan, Validated, WantedOutput};

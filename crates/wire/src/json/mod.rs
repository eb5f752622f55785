//! The HTTP form of requests and answers: a JSON header, then binary tensors.
//!
//! serde_json does the syntax. The visitors here borrow text, refuse doubled keys in every object, bound nesting at
//! `json_depth`, and write tensor data straight into its final bytes.

mod data;
mod decode;
mod encode;
mod envelope;
mod input;
mod objects;
mod values;

pub use decode::{decode, decode_raw};
pub use encode::{Encoded, encode, error};

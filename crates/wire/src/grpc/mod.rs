//! The gRPC form of requests and answers: protobuf in length-prefixed messages.
//!
//! Infer messages are read and written by hand: they are the hot path, their tensors must stay slices, and a generated
//! decoder would take memory for a million empty inputs before anyone could count them. All other messages are prost's.

mod decode;
mod encode;
mod framing;
pub mod pb;
mod reader;
mod typed;

pub use decode::{Call, decode};
pub use encode::{StreamPart, encode, encode_stream, encode_stream_error};
pub use framing::{PREFIX_BYTES, Prefix, frame, frame_compressed, prefix, unframe};

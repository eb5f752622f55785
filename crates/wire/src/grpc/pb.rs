//! Generated messages: `inference` here, the others in modules of their own.
#![allow(clippy::all, clippy::unwrap_used, clippy::expect_used, rustdoc::all)]

include!(concat!(env!("OUT_DIR"), "/inference.rs"));

/// `grpc.health.v1`
pub mod health {
    include!(concat!(env!("OUT_DIR"), "/grpc.health.v1.rs"));
}

/// `grpc.reflection.v1`; the messages of `v1alpha` are the same on the wire.
pub mod reflection {
    include!(concat!(env!("OUT_DIR"), "/grpc.reflection.v1.rs"));
}

/// An encoded `google.protobuf.FileDescriptorSet` of every service, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.binpb"));

/// `ModelConfigResponse` with a configuration that is already encoded: an embedded message and bytes look alike on the wire.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RawModelConfigResponse {
    #[prost(bytes = "bytes", tag = "1")]
    pub config: bytes::Bytes,
}

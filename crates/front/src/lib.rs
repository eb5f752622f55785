//! The listeners: everything between a socket and a queue.
//!
//! Promises: limits are checked before anything is allocated or decoded; every request gets exactly one answer; nothing
//! here knows Python or runs a model. Called by `bridge`, which starts it and carries out its operations.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod body;
mod calls;
mod grpc;
mod handle;
mod host;
mod http1;
mod metrics;
mod operations;
mod ready;
mod regions;
mod registry;
mod server;
mod shard;
mod statistics;
mod stream;
mod submit;

pub use calls::{Answered, Call, Calls, Turn};
pub use handle::{Handle, StartError};
pub use regions::{Devices, HANDLE_BYTES};
pub use registry::{ModelVersion, Registry};
pub use server::{Config, IndexEntry, Operation, OperationAnswer, OperationRequest, Server, State};

//! Sends prepared requests to a v2 server, in a closed loop or by a schedule, and keeps a record of each.
//!
//! Called by the bridge for `penstock bench`. It promises: bodies are prepared beforehand and never copied per request;
//! all times are of CLOCK_MONOTONIC in nanoseconds; in a schedule a request is due when it is due, whether a connection
//! is free or not, and its record has that time beside the one at which it was sent; what was sent is recorded once,
//! whatever became of it. It knows no models and reads no answers, but for bytes that were announced as expected.
//!
//! ```text
//! items ─► Run ─► thread ─► closed loop: N workers ──┐
//!                      └──► pacer ─► backlog ─► workers ─► Connection ─► record
//! ```
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod clock;
mod connection;
mod grpc;
mod http1;
mod item;
mod record;
mod run;
mod stream;
mod workers;

pub use clock::now;
pub use connection::{Protocol, Target, call_blocking};
/// An encoded FileDescriptorSet of the services that [`call_blocking`] can be asked for.
pub use penstock_wire::grpc::pb::DESCRIPTORS;

pub use item::{Item, SequencePlan};
pub use record::{Outcome, RECORD_BYTES, Record};
pub use run::{Pace, Plan, Run};

/// Why a generator can't be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Invalid(String),
    #[error("{address}: {problem}")]
    Unreachable { address: String, problem: String },
    #[error(transparent)]
    Thread(#[from] std::io::Error),
}

//! One request on its way to an instance.

use crate::{Nanos, Reply};
use penstock_schema::Inputs;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// A validated request. The front makes it, an instance answers it through `reply`.
#[derive(Debug)]
pub struct Job {
    pub inputs: Inputs,
    /// Rows it adds to a batch; 0 counts as 1, as for models without a batch dimension.
    pub rows: u32,
    /// What it holds in memory, for the bound of the queue.
    pub bytes: usize,
    /// Jobs share a batch only when their keys are equal: shapes and the set of optional inputs, hashed by the front.
    pub key: u64,
    /// Size along a padded axis, 0 without one. Jobs share a batch only up to a ratio of 2, so that at most half of what
    /// is computed is padding.
    pub extent: i64,
    /// 1 is the highest; 0 means the model's default.
    pub priority: u32,
    /// The queue timeout that the request asked for, from `arrived`.
    pub timeout: Option<Nanos>,
    /// Absolute; past it nobody waits for the answer any more.
    pub deadline: Option<Nanos>,
    pub arrived: Nanos,
    /// What the client calls it; empty when it gave no name.
    pub id: Box<str>,
    /// Where an instance notes when it took the job, for whoever wants to know how long it waited.
    pub taken: Option<Arc<AtomicU64>>,
    /// The answer is to stay on the device that computes it; of a model that can leave it there.
    pub on_device: bool,
    pub reply: Reply,
}

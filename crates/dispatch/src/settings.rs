//! What a model's configuration says about queueing and batching.

use crate::Nanos;
use std::collections::BTreeMap;

/// When requests are put together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Learn what a batch costs and when clients come back, and wait only while waiting is expected to pay.
    Auto,
    /// Triton's dynamic batcher. No preferred sizes means: as many as fit.
    Triton { preferred: Vec<u32>, max_delay: Nanos },
    /// One request per execution.
    Off,
}

/// What happens to a request that waited longer than its queue timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeoutAction {
    Reject,
    /// Served after all requests of its level that are in time.
    Delay,
}

/// Triton's `ModelQueuePolicy`: of one priority level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuePolicy {
    pub timeout_action: TimeoutAction,
    /// 0: none.
    pub default_timeout: Nanos,
    /// Whether a request's own timeout counts. Like Triton's, it can only shorten a default, not lengthen it.
    pub allow_override: bool,
    /// 0: bounded by the queue's own bounds only.
    pub max_queue_size: u32,
}

impl Default for QueuePolicy {
    fn default() -> QueuePolicy {
        QueuePolicy {
            timeout_action: TimeoutAction::Reject,
            default_timeout: 0,
            allow_override: false,
            max_queue_size: 0,
        }
    }
}

#[derive(Clone, Debug)]
pub struct Settings {
    /// 0: the model has no batch dimension and gets one request per execution.
    pub max_batch_size: u32,
    pub instances: u32,
    pub mode: Mode,
    /// Answers leave in the order in which their batches were formed, also with several instances.
    pub preserve_ordering: bool,
    /// Bound of what is queued (not of what executes). One request is always admitted to an empty queue.
    pub max_requests: u64,
    pub max_bytes: u64,
    /// 0 and 1: one level.
    pub priority_levels: u32,
    /// The level of requests that name none, or one out of range; 0 means the lowest.
    pub default_priority_level: u32,
    pub default_policy: QueuePolicy,
    /// By level, 1 is the highest; others have the default policy.
    pub priority_policies: BTreeMap<u32, QueuePolicy>,
}

impl Settings {
    /// A model whose configuration has no `dynamic_batching` block: auto, and a request's own timeout counts.
    pub fn auto(max_batch_size: u32, instances: u32) -> Settings {
        Settings {
            max_batch_size,
            instances,
            mode: if max_batch_size == 0 { Mode::Off } else { Mode::Auto },
            preserve_ordering: false,
            max_requests: u64::MAX,
            max_bytes: u64::MAX,
            priority_levels: 0,
            default_priority_level: 0,
            default_policy: QueuePolicy { allow_override: true, ..QueuePolicy::default() },
            priority_policies: BTreeMap::new(),
        }
    }

    pub(crate) fn policy(&self, level: u32) -> QueuePolicy {
        self.priority_policies.get(&level).copied().unwrap_or(self.default_policy)
    }
}

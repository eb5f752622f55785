//! What a queue counts: Triton's model statistics, and histograms beyond them.
//!
//! Durations of a batch count once per request, as in Triton, so that `ns / count` is what a request saw.

use crate::Nanos;
use std::collections::BTreeMap;

/// A count and the nanoseconds it took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Total {
    pub count: u64,
    pub ns: u64,
}

impl Total {
    pub(crate) fn add(&mut self, count: u64, ns: u64) {
        self.count += count;
        self.ns += ns;
    }
}

/// Upper bounds in nanoseconds. From 50 µs (below it the network dominates) to 10 s (beyond it clients gave up), in
/// steps of 2 to 2.5, so that an interpolated percentile is off by a factor of 1.5 at most.
pub const DURATION_BOUNDS: [u64; 17] = [
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
];

/// Upper bounds in rows: the powers of two that engines prepare buckets for.
pub const ROWS_BOUNDS: [u64; 11] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024];

/// Counts per fixed bucket; the last one holds what is over all bounds. Not cumulative: the metrics page sums up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    pub bounds: &'static [u64],
    /// One more than there are bounds.
    pub counts: Vec<u64>,
    pub sum: u64,
}

impl Histogram {
    fn new(bounds: &'static [u64]) -> Histogram {
        Histogram { bounds, counts: vec![0; bounds.len() + 1], sum: 0 }
    }

    pub(crate) fn record(&mut self, value: u64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.counts[bucket] += 1;
        self.sum += value;
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// Executions of one batch size; counts are executions here, not requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchStatistics {
    pub batch_size: u32,
    pub compute_input: Total,
    pub compute_infer: Total,
    pub compute_output: Total,
}

/// A snapshot. Counters only grow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statistics {
    /// Requests answered with tensors; ns from arrival to answer.
    pub success: Total,
    /// All others that were submitted: rejected + expired + cancelled + failed; ns from arrival to answer.
    pub fail: Total,
    /// Queue and compute leave failed requests out.
    pub queue: Total,
    pub compute_input: Total,
    pub compute_infer: Total,
    pub compute_output: Total,
    /// Rows of successful requests.
    pub inference_count: u64,
    /// Batches with at least one successful request.
    pub execution_count: u64,
    /// Milliseconds since 1970 of the last execution; 0 before the first.
    pub last_inference: u64,
    /// By batch size, ascending.
    pub batches: Vec<BatchStatistics>,
    /// Refused because the queue was full.
    pub rejected: u64,
    /// Queue timeout or deadline passed before execution.
    pub expired: u64,
    /// The client left before execution.
    pub cancelled: u64,
    /// Executed, or meant to be, and answered with an error.
    pub failed: u64,
    /// Queued now: a gauge.
    pub pending: u64,
    pub pending_bytes: u64,
    /// Requests in batches that were pulled and are not finished: a gauge.
    pub in_flight: u64,
    pub request_duration: Histogram,
    pub queue_duration: Histogram,
    /// One entry per execution.
    pub batch_size: Histogram,
}

/// The counters behind a snapshot; the queue's lock guards them.
#[derive(Debug)]
pub(crate) struct Counters {
    totals: Statistics,
    by_size: BTreeMap<u32, BatchStatistics>,
}

/// One finished batch, summed up outside the lock.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub rows: u32,
    /// Arrival of its first request.
    pub oldest: Nanos,
    pub succeeded: u64,
    pub succeeded_rows: u64,
    pub failed: u64,
    pub failed_ns: u64,
    pub compute_input: Nanos,
    pub compute_infer: Nanos,
    pub compute_output: Nanos,
    pub epoch_millis: u64,
}

/// Why a request was not executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unserved {
    Rejected,
    Expired,
    Cancelled,
    /// The queue was aborted.
    Lost,
}

impl Counters {
    pub fn new() -> Counters {
        Counters {
            totals: Statistics {
                success: Total::default(),
                fail: Total::default(),
                queue: Total::default(),
                compute_input: Total::default(),
                compute_infer: Total::default(),
                compute_output: Total::default(),
                inference_count: 0,
                execution_count: 0,
                last_inference: 0,
                batches: Vec::new(),
                rejected: 0,
                expired: 0,
                cancelled: 0,
                failed: 0,
                pending: 0,
                pending_bytes: 0,
                in_flight: 0,
                request_duration: Histogram::new(&DURATION_BOUNDS),
                queue_duration: Histogram::new(&DURATION_BOUNDS),
                batch_size: Histogram::new(&ROWS_BOUNDS),
            },
            by_size: BTreeMap::new(),
        }
    }

    pub fn unserved(&mut self, why: Unserved, waited: Nanos) {
        self.totals.fail.add(1, waited);
        match why {
            Unserved::Rejected => self.totals.rejected += 1,
            Unserved::Expired => self.totals.expired += 1,
            Unserved::Cancelled => self.totals.cancelled += 1,
            Unserved::Lost => self.totals.failed += 1,
        }
    }

    /// One request of a batch that was answered with tensors.
    pub fn succeeded(&mut self, queued: Nanos, total: Nanos) {
        self.totals.success.ns += total;
        self.totals.queue.ns += queued;
        self.totals.request_duration.record(total);
        self.totals.queue_duration.record(queued);
    }

    /// The rest of a batch, once.
    pub fn finished(&mut self, outcome: &Outcome) {
        let totals = &mut self.totals;
        totals.failed += outcome.failed;
        totals.fail.add(outcome.failed, outcome.failed_ns);
        totals.last_inference = outcome.epoch_millis;
        totals.batch_size.record(u64::from(outcome.rows));
        if outcome.succeeded == 0 {
            return;
        }
        let count = outcome.succeeded;
        totals.success.count += count;
        totals.queue.count += count;
        totals.compute_input.add(count, count * outcome.compute_input);
        totals.compute_infer.add(count, count * outcome.compute_infer);
        totals.compute_output.add(count, count * outcome.compute_output);
        totals.inference_count += outcome.succeeded_rows;
        totals.execution_count += 1;
        let size = self.by_size.entry(outcome.rows).or_default();
        size.batch_size = outcome.rows;
        size.compute_input.add(1, outcome.compute_input);
        size.compute_infer.add(1, outcome.compute_infer);
        size.compute_output.add(1, outcome.compute_output);
    }

    pub fn snapshot(&self, pending: u64, pending_bytes: u64, in_flight: u64) -> Statistics {
        Statistics {
            batches: self.by_size.values().copied().collect(),
            pending,
            pending_bytes,
            in_flight,
            ..self.totals.clone()
        }
    }
}

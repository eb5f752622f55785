//! What a batch of n rows costs, learned from batches that were executed.

use crate::Nanos;

/// Weight of a new sample once a bucket has five: drift shows within a dozen batches, one hiccup fades as fast.
const GAIN: f64 = 0.2;

/// A bucket that was not executed for so many batches is forgotten: what it knew may have been a warm-up, and as long as
/// it is believed the policy may never try that size again.
const FORGET: u64 = 2048;

/// Between proportional (1) and constant (0): what is assumed of other sizes while only one is known. Low enough that
/// the policy tries a larger batch once; if that doesn't pay, the second size is known from then on.
const GUESS: f64 = 0.25;

/// Saturation is a mean over some twenty batches; one long pause counts at most as so many of them.
const SATURATION_GAIN: f64 = 0.05;
const LONGEST_GAP: f64 = 20.0;

#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    samples: u64,
    rows: f64,
    ns: f64,
    /// The batch number of the last sample.
    updated: u64,
}

/// Execution time by batch size: buckets of half an octave, made monotone and interpolated.
#[derive(Clone, Debug, Default)]
pub struct Costs {
    buckets: Vec<Bucket>,
    batches: u64,
    /// (rows, ns), both ascending.
    fit: Vec<(f64, f64)>,
    /// Mean time between the ends of batches, and mean time that a batch held an instance or waited for one to be sent.
    between: f64,
    occupied: f64,
    last_end: Nanos,
}

impl Costs {
    /// A batch of `rows`, whose first request came at `oldest`, held its instance from `pulled` to `finished`.
    pub fn learn(&mut self, rows: u32, oldest: Nanos, pulled: Nanos, finished: Nanos) {
        let took = finished.saturating_sub(pulled);
        self.learn_saturation(oldest, took, pulled, finished);
        let index = bucket(rows);
        if self.buckets.len() <= index {
            self.buckets.resize(index + 1, Bucket::default());
        }
        self.batches += 1;
        let bucket = &mut self.buckets[index];
        if self.batches - bucket.updated > FORGET {
            bucket.samples = 0;
        }
        bucket.samples += 1;
        bucket.updated = self.batches;
        let gain = GAIN.max(1.0 / bucket.samples as f64);
        bucket.rows += gain * (f64::from(rows) - bucket.rows);
        bucket.ns += gain * (took as f64 - bucket.ns);
        self.refit();
    }

    fn learn_saturation(&mut self, oldest: Nanos, took: Nanos, pulled: Nanos, finished: Nanos) {
        // Time spent waiting for more requests isn't spare time.
        let occupied = (took + pulled.saturating_sub(oldest.max(self.last_end))) as f64;
        let between = (finished.saturating_sub(self.last_end) as f64).min(occupied * LONGEST_GAP);
        self.last_end = finished;
        self.between += SATURATION_GAIN * (between - self.between);
        self.occupied += SATURATION_GAIN * (occupied - self.occupied);
    }

    /// The share of time, 0 to 1, in which the instances had something to do lately. An estimate: with several instances
    /// it is 1 as soon as one of them is always busy.
    pub fn saturation(&self) -> f64 {
        if self.between > 0.0 { (self.occupied / self.between).min(1.0) } else { 0.0 }
    }

    /// Isotonic regression by pooling neighbours: one outlier in a small bucket must not lift all larger ones.
    fn refit(&mut self) {
        self.fit.clear();
        for bucket in &self.buckets {
            if bucket.samples == 0 || self.batches - bucket.updated > FORGET {
                continue;
            }
            self.fit.push((bucket.rows, bucket.ns));
        }
        let mut pooled: smallvec::SmallVec<[(usize, f64); 24]> = smallvec::SmallVec::new();
        for (_, ns) in &self.fit {
            let mut group = (1, *ns);
            while let Some((count, mean)) = pooled.pop() {
                if mean <= group.1 {
                    pooled.push((count, mean));
                    break;
                }
                let total = count + group.0;
                group = (total, (mean * count as f64 + group.1 * group.0 as f64) / total as f64);
            }
            pooled.push(group);
        }
        let flat = pooled.iter().flat_map(|(count, mean)| std::iter::repeat_n(*mean, *count));
        for (point, ns) in self.fit.iter_mut().zip(flat) {
            point.1 = ns;
        }
    }

    /// Nanoseconds for a batch of `rows`; `None` before anything was learned.
    pub fn of(&self, rows: f64) -> Option<f64> {
        match self.fit.as_slice() {
            [] => None,
            [(known, ns)] => Some(ns * (1.0 - GUESS + GUESS * rows / known)),
            fit => {
                // The first segment serves what is below it, the last one what is above.
                let above = fit.partition_point(|(known, _)| *known < rows).clamp(1, fit.len() - 1);
                let ((low, low_ns), (high, high_ns)) = (fit[above - 1], fit[above]);
                let slope = (high_ns - low_ns) / (high - low);
                Some((low_ns + slope * (rows - low)).max(low_ns * (rows / low).min(0.5)))
            }
        }
    }
}

/// 1, 2, 3, 4-5, 6-7, 8-11, 12-15, ...
fn bucket(rows: u32) -> usize {
    let rows = rows.max(1);
    let octave = rows.ilog2();
    let upper_half = if octave == 0 { 0 } else { (rows >> (octave - 1)) & 1 };
    (octave * 2 + upper_half) as usize
}

//! What is queued, in the order in which it is served, and the batch that could be formed of it now.
//!
//! Pure data: no clock, no locks, no replies. The batch is extended as jobs come in, so that asking what could be sent
//! costs nothing per job a second time.

use crate::{Job, Mode, Nanos, QueuePolicy, Settings, TimeoutAction};
use std::collections::VecDeque;

const NEVER: Nanos = Nanos::MAX;

/// How many jobs of another shape a walk steps over before it gives up looking for fitting ones: bounds the time under
/// the lock when shapes are many.
const LOOK_PAST: usize = 256;

#[derive(Debug)]
struct Queued {
    job: Job,
    /// When its queue timeout passes.
    expires: Nanos,
}

#[derive(Debug)]
struct Level {
    policy: QueuePolicy,
    fresh: VecDeque<Queued>,
    /// Past their timeout with the action Delay: served after the fresh ones.
    late: VecDeque<Queued>,
}

/// The batch that a walk in order gives now.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Forming {
    pub requests: u32,
    pub rows: u32,
    /// Nothing more fits, or nothing more may join.
    pub complete: bool,
    /// A job that doesn't match waits behind it.
    pub mixed: bool,
    pub oldest: Nanos,
    /// Rows up to the largest preferred size that the walk met (or up to where it overshot all of them); 0: none.
    pub preferred: u32,
    key: u64,
    smallest: i64,
    largest: i64,
}

/// Which jobs may share a batch.
#[derive(Debug)]
struct Rules {
    max_batch: u32,
    single: bool,
    /// Auto steps over jobs of another shape; Triton's walk ends at the first.
    skip: bool,
    preferred: Vec<u32>,
    max_preferred: u32,
}

enum Join {
    Fits,
    Mismatch,
    TooLarge,
}

impl Rules {
    fn of(&self, forming: &Forming, job: &Job) -> Join {
        if forming.requests == 0 {
            return Join::Fits;
        }
        let extent = job.extent.max(1);
        let (smallest, largest) = (forming.smallest.min(extent), forming.largest.max(extent));
        if job.key != forming.key || largest > smallest.saturating_mul(2) {
            Join::Mismatch
        } else if self.single || forming.rows.saturating_add(rows(job)) > self.max_batch {
            Join::TooLarge
        } else {
            Join::Fits
        }
    }

    /// Looks at the next job of the walk.
    fn extend(&self, forming: &mut Forming, job: &Job) {
        if forming.complete {
            return;
        }
        match self.of(forming, job) {
            Join::Fits => self.add(forming, job),
            Join::Mismatch => {
                forming.mixed = true;
                forming.complete = !self.skip;
            }
            Join::TooLarge => {
                self.mark_overshoot(forming, job);
                forming.complete = true;
            }
        }
    }

    fn add(&self, forming: &mut Forming, job: &Job) {
        let extent = job.extent.max(1);
        if forming.requests == 0 {
            *forming =
                Forming { key: job.key, smallest: extent, largest: extent, oldest: job.arrived, ..Forming::default() };
        } else {
            self.mark_overshoot(forming, job);
        }
        forming.requests += 1;
        forming.rows = forming.rows.saturating_add(rows(job));
        forming.smallest = forming.smallest.min(extent);
        forming.largest = forming.largest.max(extent);
        forming.oldest = forming.oldest.min(job.arrived);
        if self.preferred.contains(&forming.rows) {
            forming.preferred = forming.rows;
        }
        forming.complete = self.single || forming.rows >= self.max_batch;
    }

    fn mark_overshoot(&self, forming: &mut Forming, job: &Job) {
        if forming.preferred == 0 && forming.rows.saturating_add(rows(job)) > self.max_preferred {
            forming.preferred = forming.rows;
        }
    }
}

pub(crate) fn rows(job: &Job) -> u32 {
    job.rows.max(1)
}

/// Why a job left the queue unexecuted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Removed {
    TimedOut,
    DeadlinePassed,
    Cancelled,
}

#[derive(Debug)]
pub(crate) struct Backlog {
    rules: Rules,
    levels: Vec<Level>,
    default_level: usize,
    /// `None`: walk again.
    forming: Option<Forming>,
    requests: u64,
    rows: u64,
    bytes: u64,
    /// No queued job expires before this.
    closest: Nanos,
}

impl Backlog {
    pub fn new(settings: &Settings) -> Backlog {
        let max_batch = settings.max_batch_size.max(1);
        let mut preferred = Vec::new();
        if let Mode::Triton { preferred: sizes, .. } = &settings.mode {
            preferred.extend(sizes.iter().copied().filter(|size| *size > 0 && *size <= max_batch));
        }
        let count = settings.priority_levels.max(1);
        let default_level = match settings.default_priority_level {
            0 => count,
            level => level.min(count),
        };
        Backlog {
            rules: Rules {
                max_batch,
                single: settings.max_batch_size == 0 || settings.mode == Mode::Off,
                skip: settings.mode == Mode::Auto,
                max_preferred: preferred.iter().copied().max().unwrap_or(max_batch),
                preferred,
            },
            levels: (1..=count)
                .map(|level| Level { policy: settings.policy(level), fresh: VecDeque::new(), late: VecDeque::new() })
                .collect(),
            default_level: default_level as usize - 1,
            forming: None,
            requests: 0,
            rows: 0,
            bytes: 0,
            closest: NEVER,
        }
    }

    pub fn requests(&self) -> u64 {
        self.requests
    }

    pub fn rows(&self) -> u64 {
        self.rows
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn closest(&self) -> Nanos {
        self.closest
    }

    pub fn max_preferred(&self) -> u32 {
        self.rules.max_preferred
    }

    /// Whether the job's level takes one more.
    pub fn level_has_room(&self, job: &Job) -> bool {
        let level = &self.levels[self.level(job)];
        let size = level.policy.max_queue_size as usize;
        size == 0 || level.fresh.len() + level.late.len() < size
    }

    fn level(&self, job: &Job) -> usize {
        match job.priority as usize {
            priority if priority >= 1 && priority <= self.levels.len() => priority - 1,
            _ => self.default_level,
        }
    }

    pub fn push(&mut self, job: Job) {
        let index = self.level(&job);
        let last = self.levels[index].late.is_empty()
            && self.levels[index + 1..].iter().all(|level| level.fresh.is_empty() && level.late.is_empty());
        // A job that isn't last in the order may belong before some that the walk has seen.
        match &mut self.forming {
            Some(forming) if last => self.rules.extend(forming, &job),
            forming => *forming = None,
        }
        let level = &mut self.levels[index];
        let expires = expiry(&level.policy, &job);
        self.closest = self.closest.min(expires).min(job.deadline.unwrap_or(NEVER));
        self.requests += 1;
        self.rows += u64::from(rows(&job));
        self.bytes += job.bytes as u64;
        level.fresh.push_back(Queued { job, expires });
    }

    /// The batch that could be sent now.
    pub fn forming(&mut self) -> Forming {
        if let Some(forming) = self.forming {
            return forming;
        }
        let mut forming = Forming::default();
        let mut passed = 0;
        for queued in self.levels.iter().flat_map(|level| level.fresh.iter().chain(&level.late)) {
            let before = forming.requests;
            self.rules.extend(&mut forming, &queued.job);
            passed += usize::from(forming.requests == before);
            if forming.complete || passed > LOOK_PAST {
                break;
            }
        }
        self.forming = Some(forming);
        forming
    }

    /// Takes jobs in order, up to that many rows, into `taken`; those that nobody waits for go to `removed` instead.
    pub fn take(&mut self, up_to: u32, now: Nanos, taken: &mut Vec<Job>, removed: &mut Vec<(Job, Removed)>) -> u32 {
        let mut forming = Forming::default();
        let mut passed = 0;
        'walk: for level in &mut self.levels {
            let rejects = level.policy.timeout_action == TimeoutAction::Reject;
            for queue in [&mut level.fresh, &mut level.late] {
                let mut index = 0;
                while index < queue.len() {
                    let Queued { job, expires } = &queue[index];
                    let timed_out = rejects && *expires <= now;
                    let why = condemned(job, now).or(timed_out.then_some(Removed::TimedOut));
                    if why.is_none() {
                        match self.rules.of(&forming, job) {
                            Join::Fits if forming.requests == 0 || forming.rows + rows(job) <= up_to => {}
                            Join::Mismatch if self.rules.skip && passed < LOOK_PAST => {
                                passed += 1;
                                index += 1;
                                continue;
                            }
                            _ => break 'walk,
                        }
                    }
                    let Some(Queued { job, .. }) = remove(queue, index) else { break };
                    self.requests -= 1;
                    self.rows -= u64::from(rows(&job));
                    self.bytes -= job.bytes as u64;
                    if let Some(why) = why {
                        removed.push((job, why));
                    } else {
                        self.rules.add(&mut forming, &job);
                        taken.push(job);
                        if forming.complete || forming.rows >= up_to {
                            break 'walk;
                        }
                    }
                }
            }
        }
        self.forming = None;
        if self.requests == 0 {
            self.closest = NEVER;
        }
        forming.rows
    }

    /// Removes what is expired or cancelled, and moves what is late behind what is in time.
    pub fn sweep(&mut self, now: Nanos, removed: &mut Vec<(Job, Removed)>) {
        self.forming = None;
        self.closest = NEVER;
        for level in &mut self.levels {
            for _ in 0..level.late.len() {
                let Some(queued) = level.late.pop_front() else { break };
                match condemned(&queued.job, now) {
                    Some(why) => removed.push((queued.job, why)),
                    None => {
                        self.closest = self.closest.min(queued.job.deadline.unwrap_or(NEVER));
                        level.late.push_back(queued);
                    }
                }
            }
            for _ in 0..level.fresh.len() {
                let Some(queued) = level.fresh.pop_front() else { break };
                let deadline = queued.job.deadline.unwrap_or(NEVER);
                if let Some(why) = condemned(&queued.job, now) {
                    removed.push((queued.job, why));
                } else if queued.expires > now {
                    self.closest = self.closest.min(queued.expires).min(deadline);
                    level.fresh.push_back(queued);
                } else if level.policy.timeout_action == TimeoutAction::Delay {
                    self.closest = self.closest.min(deadline);
                    level.late.push_back(queued);
                } else {
                    removed.push((queued.job, Removed::TimedOut));
                }
            }
        }
        self.recount();
    }

    /// Everything that is queued, in order.
    pub fn clear(&mut self) -> Vec<Job> {
        self.forming = None;
        self.closest = NEVER;
        let levels = self.levels.iter_mut();
        let jobs = levels.flat_map(|level| level.fresh.drain(..).chain(level.late.drain(..))).map(|queued| queued.job);
        let jobs = jobs.collect();
        self.recount();
        jobs
    }

    fn recount(&mut self) {
        (self.requests, self.rows, self.bytes) = (0, 0, 0);
        for queued in self.levels.iter().flat_map(|level| level.fresh.iter().chain(&level.late)) {
            self.requests += 1;
            self.rows += u64::from(rows(&queued.job));
            self.bytes += queued.job.bytes as u64;
        }
    }
}

/// The front is the common case, and a pop there doesn't move the others.
fn remove(queue: &mut VecDeque<Queued>, index: usize) -> Option<Queued> {
    if index == 0 { queue.pop_front() } else { queue.remove(index) }
}

fn condemned(job: &Job, now: Nanos) -> Option<Removed> {
    // The deadline first: who gives a job up at its deadline has not changed its mind.
    if job.deadline.is_some_and(|deadline| deadline <= now) {
        Some(Removed::DeadlinePassed)
    } else if job.reply.is_closed() {
        Some(Removed::Cancelled)
    } else {
        None
    }
}

/// An override counts only where allowed, and only when it is shorter than the default.
fn expiry(policy: &QueuePolicy, job: &Job) -> Nanos {
    let asked = if policy.allow_override { job.timeout.filter(|timeout| *timeout > 0) } else { None };
    let timeout = match (asked, policy.default_timeout) {
        (Some(asked), 0) => asked,
        (Some(asked), default) => asked.min(default),
        (None, 0) => return NEVER,
        (None, default) => default,
    };
    job.arrived.saturating_add(timeout)
}

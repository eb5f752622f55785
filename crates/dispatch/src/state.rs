//! What the queue's one lock guards.

use crate::backlog::{Backlog, Removed};
use crate::statistics::{Counters, Unserved};
use crate::{Costs, Job, Nanos, Returns, Settings};

#[derive(Debug)]
pub(crate) struct State {
    pub backlog: Backlog,
    pub costs: Costs,
    pub returns: Returns,
    pub counters: Counters,
    pub closed: bool,
    /// Batches pulled and not finished.
    pub busy: u32,
    pub in_flight: u64,
    /// Instances that wait and were not woken.
    pub parked: Vec<usize>,
    /// The one that waits with a timeout, and until when.
    pub leader: Option<(usize, Nanos)>,
    /// By instance: woken and not yet running. Keeps a second nudge from waking a second one for the same jobs.
    pub woken: Vec<bool>,
    pub waking: u32,
    /// When the first submission since the last nudge came.
    pub unseen: Option<Nanos>,
    pub swept: Nanos,
    pub sequence: u64,
    /// Emptied lists, one per instance at most.
    pub spare: Vec<Vec<Job>>,
}

/// A long queue is gone through for expired requests at most this often: a walk over all 65,536 takes milliseconds, and
/// each may have a time of its own. None is executed late: `Backlog::take` looks at each it takes.
const SWEEP_EVERY: Nanos = 1_000_000;

/// A queue of this length is gone through in microseconds.
const SWEEP_FREELY: u64 = 256;

impl State {
    pub fn new(settings: &Settings) -> State {
        let instances = settings.instances.max(1) as usize;
        State {
            backlog: Backlog::new(settings),
            costs: Costs::default(),
            returns: Returns::default(),
            counters: Counters::new(),
            closed: false,
            busy: 0,
            in_flight: 0,
            parked: Vec::with_capacity(instances),
            leader: None,
            woken: vec![false; instances],
            waking: 0,
            unseen: None,
            swept: 0,
            sequence: 0,
            spare: Vec::with_capacity(instances),
        }
    }

    pub fn expire(&mut self, now: Nanos, removed: &mut Vec<(Job, Removed)>) {
        let recently = now < self.swept.saturating_add(SWEEP_EVERY) && self.backlog.requests() > SWEEP_FREELY;
        if now >= self.backlog.closest() && !recently {
            let before = removed.len();
            self.backlog.sweep(now, removed);
            self.swept = now;
            self.count_removed(&removed[before..], now);
        }
    }

    pub fn count_removed(&mut self, removed: &[(Job, Removed)], now: Nanos) {
        for (job, why) in removed {
            let why = if *why == Removed::Cancelled { Unserved::Cancelled } else { Unserved::Expired };
            self.counters.unserved(why, now.saturating_sub(job.arrived));
        }
    }

    pub fn mark_woken(&mut self, instance: usize) {
        self.leave(instance);
        self.woken[instance] = true;
        self.waking += 1;
    }

    pub fn leave(&mut self, instance: usize) {
        self.parked.retain(|parked| *parked != instance);
        self.leader = self.leader.filter(|(leader, _)| *leader != instance);
    }
}

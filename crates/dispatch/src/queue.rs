//! The queue between shards and instances: admission, wake-ups, counting. *When* to send is the policy's business.
//!
//! Free instances park, each on its own condition variable. At most one of them, the leader, waits with a timeout; the
//! others wait until told. A nudge decides on the shard's thread and wakes an instance only when there is something to do
//! for it: with one client exactly one wake-up per request.

use crate::backlog::Removed;
use crate::batch::{Batch, Deliveries};
use crate::policy::{self, Decision, View};
use crate::state::State;
use crate::statistics::{Outcome, Unserved};
use crate::{Clock, Job, Mode, Monotonic, Nanos, Settings, Statistics};
use parking_lot::{Condvar, Mutex, MutexGuard};
use penstock_schema::{Code, Error};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A shard that is busy for longer than this should nudge in between, or its instances starve beside it.
const UNSEEN: Nanos = 200_000;

/// A full queue looks for cancelled requests at most this often: under overload each refusal must stay cheap.
const SWEEP_EVERY: Nanos = 10_000_000;

/// A leader that would oversleep by less than this isn't woken to set its timer anew: the next arrival decides anyway.
const OVERSLEEP: Nanos = 50_000;

/// What the shard should do after a submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Nudge {
    /// Nudge once when no socket is ready any more.
    Later,
    /// Nudge at once: an instance is free and a batch is full, or was kept from it for long.
    Now,
}

/// What [`Queue::try_pull`] found.
#[derive(Debug)]
pub enum Attempt<C: Clock = Monotonic> {
    Batch(Batch<C>),
    /// Waiting is expected to pay until then, or until the next nudge.
    WaitUntil(Nanos),
    Idle,
    /// Closed and drained.
    Closed,
}

/// Batches that are done while an earlier one is not.
#[derive(Debug, Default)]
struct Order {
    next: u64,
    held: BTreeMap<u64, Deliveries>,
}

/// The queue of one model version.
#[derive(Debug)]
pub struct Queue<C: Clock = Monotonic> {
    clock: C,
    settings: Settings,
    state: Mutex<State>,
    instances: Box<[Condvar]>,
    /// Something was submitted since the last nudge; spares idle shards the lock.
    dirty: AtomicBool,
    /// Held while delivering, with `preserve_ordering` only.
    order: Mutex<Order>,
}

impl<C: Clock> Queue<C> {
    pub fn new(settings: Settings, clock: C) -> Arc<Queue<C>> {
        let instances = settings.instances.max(1) as usize;
        Arc::new(Queue {
            state: Mutex::new(State::new(&settings)),
            instances: (0..instances).map(|_| Condvar::new()).collect(),
            dirty: AtomicBool::new(false),
            order: Mutex::default(),
            clock,
            settings,
        })
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(crate) fn now(&self) -> Nanos {
        self.clock.now()
    }

    /// Queues a job, or gives it back with the reason: full (`Overloaded`) or closed (`Unavailable`; submit it to the
    /// version that replaced this one). Wakes nobody: that is what [`Queue::nudge`] is for.
    #[allow(clippy::result_large_err, reason = "the job is moved once; a box would cost an allocation per refusal")]
    pub fn submit(&self, job: Job) -> Result<Nudge, (Job, Error)> {
        let now = self.now();
        let mut removed = Vec::new();
        let mut state = self.state.lock();
        if state.closed {
            return Err((job, Error::unavailable("the model version is being unloaded")));
        }
        if !self.admits(&state, &job) {
            if now.saturating_sub(state.swept) >= SWEEP_EVERY {
                state.swept = now;
                state.backlog.sweep(now, &mut removed);
                state.count_removed(&removed, now);
            }
            if !self.admits(&state, &job) {
                state.counters.unserved(Unserved::Rejected, now.saturating_sub(job.arrived));
                drop(state);
                answer(removed);
                return Err((job, Error::new(Code::Overloaded, "Exceeds maximum queue size")));
            }
        }
        state.returns.arrived(now);
        state.backlog.push(job);
        self.dirty.store(true, Ordering::Relaxed);
        // Another shard may have read its clock after this one and come first.
        let unseen = *state.unseen.get_or_insert(now);
        let pressing =
            state.backlog.rows() >= u64::from(self.settings.max_batch_size) || now.saturating_sub(unseen) > UNSEEN;
        let nudge = if pressing && !state.parked.is_empty() { Nudge::Now } else { Nudge::Later };
        drop(state);
        answer(removed);
        Ok(nudge)
    }

    fn admits(&self, state: &State, job: &Job) -> bool {
        let backlog = &state.backlog;
        let fits = backlog.requests() < self.settings.max_requests
            && backlog.bytes().saturating_add(job.bytes as u64) <= self.settings.max_bytes;
        (fits || backlog.requests() == 0) && backlog.level_has_room(job)
    }

    /// The shard has no more ready sockets: decides for all submissions since, and wakes an instance if it has work.
    pub fn nudge(&self) {
        if !self.dirty.swap(false, Ordering::Relaxed) {
            return;
        }
        let now = self.now();
        let mut removed = Vec::new();
        let mut state = self.state.lock();
        state.unseen = None;
        if !state.parked.is_empty() {
            state.expire(now, &mut removed);
        }
        let wake = self.consider(&mut state, now);
        drop(state);
        self.wake(wake);
        answer(removed);
    }

    /// Answers what has expired, without executing anything. Instances do it whenever they pull; this is for a timer, for
    /// the time when all of them are busy or hang.
    pub fn expire(&self) {
        let now = self.now();
        let mut removed = Vec::new();
        self.state.lock().expire(now, &mut removed);
        answer(removed);
    }

    /// Blocks the instance's thread until there is a batch for it; `None` once the queue is closed and drained.
    pub fn pull(self: &Arc<Self>, instance: usize) -> Option<Batch<C>> {
        let instance = instance % self.instances.len();
        let mut state = self.state.lock();
        loop {
            let now = self.now();
            let mut removed = Vec::new();
            let attempt = self.attempt(&mut state, now, &mut removed);
            if !removed.is_empty() {
                MutexGuard::unlocked(&mut state, || answer(removed));
                if !matches!(attempt, Attempt::Batch(_)) {
                    continue;
                }
            }
            match attempt {
                Attempt::Batch(batch) => {
                    // What is left may be work for another one.
                    let wake = self.consider(&mut state, now);
                    drop(state);
                    self.wake(wake);
                    return Some(batch);
                }
                Attempt::Closed => return None,
                Attempt::WaitUntil(until) => self.park(&mut state, instance, Some((now, until))),
                Attempt::Idle => self.park(&mut state, instance, None),
            }
        }
    }

    /// [`Queue::pull`] without waiting, for a caller that has its own event loop.
    pub fn try_pull(self: &Arc<Self>) -> Attempt<C> {
        let mut removed = Vec::new();
        let attempt = self.attempt(&mut self.state.lock(), self.now(), &mut removed);
        answer(removed);
        attempt
    }

    fn attempt(self: &Arc<Self>, state: &mut State, now: Nanos, removed: &mut Vec<(Job, Removed)>) -> Attempt<C> {
        state.expire(now, removed);
        loop {
            let rows = match self.decide(state, now) {
                Decision::Send { rows } => rows,
                // Nobody else will come.
                Decision::WaitUntil(_) if state.closed => u32::MAX,
                Decision::WaitUntil(until) => return Attempt::WaitUntil(until),
                Decision::Idle if state.closed => return Attempt::Closed,
                Decision::Idle => return Attempt::Idle,
            };
            let mut jobs = state.spare.pop().unwrap_or_default();
            let before = removed.len();
            let rows = state.backlog.take(rows, now, &mut jobs, removed);
            state.count_removed(&removed[before..], now);
            if jobs.is_empty() {
                // Nobody waits for any of them.
                continue;
            }
            state.busy += 1;
            state.in_flight += jobs.len() as u64;
            let sequence = state.sequence;
            state.sequence += 1;
            return Attempt::Batch(Batch::new(jobs, rows, now, sequence, self.clone()));
        }
    }

    fn decide(&self, state: &mut State, now: Nanos) -> Decision {
        let forming = state.backlog.forming();
        let view = View {
            mode: &self.settings.mode,
            max_batch: self.settings.max_batch_size.max(1),
            max_preferred: state.backlog.max_preferred(),
            requests: forming.requests,
            rows: forming.rows,
            complete: forming.complete,
            mixed: forming.mixed,
            preferred: forming.preferred,
            oldest: forming.oldest,
            closest: state.backlog.closest(),
            instances: self.instances.len() as u32,
            present: state.backlog.requests() + state.in_flight,
            idle: (self.instances.len() as u32).saturating_sub(state.busy),
            costs: &state.costs,
            returns: &state.returns,
        };
        policy::decide(&view, now)
    }

    /// Which parked instance should be woken now, if any.
    fn consider(&self, state: &mut State, now: Nanos) -> Option<usize> {
        let last = *state.parked.last()?;
        // Those on their way will take what they can.
        let (queued, each) = if self.settings.mode == Mode::Off || self.settings.max_batch_size == 0 {
            (state.backlog.requests(), 1)
        } else {
            (state.backlog.rows(), self.settings.max_batch_size)
        };
        if state.waking > 0 && queued <= u64::from(state.waking) * u64::from(each) {
            return None;
        }
        let instance = match (self.decide(state, now), state.leader) {
            (Decision::Idle, _) => return None,
            (Decision::Send { .. }, Some((leader, _))) => leader,
            (Decision::Send { .. }, None) => last,
            (Decision::WaitUntil(until), Some((leader, at))) => {
                if at <= until.saturating_add((until.saturating_sub(now)).max(OVERSLEEP)) {
                    return None;
                }
                leader
            }
            (Decision::WaitUntil(_), None) if state.waking > 0 => return None,
            (Decision::WaitUntil(_), None) => last,
        };
        state.mark_woken(instance);
        Some(instance)
    }

    fn wake(&self, instance: Option<usize>) {
        if let Some(instance) = instance {
            self.instances[instance].notify_one();
        }
    }

    fn park(&self, state: &mut MutexGuard<'_, State>, instance: usize, until: Option<(Nanos, Nanos)>) {
        let condition = &self.instances[instance];
        state.parked.push(instance);
        match until {
            Some((now, until)) if state.leader.is_none_or(|(_, at)| until < at) => {
                state.leader = Some((instance, until));
                condition.wait_for(state, Duration::from_nanos(until.saturating_sub(now)));
            }
            _ => condition.wait(state),
        }
        if state.woken[instance] {
            state.woken[instance] = false;
            state.waking -= 1;
        } else {
            state.leave(instance);
        }
    }

    /// Takes no more jobs; instances drain what is queued without waiting, then their `pull` returns `None`.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let parked = state.parked.clone();
        for instance in &parked {
            state.mark_woken(*instance);
        }
        drop(state);
        for instance in parked {
            self.wake(Some(instance));
        }
    }

    /// Closes, and answers everything queued "instance lost": for the end of the exit timeout, or when no instance is left.
    pub fn abort(&self) {
        self.close();
        let now = self.now();
        let jobs = {
            let mut state = self.state.lock();
            let jobs = state.backlog.clear();
            for job in &jobs {
                state.counters.unserved(Unserved::Lost, now.saturating_sub(job.arrived));
            }
            jobs
        };
        drop(jobs);
    }

    pub fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// Nothing queued, nothing executing.
    pub fn is_drained(&self) -> bool {
        let state = self.state.lock();
        state.backlog.requests() == 0 && state.in_flight == 0
    }

    /// Requests queued.
    pub fn pending(&self) -> usize {
        self.state.lock().backlog.requests() as usize
    }

    /// Requests in batches that were pulled and not finished.
    pub fn in_flight(&self) -> usize {
        self.state.lock().in_flight as usize
    }

    pub fn statistics(&self) -> Statistics {
        let state = self.state.lock();
        state.counters.snapshot(state.backlog.requests(), state.backlog.bytes(), state.in_flight)
    }

    /// A batch is done: counts it and learns from it. `requests` gives (queued, total) of each that succeeded.
    pub(crate) fn finished(
        &self,
        pulled: Nanos,
        finished: Nanos,
        count: usize,
        awaited: u32,
        mut outcome: Outcome,
        requests: impl Iterator<Item = (Nanos, Nanos)>,
    ) {
        outcome.epoch_millis = self.clock.epoch_millis();
        let mut state = self.state.lock();
        state.busy -= 1;
        state.in_flight -= count as u64;
        for (queued, total) in requests {
            state.counters.succeeded(queued, total);
        }
        state.counters.finished(&outcome);
        // How long a failure took, or a batch whose requests were tried one by one, says nothing about the model.
        if outcome.failed == 0 {
            state.costs.learn(outcome.rows, outcome.oldest, pulled, finished);
        }
        state.returns.released(finished, awaited);
    }

    pub(crate) fn deliver(&self, sequence: u64, mut deliveries: Deliveries) {
        if !self.settings.preserve_ordering {
            return post(&mut deliveries);
        }
        let mut order = self.order.lock();
        order.held.insert(sequence, deliveries);
        loop {
            let next = order.next;
            let Some(mut deliveries) = order.held.remove(&next) else { return };
            order.next += 1;
            post(&mut deliveries);
        }
    }

    /// Keeps an emptied list for the next batch, unless that would mean waiting for the lock.
    pub(crate) fn recycle(&self, jobs: Vec<Job>) {
        if let Some(mut state) = self.state.try_lock()
            && state.spare.len() < self.instances.len()
        {
            state.spare.push(jobs);
        }
    }
}

fn post(deliveries: &mut Deliveries) {
    for (mailbox, delivery) in deliveries {
        mailbox.post(delivery);
    }
}

/// Never under the lock: completing a channel wakes a task, which may be a system call.
fn answer(removed: Vec<(Job, Removed)>) {
    for (job, why) in removed {
        match why {
            Removed::TimedOut => job.reply.send(Err(Error::unavailable("Request timeout expired"))),
            Removed::DeadlinePassed => {
                let error = Error::new(Code::DeadlineExceeded, "the deadline passed before the request was executed");
                job.reply.send(Err(error));
            }
            // Nobody listens.
            Removed::Cancelled => job.reply.disarm(),
        }
    }
}

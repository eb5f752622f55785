//! Jobs that are executed together.

use crate::mailbox::{Answer, Delivery, Mailbox, lost};
use crate::statistics::Outcome;
use crate::{Clock, Job, Monotonic, Nanos, Queue, backlog};
use penstock_schema::Error;
use smallvec::SmallVec;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// One list per shard that has requests in the batch; nearly always one.
pub(crate) type Deliveries = SmallVec<[(Arc<Mailbox>, Delivery); 1]>;

/// What an instance pulled. Finish it with one answer per job; dropped unfinished, it answers all "instance lost".
#[derive(Debug)]
pub struct Batch<C: Clock = Monotonic> {
    pub jobs: Vec<Job>,
    /// Sum of the jobs' rows, at least one each.
    pub rows: u32,
    pub pulled: Nanos,
    input_done: Option<Nanos>,
    infer_done: Option<Nanos>,
    pub(crate) sequence: u64,
    settled: bool,
    queue: Arc<Queue<C>>,
}

impl<C: Clock> Batch<C> {
    pub(crate) fn new(jobs: Vec<Job>, rows: u32, pulled: Nanos, sequence: u64, queue: Arc<Queue<C>>) -> Batch<C> {
        for taken in jobs.iter().filter_map(|job| job.taken.as_ref()) {
            taken.store(pulled, Ordering::Relaxed);
        }
        Batch { jobs, rows, pulled, input_done: None, infer_done: None, sequence, settled: false, queue }
    }

    /// Inputs are gathered.
    pub fn mark_input_done(&mut self) {
        self.input_done = Some(self.queue.now());
    }

    /// The model returned.
    pub fn mark_infer_done(&mut self) {
        self.infer_done = Some(self.queue.now());
    }

    /// Counts the batch, then delivers the answers in the order of the jobs. Missing ones are internal errors.
    pub fn finish(mut self, answers: impl IntoIterator<Item = Answer>) {
        self.settle(answers, || Error::internal("the model gave fewer answers than it got requests"));
    }

    fn settle(&mut self, answers: impl IntoIterator<Item = Answer>, missing: fn() -> Error) {
        let finished = self.queue.now();
        let input_done = self.input_done.unwrap_or(self.pulled);
        let infer_done = self.infer_done.unwrap_or(finished);
        let mut outcome = Outcome {
            rows: self.rows,
            oldest: self.jobs.iter().map(|job| job.arrived).min().unwrap_or(self.pulled),
            compute_input: input_done.saturating_sub(self.pulled),
            compute_infer: infer_done.saturating_sub(input_done),
            compute_output: finished.saturating_sub(infer_done),
            ..Outcome::default()
        };
        let mut deliveries = Deliveries::new();
        let mut succeeded: SmallVec<[Nanos; 64]> = SmallVec::new();
        let mut awaited = 0;
        let answers = answers.into_iter().map(Some).chain(std::iter::repeat_with(|| None));
        let count = self.jobs.len();
        for (job, answer) in self.jobs.iter_mut().zip(answers) {
            let Some(sender) = job.reply.take() else { continue };
            let answer = answer.unwrap_or_else(|| Err(missing()));
            if answer.is_ok() {
                outcome.succeeded += 1;
                outcome.succeeded_rows += u64::from(backlog::rows(job));
                succeeded.push(job.arrived);
            } else {
                outcome.failed += 1;
                outcome.failed_ns += finished.saturating_sub(job.arrived);
            }
            awaited += u32::from(!sender.is_closed());
            let mailbox = job.reply.mailbox();
            match deliveries.iter_mut().find(|(known, _)| Arc::ptr_eq(known, mailbox)) {
                Some((_, delivery)) => delivery.push((sender, answer)),
                None => {
                    let mut delivery = Delivery::with_capacity(count);
                    delivery.push((sender, answer));
                    deliveries.push((mailbox.clone(), delivery));
                }
            }
        }
        self.settled = true;
        let requests =
            succeeded.iter().map(|arrived| (self.pulled.saturating_sub(*arrived), finished.saturating_sub(*arrived)));
        self.queue.finished(self.pulled, finished, count, awaited, outcome, requests);
        self.queue.deliver(self.sequence, deliveries);
        // Inputs are freed after the answers left: nobody should wait for that.
        self.jobs.clear();
        self.queue.recycle(std::mem::take(&mut self.jobs));
    }
}

impl<C: Clock> Drop for Batch<C> {
    fn drop(&mut self) {
        if !self.settled {
            tracing::warn!(requests = self.jobs.len(), "a batch was dropped unfinished: its instance is lost");
            self.settle(std::iter::empty(), lost);
        }
    }
}

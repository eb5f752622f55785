//! A load that is under way: threads, each with a runtime of its own, and what they found.

use crate::connection::{Common, Target};
use crate::item::{Item, SequencePlan};
use crate::record::{Record, Records};
use crate::workers::{Crew, Shared};
use crate::{Error, now};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::runtime::Builder;
use tokio::task::LocalSet;

/// From the start of a run to the first request that is due: connections' threads are there by then.
const HEAD_START: u64 = 5_000_000;
const MOST_THREADS: usize = 64;
const MOST_CONNECTIONS: usize = 16384;

/// When requests are sent.
#[derive(Clone, Debug)]
pub enum Pace {
    /// So many at once, each as soon as the one before it is answered.
    Closed { concurrency: usize },
    /// At these nanoseconds from the start, ascending; again after the last.
    Schedule { offsets: Vec<u64> },
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub target: Target,
    pub items: Vec<Item>,
    pub pace: Pace,
    pub sequences: Option<SequencePlan>,
    pub threads: usize,
    /// By a schedule: requests that may be under way at once. What is due beyond that waits, which counts.
    pub most_connections: usize,
    pub answer_within: Duration,
}

/// Ends when it is dropped.
pub struct Run {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// Kernel's numbers of the threads, for their CPU time.
    pub thread_ids: Vec<i32>,
    /// When the first request was due.
    pub started: u64,
}

impl Run {
    pub fn start(plan: Plan) -> Result<Run, Error> {
        check(&plan)?;
        let common = plan.target.common()?;
        let shared = Arc::new(Shared {
            items: plan.items,
            records: Records::default(),
            stopping: AtomicBool::new(false),
            count: AtomicU64::new(0),
            sequences: plan.sequences,
            next_sequence: AtomicU64::new(0),
            answer_within: plan.answer_within,
        });
        let started = now() + HEAD_START;
        let (ids, numbers) = channel();
        let mut run = Run { shared, threads: Vec::new(), thread_ids: Vec::new(), started };
        for (number, part) in parts(&plan.pace, plan.threads, plan.most_connections).into_iter().enumerate() {
            let (shared, common, ids) = (run.shared.clone(), common.clone(), ids.clone());
            let thread = std::thread::Builder::new().name(format!("penstock-load-{number}"));
            run.threads.push(thread.spawn(move || work(shared, common, part, started, ids))?);
        }
        drop(ids);
        run.thread_ids = numbers.iter().collect();
        Ok(run)
    }

    /// Records since the last time, in no order.
    pub fn take(&self) -> Vec<Record> {
        self.shared.records.take()
    }

    /// What was said of requests that failed, and how often.
    pub fn messages(&self) -> Vec<(String, u64)> {
        self.shared.records.messages()
    }

    /// Nothing more is sent; returns when what was under way is answered.
    pub fn stop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // One that panicked said so on standard error.
            drop(thread.join());
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.stop();
    }
}

fn check(plan: &Plan) -> Result<(), Error> {
    let problem = match &plan.pace {
        _ if plan.items.is_empty() => "there is nothing to send",
        _ if !(1..=MOST_THREADS).contains(&plan.threads) => "expected from 1 to 64 threads",
        Pace::Closed { concurrency } if !(1..=MOST_CONNECTIONS).contains(concurrency) => {
            "expected a concurrency from 1 to 16384"
        }
        Pace::Schedule { .. } if !(1..=MOST_CONNECTIONS).contains(&plan.most_connections) => {
            "expected from 1 to 16384 connections"
        }
        Pace::Schedule { offsets } if offsets.last().is_none_or(|last| *last == 0) => "the schedule is empty",
        Pace::Schedule { offsets } if !offsets.is_sorted() => "the schedule does not ascend",
        _ if plan.sequences.is_some_and(|plan| plan.length == 0) => "expected sequences of one request at least",
        _ => return Ok(()),
    };
    Err(Error::Invalid(problem.into()))
}

/// One thread's share.
enum Part {
    Closed(usize),
    Schedule { offsets: Vec<u64>, period: u64, most: usize },
}

fn parts(pace: &Pace, threads: usize, most: usize) -> Vec<Part> {
    let share = |all: usize, number: usize| all / threads + usize::from(number < all % threads);
    match pace {
        Pace::Closed { concurrency } => {
            (0..threads.min(*concurrency)).map(|number| Part::Closed(share(*concurrency, number))).collect()
        }
        Pace::Schedule { offsets } => {
            let threads = threads.min(offsets.len()).min(most);
            let period = offsets.last().copied().unwrap_or(0);
            (0..threads)
                .map(|number| {
                    let own = offsets.iter().skip(number).step_by(threads).copied().collect();
                    Part::Schedule { offsets: own, period, most: share(most, number) }
                })
                .collect()
        }
    }
}

fn work(shared: Arc<Shared>, common: Common, part: Part, started: u64, ids: Sender<i32>) {
    // Nobody listens only where the run is gone already.
    let _ = ids.send(rustix::thread::gettid().as_raw_nonzero().get());
    drop(ids); // whoever started waits for all numbers, and for nothing else
    let runtime = match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return shared.records.note(&format!("a thread of the generator: {error}")),
    };
    let local = LocalSet::new();
    local.block_on(&runtime, async {
        let crew = Crew::new(shared.clone(), common);
        match part {
            Part::Closed(concurrency) => crew.closed_loop(concurrency).await,
            Part::Schedule { offsets, period, most } => {
                if let Err(error) = crew.scheduled(started, offsets, period, most).await {
                    shared.records.note(&format!("the timer of the generator: {error}"));
                }
            }
        }
    });
}

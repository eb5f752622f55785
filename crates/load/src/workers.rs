//! Who sends: in a closed loop each worker as soon as it has its answer; by a schedule whoever is free when one is due.

use crate::clock::{Timer, now};
use crate::connection::{Common, Connection, Failure};
use crate::item::{Item, Mark, Prepared, SequencePlan};
use crate::record::{Outcome, Record, Records};
use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::spawn_local;

/// Between a connection that failed and the next attempt.
const PAUSE: Duration = Duration::from_millis(20);
/// A schedule is left for a moment, so that a run can end between two requests that are far apart.
const LOOK_UP: u64 = 50_000_000;

/// What all threads of a run share.
pub(crate) struct Shared {
    pub(crate) items: Vec<Item>,
    pub(crate) records: Records,
    pub(crate) stopping: AtomicBool,
    /// Requests that were due, so far; chooses the next item.
    pub(crate) count: AtomicU64,
    pub(crate) sequences: Option<SequencePlan>,
    pub(crate) next_sequence: AtomicU64,
    pub(crate) answer_within: Duration,
}

impl Shared {
    fn stops(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }
}

/// One thread's.
pub(crate) struct Crew {
    shared: Arc<Shared>,
    common: Common,
    prepared: Vec<Prepared>,
    /// When requests were due that nobody has taken yet.
    backlog: RefCell<VecDeque<u64>>,
    /// Who waits for one, the last to come on top: few connections stay warm, and the others are not touched.
    idle: RefCell<Vec<Rc<Notify>>>,
    workers: Cell<usize>,
}

impl Crew {
    pub(crate) fn new(shared: Arc<Shared>, common: Common) -> Rc<Crew> {
        let prepared = shared.items.iter().map(|item| item.prepared(&common, None)).collect();
        Rc::new(Crew {
            shared,
            common,
            prepared,
            backlog: RefCell::default(),
            idle: RefCell::default(),
            workers: Cell::new(0),
        })
    }

    /// Each of `count` workers sends, waits for the answer, and sends again. Ends when the run does.
    pub(crate) async fn closed_loop(self: Rc<Crew>, count: usize) {
        let workers: Vec<_> = (0..count).map(|_| spawn_local(self.clone().repeat())).collect();
        for worker in workers {
            // A worker that panicked was reported by its thread.
            drop(worker.await);
        }
    }

    async fn repeat(self: Rc<Crew>) {
        let mut worker = Worker::new(&self);
        while !self.shared.stops() {
            if worker.connected().await {
                let at = now();
                worker.send(at, at).await;
            }
        }
    }

    /// Requests are due at `start` plus each offset, and again every `period`. No more than `most` are under way.
    pub(crate) async fn scheduled(
        self: Rc<Crew>,
        start: u64,
        offsets: Vec<u64>,
        period: u64,
        most: usize,
    ) -> std::io::Result<()> {
        let timer = Timer::new()?;
        let mut begin = start;
        'run: loop {
            for offset in &offsets {
                let due = begin + offset;
                while now() < due {
                    timer.until(due.min(now() + LOOK_UP)).await?;
                    if self.shared.stops() {
                        break 'run;
                    }
                }
                if self.shared.stops() {
                    break 'run;
                }
                self.give(due, most);
                // Answers are read even where requests are overdue all the time.
                if now() > due + LOOK_UP / 1000 {
                    tokio::task::yield_now().await;
                }
            }
            begin += period;
        }
        while self.workers.get() > 0 {
            self.idle.take().iter().for_each(|each| each.notify_one());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let received = now();
        for scheduled in self.backlog.take() {
            self.shared.records.push(Record { scheduled, sent: 0, received, outcome: Outcome::Unsent, item: 0 });
        }
        Ok(())
    }

    fn give(self: &Rc<Crew>, due: u64, most: usize) {
        self.backlog.borrow_mut().push_back(due);
        let idle = self.idle.borrow_mut().pop();
        if let Some(idle) = idle {
            idle.notify_one();
        } else if self.workers.get() < most {
            self.workers.set(self.workers.get() + 1);
            spawn_local(self.clone().serve());
        }
    }

    async fn serve(self: Rc<Crew>) {
        let mut worker = Worker::new(&self);
        let called = Rc::new(Notify::new());
        while !self.shared.stops() {
            let due = self.backlog.borrow_mut().pop_front();
            match due {
                Some(due) => {
                    while !worker.connected().await && !self.shared.stops() {}
                    worker.send(due, now()).await;
                }
                None => {
                    self.idle.borrow_mut().push(called.clone());
                    called.notified().await;
                }
            }
        }
        self.workers.set(self.workers.get() - 1);
    }
}

/// One connection, and the sequence that goes over it.
struct Worker {
    crew: Rc<Crew>,
    connection: Option<Connection>,
    sequence: u64,
    at: u64,
}

impl Worker {
    fn new(crew: &Rc<Crew>) -> Worker {
        Worker { crew: crew.clone(), connection: None, sequence: 0, at: 0 }
    }

    /// Whether there is a connection now; says why not, and waits a moment.
    async fn connected(&mut self) -> bool {
        if self.connection.as_ref().is_some_and(Connection::is_open) {
            return true;
        }
        self.connection = None;
        let opening = tokio::time::timeout(self.crew.shared.answer_within, Connection::open(&self.crew.common));
        match opening.await.unwrap_or_else(|_| Err("no connection in time".into())) {
            Ok(connection) => self.connection = Some(connection),
            Err(problem) => {
                self.crew.shared.records.note(&format!("no connection: {problem}"));
                tokio::time::sleep(PAUSE).await;
            }
        }
        self.connection.is_some()
    }

    async fn send(&mut self, scheduled: u64, sent: u64) {
        let crew = self.crew.clone();
        let shared = &crew.shared;
        let number = shared.count.fetch_add(1, Ordering::Relaxed);
        let index = (number % crew.prepared.len() as u64) as usize;
        let (Some(connection), Some(plain)) = (self.connection.as_mut(), crew.prepared.get(index)) else { return };
        let marked = shared.sequences.map(|plan| {
            if self.at == 0 {
                self.sequence = plan.first + shared.next_sequence.fetch_add(1, Ordering::Relaxed);
            }
            self.at += 1;
            let mark = Mark { sequence: self.sequence, start: self.at == 1, end: self.at == plan.length };
            self.at %= plan.length;
            shared.items[index].prepared(&crew.common, Some(mark))
        });
        let exchange = connection.exchange(&crew.common, marked.as_ref().unwrap_or(plain), false);
        let answered = match tokio::time::timeout(shared.answer_within, exchange).await {
            Ok(answered) => answered,
            Err(_) => Err(Failure::Lost(format!("no answer within {:?}", shared.answer_within))),
        };
        let outcome = self.judged(answered);
        let received = now();
        let item = index as u32;
        shared.records.push(Record { scheduled, sent, received, outcome, item });
        if outcome == Outcome::Lost {
            self.connection = None;
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn judged(&self, answered: Result<Bytes, Failure>) -> Outcome {
        let Err(failure) = answered else { return Outcome::Answered };
        let outcome = match failure {
            Failure::Refused(_) => Outcome::Refused,
            Failure::Lost(_) => Outcome::Lost,
            Failure::Wrong => Outcome::Wrong,
        };
        self.crew.shared.records.note(&failure.text());
        outcome
    }
}

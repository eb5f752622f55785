//! A discrete-event simulation around the real queue: virtual time, virtual clients, virtual models. It owns the clock and
//! pulls without blocking, so a second of a server's life takes milliseconds and comes out the same every time.

use penstock_dispatch::{Attempt, Batch, Job, Mailbox, Manual, Mode, Nanos, Queue, Settings, reply};
use penstock_schema::{Inputs, Outputs};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

pub const US: Nanos = 1_000;
pub const MS: Nanos = 1_000_000;
pub const SECOND: Nanos = 1_000_000_000;

/// xorshift64*: the simulation must not depend on a library's choice of generator.
pub struct Random(u64);

impl Random {
    pub fn unit(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1u64 << 53) as f64
    }

    pub fn between(&mut self, low: Nanos, high: Nanos) -> Nanos {
        low + (self.unit() * (high - low) as f64) as Nanos
    }

    pub fn exponential(&mut self, mean: Nanos) -> Nanos {
        (-(1.0 - self.unit()).ln() * mean as f64) as Nanos
    }
}

/// How one client behaves after it got an answer.
#[derive(Clone)]
pub enum Client {
    /// Comes back after a time drawn from the range.
    Loop(Nanos, Nanos),
    /// As `Loop`, and leaves for good at the third value.
    Until(Nanos, Nanos, Nanos),
}

pub struct World {
    pub clients: Vec<Client>,
    /// Mean time between arrivals of an open loop beside the clients.
    pub poisson: Option<Nanos>,
    pub cost: fn(u32) -> Nanos,
    pub instances: u32,
    pub max_batch: u32,
    pub mode: Mode,
    pub duration: Nanos,
    /// Not measured.
    pub warm_up: Nanos,
    pub seed: u64,
}

impl Default for World {
    fn default() -> World {
        World {
            clients: Vec::new(),
            poisson: None,
            cost: |_| 5 * MS,
            instances: 1,
            max_batch: 64,
            mode: Mode::Auto,
            duration: 4 * SECOND,
            warm_up: SECOND / 2,
            seed: 0x9E37_79B9_7F4A_7C15,
        }
    }
}

pub struct Report {
    pub throughput: f64,
    pub mean_batch: f64,
    latencies: Vec<Nanos>,
    /// Time between the arrival of the batch's last request and the pull, where an instance was free: pure waiting.
    pub longest_wait: Nanos,
    pub waited: Nanos,
    pub batches: u64,
}

impl Report {
    pub fn percentile(&self, share: f64) -> Nanos {
        self.latencies[((self.latencies.len() - 1) as f64 * share) as usize]
    }

    pub fn mean(&self) -> f64 {
        self.latencies.iter().sum::<Nanos>() as f64 / self.latencies.len() as f64
    }
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrive(Option<usize>),
    Finish(usize),
    Timer,
}

type Receiver = penstock_dispatch::Receiver;

/// Plays the world through the real queue.
pub fn run(world: &World) -> Report {
    let clock = Arc::new(Manual::default());
    let settings = Settings { mode: world.mode.clone(), ..Settings::auto(world.max_batch, world.instances) };
    let queue = Queue::new(settings, clock.clone());
    let mailbox = Mailbox::new();
    let mut random = Random(world.seed);
    let mut events = BinaryHeap::new();
    let mut order = 0u64;
    let mut running: Vec<Option<Batch<Arc<Manual>>>> = (0..world.instances).map(|_| None).collect();
    let mut receivers: Vec<Option<Receiver>> = Vec::new();
    let mut free: Vec<usize> = Vec::new();
    let mut owners: Vec<Option<usize>> = Vec::new();
    let mut report =
        Report { throughput: 0.0, mean_batch: 0.0, latencies: Vec::new(), longest_wait: 0, waited: 0, batches: 0 };
    let mut rows = 0u64;
    // Since when an instance was free and something queued.
    let mut offered: Option<Nanos> = None;
    let mut schedule = |events: &mut BinaryHeap<_>, at: Nanos, event: Event| {
        order += 1;
        events.push(Reverse((at, order, event)));
    };
    for client in 0..world.clients.len() {
        let at = random.between(0, MS);
        schedule(&mut events, at, Event::Arrive(Some(client)));
    }
    if let Some(mean) = world.poisson {
        schedule(&mut events, random.exponential(mean), Event::Arrive(None));
    }
    let mut next_timer = Nanos::MAX;
    while let Some(Reverse((now, _, event))) = events.pop() {
        if now > world.duration {
            break;
        }
        clock.set(now);
        match event {
            Event::Arrive(client) => {
                let (reply, receiver) = reply(&mailbox);
                let slot = free.pop().unwrap_or_else(|| {
                    receivers.push(None);
                    owners.push(None);
                    receivers.len() - 1
                });
                receivers[slot] = Some(receiver);
                owners[slot] = client;
                let job = Job {
                    inputs: Inputs::new(),
                    rows: 1,
                    bytes: slot,
                    key: 0,
                    extent: 0,
                    priority: 0,
                    timeout: None,
                    deadline: None,
                    arrived: now,
                    id: Box::default(),
                    taken: None,
                    on_device: false,
                    reply,
                };
                assert!(queue.submit(job).is_ok(), "the simulated queue has no bound");
                if client.is_none()
                    && let Some(mean) = world.poisson
                {
                    schedule(&mut events, now + random.exponential(mean), Event::Arrive(None));
                }
            }
            Event::Finish(instance) => {
                let batch = running[instance].take().expect("a batch runs there");
                let measured = now >= world.warm_up;
                if measured {
                    report.batches += 1;
                    rows += u64::from(batch.rows);
                }
                for job in &batch.jobs {
                    if measured {
                        report.latencies.push(now - job.arrived);
                    }
                    let slot = job.bytes;
                    let Some(client) = owners[slot] else { continue };
                    match world.clients[client] {
                        Client::Loop(low, high) => {
                            schedule(&mut events, now + random.between(low, high), Event::Arrive(Some(client)));
                        }
                        Client::Until(low, high, end) if now < end => {
                            schedule(&mut events, now + random.between(low, high), Event::Arrive(Some(client)));
                        }
                        Client::Until(..) => {}
                    }
                }
                let slots: Vec<usize> = batch.jobs.iter().map(|job| job.bytes).collect();
                let answers: Vec<_> = batch.jobs.iter().map(|_| Ok(Outputs::new())).collect();
                batch.finish(answers);
                for slot in slots {
                    receivers[slot] = None;
                    free.push(slot);
                }
            }
            Event::Timer => {
                if now < next_timer {
                    continue;
                }
                next_timer = Nanos::MAX;
            }
        }
        for (instance, place) in running.iter_mut().enumerate() {
            if place.is_some() {
                continue;
            }
            match queue.try_pull() {
                Attempt::Batch(batch) => {
                    let waited = now - offered.take().unwrap_or(now);
                    if now >= world.warm_up {
                        report.longest_wait = report.longest_wait.max(waited);
                        report.waited += waited;
                    }
                    schedule(&mut events, now + (world.cost)(batch.rows), Event::Finish(instance));
                    *place = Some(batch);
                }
                Attempt::WaitUntil(until) => {
                    offered.get_or_insert(now);
                    assert!(until > now, "waits for the past");
                    if until != next_timer {
                        next_timer = until;
                        schedule(&mut events, until, Event::Timer);
                    }
                    break;
                }
                Attempt::Idle | Attempt::Closed => break,
            }
        }
    }
    report.latencies.sort_unstable();
    let seconds = (world.duration - world.warm_up) as f64 / SECOND as f64;
    report.throughput = report.latencies.len() as f64 / seconds;
    report.mean_batch = rows as f64 / report.batches.max(1) as f64;
    report
}

//! What the queue costs, and what the auto policy makes of a real closed loop on this machine.
//!
//! `cargo run --release -p penstock-dispatch --example cost`
#![allow(clippy::unwrap_used, reason = "a measurement, not a server")]

use penstock_dispatch::{Batch, Clock, Job, Mailbox, Mode, Monotonic, Nudge, Queue, Receiver, Settings, reply};
use penstock_schema::{Inputs, Outputs};
use std::hint::black_box;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

fn job(mailbox: &Arc<Mailbox>) -> (Job, Receiver) {
    let (reply, receiver) = reply(mailbox);
    let job = Job {
        inputs: Inputs::new(),
        rows: 1,
        bytes: 64,
        key: 1,
        extent: 0,
        priority: 0,
        timeout: None,
        deadline: None,
        arrived: Monotonic.now(),
        id: Box::default(),
        taken: None,
        on_device: false,
        reply,
    };
    (job, receiver)
}

fn finish(batch: Batch) {
    let count = batch.jobs.len();
    batch.finish((0..count).map(|_| Ok(Outputs::new())));
}

fn submit(queue: &Queue, job: Job) {
    match queue.submit(job).map_err(|(_, error)| error).unwrap() {
        Nudge::Later => {}
        Nudge::Now => queue.nudge(),
    }
}

fn one_thread(size: usize) -> f64 {
    let queue = Queue::new(Settings::auto(64, 1), Monotonic);
    let mailbox = Mailbox::new();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let rounds = 400_000 / size;
    let mut receivers = Vec::with_capacity(size);
    runtime.block_on(async {
        let run = tokio::spawn(mailbox.clone().run());
        let start = Instant::now();
        for _ in 0..rounds {
            for _ in 0..size {
                let (job, receiver) = job(&mailbox);
                submit(&queue, job);
                receivers.push(receiver);
            }
            finish(queue.pull(0).unwrap());
            for receiver in receivers.drain(..) {
                black_box(receiver.await.unwrap().unwrap());
            }
        }
        run.abort();
        start.elapsed().as_nanos() as f64 / (rounds * size) as f64
    })
}

/// Context switches that this thread chose, from the kernel's own count.
fn voluntary_switches() -> u64 {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

struct Loop {
    per_second: f64,
    mean_batch: f64,
    switches_per_request: f64,
}

/// Clients in a closed loop on one shard thread, one instance that takes `execution` per batch.
fn closed_loop(mode: Mode, clients: usize, execution: Duration, duration: Duration) -> Loop {
    let queue = Queue::new(Settings { mode, ..Settings::auto(64, 1) }, Monotonic);
    let instance = {
        let queue = queue.clone();
        thread::spawn(move || {
            let (mut requests, mut batches) = (0, 0);
            while let Some(batch) = queue.pull(0) {
                requests += batch.jobs.len();
                batches += 1;
                if !execution.is_zero() {
                    thread::sleep(execution);
                }
                finish(batch);
            }
            let slept = if execution.is_zero() { 0 } else { batches };
            (requests, batches, voluntary_switches().saturating_sub(slept))
        })
    };
    let nudged = queue.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().on_thread_park(move || nudged.nudge()).build().unwrap();
    let mailbox = Mailbox::new();
    let start = Instant::now();
    runtime.block_on(async {
        let run = tokio::spawn(mailbox.clone().run());
        let client = || {
            let (queue, mailbox) = (queue.clone(), mailbox.clone());
            async move {
                while start.elapsed() < duration {
                    let (job, receiver) = job(&mailbox);
                    submit(&queue, job);
                    black_box(receiver.await.unwrap().unwrap());
                }
            }
        };
        let clients: Vec<_> = (0..clients).map(|_| tokio::spawn(client())).collect();
        for client in clients {
            client.await.unwrap();
        }
        run.abort();
    });
    let seconds = start.elapsed().as_secs_f64();
    queue.close();
    let (requests, batches, switches) = instance.join().unwrap();
    Loop {
        per_second: requests as f64 / seconds,
        mean_batch: requests as f64 / batches as f64,
        switches_per_request: switches as f64 / requests as f64,
    }
}

fn main() {
    for size in [1, 64] {
        println!("one thread, batches of {size}: {:.0} ns a request", one_thread(size));
    }
    let second = Duration::from_secs(1);
    for clients in [1, 64] {
        let Loop { per_second, mean_batch, switches_per_request } =
            closed_loop(Mode::Auto, clients, Duration::ZERO, second);
        println!(
            "two threads, {clients} clients: {:.0} ns a request, batches of {mean_batch:.1}, \
             {switches_per_request:.3} sleeps of the instance a request",
            1e9 / per_second
        );
    }
    for (name, mode) in [("auto", Mode::Auto), ("greedy", Mode::Triton { preferred: Vec::new(), max_delay: 0 })] {
        for clients in [1, 16, 64] {
            let it = closed_loop(mode.clone(), clients, Duration::from_millis(5), 2 * second);
            println!(
                "{name}, {clients} clients, 5 ms a batch: {:.0} a second ({:.0} % of the ceiling), batches of {:.1}",
                it.per_second,
                it.per_second / (clients as f64 * 200.0) * 100.0,
                it.mean_batch
            );
        }
    }
}

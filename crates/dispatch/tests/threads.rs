//! Real threads: nothing is lost, nothing is doubled, order is kept, and sleepers are woken.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

mod fixture;

use fixture::succeed;
use penstock_dispatch::{Clock, Job, Mailbox, Mode, Monotonic, Nudge, Queue, Receiver, Settings, reply};
use penstock_schema::{Code, DataType, Error, Inputs, Outputs, Shape, Tensor};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

fn job(mailbox: &Arc<Mailbox>, number: u64) -> (Job, Receiver) {
    let (reply, receiver) = reply(mailbox);
    let tensor = Tensor::new(DataType::Uint64, Shape::from_slice(&[1]), number.to_le_bytes().to_vec().into());
    let job = Job {
        inputs: Inputs::from_iter([Some(tensor)]),
        rows: 1,
        bytes: 8,
        key: 0,
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

/// The answer of a job is its own input.
fn echo(job: &Job) -> penstock_dispatch::Answer {
    Ok(Outputs::from_iter(job.inputs.iter().flatten().cloned()))
}

fn instances(queue: &Arc<Queue>, count: usize) -> Vec<thread::JoinHandle<u64>> {
    let serve = |instance: usize| {
        let queue = queue.clone();
        move || {
            let mut served = 0;
            while let Some(batch) = queue.pull(instance) {
                served += batch.jobs.len() as u64;
                let answers: Vec<_> = batch.jobs.iter().map(echo).collect();
                batch.finish(answers);
            }
            served
        }
    };
    (0..count).map(|instance| thread::spawn(serve(instance))).collect()
}

/// A shard with `concurrency` clients in a closed loop; each submits until the queue is closed. Gives the number served.
fn shard(queue: &Arc<Queue>, concurrency: u64, requests: u64) -> u64 {
    let nudged = queue.clone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .on_thread_park(move || nudged.nudge())
        .build()
        .expect("a runtime");
    let mailbox = Mailbox::new();
    let served = Arc::new(AtomicU64::new(0));
    runtime.block_on(async {
        let run = tokio::spawn(mailbox.clone().run());
        let client = |client: u64| {
            let (queue, mailbox, served) = (queue.clone(), mailbox.clone(), served.clone());
            async move {
                for number in 0..requests {
                    let number = client * requests + number;
                    let (job, receiver) = job(&mailbox, number);
                    match queue.submit(job) {
                        Ok(Nudge::Later) => {}
                        Ok(Nudge::Now) => queue.nudge(),
                        Err((job, error)) => {
                            assert_eq!(error.code, Code::Unavailable, "closed");
                            job.reply.disarm();
                            return;
                        }
                    }
                    let outputs = receiver.await.expect("exactly one answer").expect("served");
                    assert_eq!(outputs[0].data.as_ref(), number.to_le_bytes(), "somebody else's answer");
                    served.fetch_add(1, Ordering::Relaxed);
                }
            }
        };
        let clients: Vec<_> = (0..concurrency).map(|number| tokio::spawn(client(number))).collect();
        for client in clients {
            client.await.expect("a client's assertions hold");
        }
        run.abort();
    });
    served.load(Ordering::Relaxed)
}

#[test]
fn every_request_is_answered_once_with_its_own_answer() {
    for mode in [Mode::Auto, Mode::Off, Mode::Triton { preferred: vec![4], max_delay: 100_000 }] {
        for count in [1, 3] {
            let settings = Settings { mode: mode.clone(), ..Settings::auto(8, count) };
            let queue = Queue::new(settings, Monotonic);
            let instances = instances(&queue, count as usize);
            let shards: Vec<_> = (0..2)
                .map(|_| {
                    let queue = queue.clone();
                    thread::spawn(move || shard(&queue, 16, 200))
                })
                .collect();
            let served: u64 = shards.into_iter().map(|shard| shard.join().expect("a shard")).sum();
            queue.close();
            let executed: u64 = instances.into_iter().map(|instance| instance.join().expect("an instance")).sum();
            assert_eq!((served, executed), (2 * 16 * 200, 2 * 16 * 200), "{mode:?}, {count} instances");
            assert_eq!(queue.statistics().success.count, executed);
            assert!(queue.is_drained());
        }
    }
}

#[test]
fn closing_under_load_loses_nothing() {
    for _ in 0..20 {
        let queue = Queue::new(Settings::auto(8, 2), Monotonic);
        let instances = instances(&queue, 2);
        let shard = {
            let queue = queue.clone();
            thread::spawn(move || shard(&queue, 16, u64::MAX / 32))
        };
        while queue.statistics().success.count < 200 {
            thread::yield_now();
        }
        queue.close();
        let served = shard.join().expect("a shard");
        let executed: u64 = instances.into_iter().map(|instance| instance.join().expect("an instance")).sum();
        assert_eq!(served, executed);
        assert!(queue.is_drained());
    }
}

#[test]
fn answers_leave_in_order_when_asked_to() {
    let queue = Queue::new(Settings { preserve_ordering: true, mode: Mode::Off, ..Settings::auto(1, 3) }, Monotonic);
    let mailbox = Mailbox::new();
    let mut receivers = Vec::new();
    for number in 0..3 {
        let (job, receiver) = job(&mailbox, number);
        assert!(queue.submit(job).is_ok());
        receivers.push(receiver);
    }
    let mut batches: Vec<_> = (0..3).filter_map(|instance| queue.pull(instance)).collect();
    // The last one first, the middle one lost: none may be seen before the first is done.
    succeed(batches.remove(2));
    drop(batches.remove(1));
    fixture::deliver(&mailbox);
    assert!(receivers.iter_mut().all(|receiver| receiver.try_recv().is_err()));
    succeed(batches.remove(0));
    fixture::deliver(&mailbox);
    let answers: Vec<Result<_, Error>> = receivers.iter_mut().map(|it| it.try_recv().expect("an answer")).collect();
    assert_eq!(answers.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
}

#[test]
fn a_parked_instance_is_woken_by_close() {
    let queue = Queue::new(Settings::auto(8, 2), Monotonic);
    let instances = instances(&queue, 2);
    queue.close();
    for instance in instances {
        assert_eq!(instance.join().expect("an instance"), 0);
    }
}

//! Whatever happens in whatever order: every job is answered exactly once, no batch breaks a rule, counters add up.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

mod fixture;

use fixture::{Fixture, MS, ManualBatch, deliver, succeed};
use penstock_dispatch::{Mode, QueuePolicy, Receiver, Settings, TimeoutAction};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Submit { rows: u32, key: u64, extent: i64, priority: u32, timeout: Option<u64>, deadline: Option<u64> },
    Cancel(usize),
    Pull,
    Finish(usize),
    Lose(usize),
    Advance(u64),
    Expire,
}

fn step() -> impl Strategy<Value = Step> {
    let submit = (1..5u32, 0..2u64, 0..300i64, 0..4u32, prop::option::of(1..5u64), prop::option::of(1..9u64)).prop_map(
        |(rows, key, extent, priority, timeout, deadline)| Step::Submit {
            rows,
            key,
            extent,
            priority,
            timeout,
            deadline,
        },
    );
    prop_oneof![
        8 => submit,
        1 => any::<usize>().prop_map(Step::Cancel),
        4 => Just(Step::Pull),
        3 => any::<usize>().prop_map(Step::Finish),
        1 => any::<usize>().prop_map(Step::Lose),
        2 => (0..3u64).prop_map(Step::Advance),
        1 => Just(Step::Expire),
    ]
}

fn settings() -> impl Strategy<Value = Settings> {
    let mode = prop_oneof![
        Just(Mode::Auto),
        Just(Mode::Off),
        Just(Mode::Triton { preferred: vec![], max_delay: 0 }),
        Just(Mode::Triton { preferred: vec![2, 4], max_delay: MS }),
    ];
    (mode, 0..9u32, 1..4u32, any::<bool>(), any::<bool>(), 1..20u64, 0..4u32).prop_map(
        |(mode, max_batch_size, instances, preserve_ordering, delay, max_requests, priority_levels)| Settings {
            mode,
            preserve_ordering,
            max_requests,
            priority_levels,
            default_policy: QueuePolicy {
                timeout_action: if delay { TimeoutAction::Delay } else { TimeoutAction::Reject },
                allow_override: true,
                ..QueuePolicy::default()
            },
            ..Settings::auto(max_batch_size, instances)
        },
    )
}

fn check(batch: &ManualBatch, settings: &Settings, now: u64) {
    let rows: u32 = batch.jobs.iter().map(|job| job.rows).sum();
    assert_eq!(rows, batch.rows);
    assert!(batch.jobs.len() == 1 || rows <= settings.max_batch_size, "a batch of {rows}");
    assert!(batch.jobs.iter().all(|job| job.key == batch.jobs[0].key));
    let extents = batch.jobs.iter().map(|job| job.extent.max(1));
    assert!(extents.clone().max() <= extents.min().map(|smallest| smallest * 2));
    assert!(batch.jobs.iter().all(|job| job.deadline.is_none_or(|deadline| deadline > now)), "past its deadline");
    assert!(batch.jobs.iter().all(|job| !job.reply.is_closed()), "cancelled");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_job_is_answered_exactly_once(settings in settings(), steps in prop::collection::vec(step(), 1..120)) {
        let fixture = Fixture::new(settings.clone());
        let mut now = 0;
        let (mut waiting, mut cancelled, mut refused): (Vec<Receiver>, u64, u64) = (Vec::new(), 0, 0);
        let mut running = Vec::new();
        for step in steps {
            match step {
                Step::Submit { rows, key, extent, priority, timeout, deadline } => {
                    let submitted = fixture.try_submit(|job| {
                        (job.rows, job.key, job.extent, job.priority) = (rows, key, extent, priority);
                        job.timeout = timeout.map(|ms| ms * MS);
                        job.deadline = deadline.map(|ms| now + ms * MS);
                    });
                    match submitted {
                        Ok(receiver) => waiting.push(receiver),
                        Err(_) => refused += 1,
                    }
                }
                Step::Cancel(index) if !waiting.is_empty() => {
                    drop(waiting.swap_remove(index % waiting.len()));
                    cancelled += 1;
                }
                Step::Pull if running.len() < settings.instances as usize => {
                    if let Some(batch) = fixture.pull() {
                        check(&batch, &settings, now);
                        running.push(batch);
                    }
                }
                Step::Finish(index) if !running.is_empty() => succeed(running.swap_remove(index % running.len())),
                Step::Lose(index) if !running.is_empty() => drop(running.swap_remove(index % running.len())),
                Step::Advance(ms) => {
                    now += ms * MS;
                    fixture.clock.set(now);
                }
                Step::Expire => fixture.queue.expire(),
                Step::Cancel(_) | Step::Pull | Step::Finish(_) | Step::Lose(_) => {}
            }
            let statistics = fixture.queue.statistics();
            prop_assert!(statistics.pending <= settings.max_requests);
            prop_assert_eq!(statistics.in_flight, running.iter().map(|batch| batch.jobs.len() as u64).sum::<u64>());
        }
        fixture.queue.close();
        running.drain(..).for_each(succeed);
        while let Some(batch) = fixture.pull() {
            check(&batch, &settings, now);
            succeed(batch);
        }
        prop_assert!(fixture.queue.is_drained());
        deliver(&fixture.mailbox);
        let statistics = fixture.queue.statistics();
        prop_assert_eq!(statistics.rejected, refused);
        prop_assert_eq!(statistics.success.count + statistics.fail.count, waiting.len() as u64 + cancelled + refused);
        for receiver in &mut waiting {
            prop_assert!(receiver.try_recv().is_ok(), "unanswered");
        }
    }
}

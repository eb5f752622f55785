//! Triton's dynamic batcher, as tables: what is queued, when, and what is sent.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

mod fixture;

use fixture::{Fixture, MS, US, triton};
use penstock_dispatch::{Attempt, Mode, Nanos, Settings};

struct Case {
    name: &'static str,
    max_batch_size: u32,
    preferred: &'static [u32],
    max_delay: Nanos,
    /// (time, rows, key)
    queued: &'static [(Nanos, u32, u64)],
    at: Nanos,
    sent: Option<&'static [u32]>,
}

#[test]
fn walks_the_queue_in_order_and_sends_what_triton_would() {
    let ones: &'static [(Nanos, u32, u64)] = &[(0, 1, 0); 7];
    let cases = [
        Case {
            name: "no delay sends what is there",
            max_batch_size: 8,
            preferred: &[],
            max_delay: 0,
            queued: ones,
            at: 0,
            sent: Some(&[1; 7]),
        },
        Case {
            name: "a full batch doesn't wait",
            max_batch_size: 4,
            preferred: &[],
            max_delay: MS,
            queued: ones,
            at: 0,
            sent: Some(&[1; 4]),
        },
        Case {
            name: "less than a full one waits",
            max_batch_size: 8,
            preferred: &[],
            max_delay: MS,
            queued: ones,
            at: MS - 1,
            sent: None,
        },
        Case {
            name: "until the delay has passed",
            max_batch_size: 8,
            preferred: &[],
            max_delay: MS,
            queued: ones,
            at: MS,
            sent: Some(&[1; 7]),
        },
        Case {
            name: "the largest preferred size met",
            max_batch_size: 8,
            preferred: &[2, 4],
            max_delay: MS,
            queued: ones,
            at: 0,
            sent: Some(&[1; 4]),
        },
        Case {
            name: "a preferred size without delay",
            max_batch_size: 8,
            preferred: &[4],
            max_delay: 0,
            queued: ones,
            at: 0,
            sent: Some(&[1; 4]),
        },
        Case {
            name: "no preferred size met yet",
            max_batch_size: 16,
            preferred: &[8],
            max_delay: MS,
            queued: ones,
            at: 0,
            sent: None,
        },
        Case {
            name: "past the delay all that is pending",
            max_batch_size: 8,
            preferred: &[4],
            max_delay: MS,
            queued: ones,
            at: MS,
            sent: Some(&[1; 7]),
        },
        Case {
            name: "the delay counts from the oldest",
            max_batch_size: 8,
            preferred: &[],
            max_delay: MS,
            queued: &[(0, 1, 0), (900 * US, 1, 0)],
            at: MS,
            sent: Some(&[1, 1]),
        },
        Case {
            name: "requests are never split",
            max_batch_size: 8,
            preferred: &[],
            max_delay: MS,
            queued: &[(0, 5, 0), (0, 5, 0)],
            at: 0,
            sent: Some(&[5]),
        },
        Case {
            name: "a step over every preferred size sends what is before it",
            max_batch_size: 16,
            preferred: &[4],
            max_delay: MS,
            queued: &[(0, 3, 0), (0, 3, 0)],
            at: 0,
            sent: Some(&[3]),
        },
        Case {
            name: "another shape ends the batch at once",
            max_batch_size: 8,
            preferred: &[],
            max_delay: MS,
            queued: &[(0, 1, 7), (0, 1, 8), (0, 1, 7)],
            at: 0,
            sent: Some(&[1]),
        },
        Case {
            name: "at the largest preferred size nothing is waited for",
            max_batch_size: 8,
            preferred: &[2],
            max_delay: MS,
            queued: &[(0, 2, 0)],
            at: 0,
            sent: Some(&[2]),
        },
        Case {
            name: "preferred sizes beyond the maximum don't count",
            max_batch_size: 4,
            preferred: &[64],
            max_delay: MS,
            queued: ones,
            at: 0,
            sent: Some(&[1; 4]),
        },
    ];
    for case in cases {
        let fixture = Fixture::new(triton(case.max_batch_size, case.preferred, case.max_delay));
        let receivers: Vec<_> = case
            .queued
            .iter()
            .map(|(time, rows, key)| {
                fixture.clock.set(*time);
                fixture.submit(|job| (job.rows, job.key) = (*rows, *key))
            })
            .collect();
        fixture.clock.set(case.at);
        assert_eq!(fixture.sent().as_deref(), case.sent, "{}", case.name);
        drop(receivers);
    }
}

#[test]
fn says_until_when_it_waits() {
    let fixture = Fixture::new(triton(8, &[], MS));
    fixture.clock.set(5 * MS);
    let _receiver = fixture.submit(|_| {});
    assert!(matches!(fixture.queue.try_pull(), Attempt::WaitUntil(until) if until == 6 * MS));
}

#[test]
fn a_batch_that_waits_for_an_instance_keeps_growing() {
    let fixture = Fixture::new(triton(8, &[], 0));
    let _first = fixture.submit(|_| {});
    let running = fixture.pull().expect("sent at once");
    let _others: Vec<_> = (0..5).map(|_| fixture.submit(|_| {})).collect();
    fixture::succeed(running);
    assert_eq!(fixture.sent(), Some(vec![1; 5]));
}

#[test]
fn a_preferred_batch_is_found_again_as_jobs_come_in() {
    let fixture = Fixture::new(triton(8, &[3], MS));
    let mut receivers = Vec::new();
    for expected in [None, None, Some(vec![1, 1, 1])] {
        receivers.push(fixture.submit(|_| {}));
        assert_eq!(fixture.sent(), expected);
    }
}

#[test]
fn without_batching_every_request_is_executed_alone() {
    let off = Settings { mode: Mode::Off, ..Settings::auto(8, 1) };
    for settings in [off, Settings::auto(0, 1)] {
        let fixture = Fixture::new(settings);
        let _receivers = [fixture.submit(|job| job.rows = 3), fixture.submit(|job| job.rows = 2)];
        assert_eq!(fixture.sent(), Some(vec![3]));
        assert_eq!(fixture.sent(), Some(vec![2]));
        assert_eq!(fixture.sent(), None);
    }
}

#[test]
fn auto_steps_over_other_shapes_and_keeps_their_order() {
    let fixture = Fixture::new(Settings::auto(8, 1));
    let _receivers: Vec<_> = [(1, 7), (2, 8), (3, 7), (4, 8)]
        .map(|(rows, key)| fixture.submit(|job| (job.rows, job.key) = (rows, key)))
        .into();
    assert_eq!(fixture.sent(), Some(vec![1, 3]));
    assert_eq!(fixture.sent(), Some(vec![2, 4]));
}

#[test]
fn padded_sizes_share_a_batch_up_to_a_ratio_of_two() {
    let fixture = Fixture::new(Settings::auto(8, 1));
    let _receivers: Vec<_> = [(1, 64), (2, 128), (3, 129), (4, 63), (5, 100)]
        .map(|(rows, extent)| fixture.submit(|job| (job.rows, job.extent) = (rows, extent)))
        .into();
    assert_eq!(fixture.sent(), Some(vec![1, 2, 5]));
    assert_eq!(fixture.sent(), Some(vec![3]), "129 and 63 are too far apart");
    assert_eq!(fixture.sent(), Some(vec![4]));
}

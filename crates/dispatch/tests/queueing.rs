//! Admission, order, timeouts, deadlines, cancellation, and the one answer of every job.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

mod fixture;

use fixture::{Fixture, MS, deliver, succeed, triton};
use penstock_dispatch::{Attempt, Nudge, QueuePolicy, Receiver, Settings, TimeoutAction};
use penstock_schema::{Code, Error, Outputs};

fn error(mut receiver: Receiver) -> Error {
    receiver.try_recv().expect("an answer").expect_err("an error")
}

#[test]
fn a_full_queue_refuses_and_gives_the_job_back() {
    struct Case {
        settings: Settings,
        bytes: usize,
        admitted: usize,
    }
    let open = || Settings::auto(8, 1);
    let level = QueuePolicy { max_queue_size: 3, ..QueuePolicy::default() };
    let cases = [
        Case { settings: Settings { max_requests: 2, ..open() }, bytes: 1, admitted: 2 },
        Case { settings: Settings { max_bytes: 100, ..open() }, bytes: 30, admitted: 3 },
        // One request alone is always admitted, or it could never be served.
        Case { settings: Settings { max_bytes: 100, ..open() }, bytes: 101, admitted: 1 },
        Case { settings: Settings { default_policy: level, ..open() }, bytes: 0, admitted: 3 },
    ];
    for case in cases {
        let fixture = Fixture::new(case.settings);
        let receivers: Vec<_> = (0..case.admitted).map(|_| fixture.submit(|job| job.bytes = case.bytes)).collect();
        let refused = fixture.try_submit(|job| job.bytes = case.bytes).expect_err("full");
        assert_eq!((refused.code, &*refused.message), (Code::Overloaded, "Exceeds maximum queue size"));
        assert_eq!(fixture.queue.pending(), case.admitted);
        let statistics = fixture.queue.statistics();
        assert_eq!((statistics.rejected, statistics.fail.count), (1, 1));
        // What leaves makes room.
        assert!(fixture.sent().is_some());
        assert!(fixture.try_submit(|job| job.bytes = case.bytes).is_ok());
        drop(receivers);
    }
}

#[test]
fn a_full_queue_makes_room_by_dropping_who_left() {
    let fixture = Fixture::new(Settings { max_requests: 2, ..Settings::auto(8, 1) });
    drop([fixture.submit(|_| {}), fixture.submit(|_| {})]);
    fixture.clock.set(20 * MS);
    let _receiver = fixture.submit(|job| job.rows = 5);
    assert_eq!(fixture.sent(), Some(vec![5]));
    assert_eq!(fixture.queue.statistics().cancelled, 2);
}

#[test]
fn priority_one_goes_first_and_zero_is_the_default() {
    let settings = Settings { priority_levels: 3, default_priority_level: 2, ..triton(1, &[], 0) };
    let fixture = Fixture::new(settings);
    // (rows, to tell them apart, and priority); 9 is out of range.
    let queued = [(1, 3), (2, 0), (3, 1), (4, 9), (5, 2), (6, 1)];
    let _receivers = queued.map(|(rows, priority)| fixture.submit(|job| (job.rows, job.priority) = (rows, priority)));
    let order: Vec<u32> = std::iter::from_fn(|| fixture.sent()).flatten().collect();
    assert_eq!(order, [3, 6, 2, 4, 5, 1]);
}

#[test]
fn a_batch_reaches_into_the_next_level() {
    let fixture = Fixture::new(Settings { priority_levels: 2, ..triton(8, &[], 0) });
    let _receivers =
        [(1, 2), (2, 1)].map(|(rows, priority)| fixture.submit(|job| (job.rows, job.priority) = (rows, priority)));
    assert_eq!(fixture.sent(), Some(vec![2, 1]));
}

#[test]
fn a_queue_timeout_rejects() {
    // (default, override allowed, asked for, rejected at 5 ms)
    let cases = [
        (0, true, Some(5 * MS), true),
        (0, true, Some(6 * MS), false),
        (0, false, Some(MS), false),
        (5 * MS, false, None, true),
        (9 * MS, true, Some(2 * MS), true),
        // An override shortens, it doesn't lengthen.
        (5 * MS, true, Some(60 * MS), true),
        (0, true, None, false),
        (0, true, Some(0), false),
    ];
    for (default_timeout, allow_override, timeout, rejected) in cases {
        let policy = QueuePolicy { default_timeout, allow_override, ..QueuePolicy::default() };
        let fixture = Fixture::new(Settings { default_policy: policy, ..Settings::auto(8, 1) });
        let receiver = fixture.submit(|job| job.timeout = timeout);
        fixture.clock.set(5 * MS);
        let label = format!("{policy:?} {timeout:?}");
        assert_eq!(fixture.sent().is_none(), rejected, "{label}");
        if rejected {
            let error = error(receiver);
            assert_eq!((error.code, &*error.message), (Code::Unavailable, "Request timeout expired"), "{label}");
            assert_eq!(fixture.queue.statistics().expired, 1);
        }
    }
}

#[test]
fn a_delayed_request_goes_behind_those_in_time() {
    let policy = QueuePolicy {
        timeout_action: TimeoutAction::Delay,
        default_timeout: 0,
        allow_override: true,
        max_queue_size: 0,
    };
    let fixture = Fixture::new(Settings { default_policy: policy, ..triton(1, &[], 0) });
    let _receivers = [(1, Some(MS)), (2, None), (3, Some(MS))]
        .map(|(rows, timeout)| fixture.submit(|job| (job.rows, job.timeout) = (rows, timeout)));
    fixture.clock.set(2 * MS);
    let order: Vec<u32> = std::iter::from_fn(|| fixture.sent()).flatten().collect();
    assert_eq!(order, [2, 1, 3]);
}

#[test]
fn a_passed_deadline_is_never_executed() {
    let fixture = Fixture::new(Settings::auto(8, 1));
    let late = fixture.submit(|job| (job.rows, job.deadline) = (1, Some(MS)));
    let _in_time = fixture.submit(|job| (job.rows, job.deadline) = (2, Some(3 * MS)));
    fixture.clock.set(MS);
    assert_eq!(fixture.sent(), Some(vec![2]));
    assert_eq!(error(late).code, Code::DeadlineExceeded);
}

#[test]
fn expiry_is_answered_while_every_instance_is_busy() {
    let fixture = Fixture::new(Settings::auto(8, 1));
    let _first = fixture.submit(|_| {});
    let running = fixture.pull().expect("sent");
    let late = fixture.submit(|job| job.deadline = Some(MS));
    fixture.clock.set(2 * MS);
    fixture.queue.expire();
    assert_eq!(error(late).code, Code::DeadlineExceeded);
    assert_eq!(fixture.queue.pending(), 0);
    succeed(running);
}

#[test]
fn a_cancelled_job_leaves_unexecuted() {
    let fixture = Fixture::new(Settings::auto(2, 1));
    let gone = fixture.submit(|job| job.rows = 1);
    let _kept = fixture.submit(|job| job.rows = 2);
    drop(gone);
    assert_eq!(fixture.sent(), Some(vec![2]));
    drop(fixture.submit(|_| {}));
    assert_eq!(fixture.sent(), None, "nothing but cancelled ones is nothing");
    let statistics = fixture.queue.statistics();
    assert_eq!((statistics.cancelled, statistics.pending, statistics.in_flight), (2, 0, 0));
}

#[test]
fn a_dropped_batch_answers_every_job_once() {
    let fixture = Fixture::new(Settings::auto(8, 1));
    let receivers = [fixture.submit(|_| {}), fixture.submit(|_| {})];
    drop(fixture.pull());
    deliver(&fixture.mailbox);
    for receiver in receivers {
        let error = error(receiver);
        assert_eq!(error.code, Code::Unavailable);
        assert!(error.message.starts_with("instance lost"), "{}", error.message);
    }
    let statistics = fixture.queue.statistics();
    assert_eq!((statistics.failed, statistics.fail.count, statistics.in_flight), (2, 2, 0));
    assert_eq!(statistics.execution_count, 0);
}

#[test]
fn a_job_dropped_with_the_queue_is_answered() {
    let fixture = Fixture::new(Settings::auto(8, 1));
    let receiver = fixture.submit(|_| {});
    drop(fixture);
    assert_eq!(error(receiver).code, Code::Unavailable);
}

#[test]
fn too_few_answers_are_errors_for_the_rest() {
    let fixture = Fixture::new(Settings::auto(8, 1));
    let mut receivers = [fixture.submit(|_| {}), fixture.submit(|_| {})];
    fixture.pull().expect("sent").finish([Ok(Outputs::new())]);
    deliver(&fixture.mailbox);
    assert!(receivers[0].try_recv().expect("an answer").is_ok());
    let [_, second] = receivers;
    assert_eq!(error(second).code, Code::Internal);
}

#[test]
fn a_closed_queue_drains_without_waiting_and_refuses() {
    let fixture = Fixture::new(triton(8, &[], 1000 * MS));
    let receiver = fixture.submit(|_| {});
    assert!(matches!(fixture.queue.try_pull(), Attempt::WaitUntil(_)));
    fixture.queue.close();
    assert!(!fixture.queue.is_drained());
    assert_eq!(fixture.try_submit(|_| {}).expect_err("closed").code, Code::Unavailable);
    assert_eq!(fixture.sent(), Some(vec![1]));
    assert!(matches!(fixture.queue.try_pull(), Attempt::Closed));
    assert!(fixture.queue.is_drained());
    assert_eq!(fixture.queue.statistics().rejected, 0, "another version will take it");
    drop(receiver);
}

#[test]
fn an_aborted_queue_answers_what_was_queued() {
    let fixture = Fixture::new(Settings::auto(8, 1));
    let receiver = fixture.submit(|_| {});
    fixture.queue.abort();
    assert_eq!(error(receiver).code, Code::Unavailable);
    assert!(fixture.queue.is_drained() && fixture.queue.is_closed());
}

#[test]
fn nothing_presses_while_no_instance_is_parked() {
    let fixture = Fixture::new(Settings::auto(1, 1));
    for _ in 0..3 {
        let (job, _receiver) = fixture.job();
        assert!(matches!(fixture.queue.submit(job), Ok(Nudge::Later)));
    }
}

#[test]
fn a_wait_ends_in_time_for_a_deadline() {
    // Nothing is learned, so auto sends at once; Triton's delay is cut to the moment something expires.
    let fixture = Fixture::new(triton(8, &[], 10 * MS));
    let _receiver = fixture.submit(|job| job.deadline = Some(4 * MS));
    assert!(matches!(fixture.queue.try_pull(), Attempt::WaitUntil(until) if until == 4 * MS));
}

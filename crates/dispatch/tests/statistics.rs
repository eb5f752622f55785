//! The counters, after known batches at known times.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

mod fixture;

use fixture::{Fixture, MS, deliver};
use penstock_dispatch::{Settings, Total};
use penstock_schema::{Error, Outputs};

#[test]
fn durations_of_a_batch_count_once_per_request() {
    let fixture = Fixture::new(Settings::auto(8, 1));
    let _first = fixture.submit(|job| job.rows = 2);
    fixture.clock.set(MS);
    let _second = fixture.submit(|job| job.rows = 3);
    let _bad = fixture.submit(|job| job.rows = 1);
    fixture.clock.set(3 * MS);
    let mut batch = fixture.pull().expect("sent");
    fixture.clock.set(4 * MS);
    batch.mark_input_done();
    fixture.clock.set(9 * MS);
    batch.mark_infer_done();
    fixture.clock.set(11 * MS);
    assert_eq!(fixture.queue.in_flight(), 3);
    batch.finish([Ok(Outputs::new()), Ok(Outputs::new()), Err(Error::internal("bad"))]);

    let statistics = fixture.queue.statistics();
    let total = |count, ms| Total { count, ns: ms * MS };
    assert_eq!(statistics.success, total(2, 11 + 10));
    assert_eq!(statistics.fail, total(1, 10));
    assert_eq!(statistics.queue, total(2, 3 + 2));
    assert_eq!(statistics.compute_input, total(2, 2));
    assert_eq!(statistics.compute_infer, total(2, 10));
    assert_eq!(statistics.compute_output, total(2, 4));
    assert_eq!((statistics.inference_count, statistics.execution_count, statistics.failed), (5, 1, 1));
    assert!(statistics.last_inference > 1_600_000_000_000, "milliseconds since 1970");
    assert_eq!((statistics.pending, statistics.in_flight), (0, 0));

    let [size] = statistics.batches.as_slice() else { panic!("one batch size") };
    assert_eq!((size.batch_size, size.compute_infer), (6, total(1, 5)));
    assert_eq!(statistics.batch_size.sum, 6);
    assert_eq!((statistics.request_duration.count(), statistics.request_duration.sum), (2, 21 * MS));
    assert_eq!((statistics.queue_duration.count(), statistics.queue_duration.sum), (2, 5 * MS));
    // 10 ms belongs to the bucket whose bound it is, 11 ms to the next.
    let bucket = statistics.request_duration.bounds.iter().position(|bound| *bound == 10 * MS).expect("a bound");
    assert_eq!(statistics.request_duration.counts[bucket..bucket + 2], [1, 1]);
}

#[test]
fn statistics_are_recorded_before_the_answer_is_visible() {
    let fixture = Fixture::new(Settings::auto(8, 1));
    let mut receiver = fixture.submit(|_| {});
    let batch = fixture.pull().expect("sent");
    batch.finish([Ok(Outputs::new())]);
    assert!(receiver.try_recv().is_err(), "the shard hasn't run");
    assert_eq!(fixture.queue.statistics().success.count, 1);
    deliver(&fixture.mailbox);
    assert!(receiver.try_recv().is_ok());
}

//! The decision itself, as tables over what was learned and what is queued.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use penstock_dispatch::policy::{Decision, View, decide};
use penstock_dispatch::{Costs, Mode, Nanos, Returns};

const US: Nanos = 1_000;
const MS: Nanos = 1_000_000;

/// Sixteen clients that came back within 100 to 200 µs, twenty times; the last eight of them are out since `now`.
fn closed_loop(cost: fn(u32) -> Nanos) -> (Costs, Returns, Nanos) {
    let (mut costs, mut returns, mut now) = (Costs::default(), Returns::default(), MS);
    for round in 0..20 {
        let rows = [1, 4, 8, 16][round % 4];
        let pulled = now;
        now += cost(rows);
        costs.learn(rows, pulled, pulled, now);
        returns.released(now, rows);
        for client in 0..u64::from(rows) {
            returns.arrived(now + 100 * US + client * 100 * US / u64::from(rows));
        }
        now += 200 * US;
    }
    returns.released(now, 8);
    (costs, returns, now)
}

fn view<'a>(costs: &'a Costs, returns: &'a Returns, now: Nanos) -> View<'a> {
    View {
        mode: &Mode::Auto,
        max_batch: 64,
        max_preferred: 64,
        requests: 8,
        rows: 8,
        complete: false,
        mixed: false,
        preferred: 0,
        oldest: now,
        closest: Nanos::MAX,
        instances: 1,
        idle: 1,
        present: 8,
        costs,
        returns,
    }
}

#[test]
fn waits_for_as_long_as_clients_take_when_half_of_them_are_out() {
    let (costs, returns, now) = closed_loop(|_| 5 * MS);
    let Decision::WaitUntil(until) = decide(&view(&costs, &returns, now), now) else { panic!("it should wait") };
    assert!((now + 150 * US..now + 250 * US).contains(&until), "{} µs", (until - now) / US);
}

#[test]
fn sends_when_waiting_cannot_pay() {
    let (costs, returns, now) = closed_loop(|_| 5 * MS);
    let (linear, linear_returns, linear_now) = closed_loop(|rows| u64::from(rows) * 500 * US);
    let (cheap, cheap_returns, cheap_now) = closed_loop(|_| 50 * US);
    let (none, nobody) = (Costs::default(), Returns::default());
    let base = view(&costs, &returns, now);
    let cases = [
        ("a full batch", View { complete: true, ..base }, now),
        ("others can't join and wait behind", View { mixed: true, ..base }, now),
        ("a second instance is free", View { idle: 2, instances: 2, present: 8, ..base }, now),
        ("somebody would miss the deadline", View { closest: now + 5 * MS, ..base }, now),
        ("nothing was learned of costs", View { costs: &none, ..base }, now),
        ("nobody is out", View { returns: &nobody, ..base }, now),
        ("those who are out should be back for long", base, now + 50 * MS),
        ("the cost is linear", view(&linear, &linear_returns, linear_now), linear_now),
        ("the model is faster than the clients", view(&cheap, &cheap_returns, cheap_now), cheap_now),
    ];
    for (name, view, now) in cases {
        assert_eq!(decide(&view, now), Decision::Send { rows: 8 }, "{name}");
    }
    assert_eq!(decide(&View { requests: 0, rows: 0, ..base }, now), Decision::Idle);
}

#[test]
fn splits_among_instances_only_what_gets_shorter() {
    for (cost, rows) in [((|_| 5 * MS) as fn(u32) -> Nanos, 8), (|rows| MS + u64::from(rows) * MS, 4)] {
        let (costs, _, now) = closed_loop(cost);
        let nobody = Returns::default();
        let view = View { instances: 2, idle: 2, ..view(&costs, &nobody, now) };
        assert_eq!(decide(&view, now), Decision::Send { rows });
    }
}

#[test]
fn costs_are_learned_monotone_and_interpolated() {
    let mut costs = Costs::default();
    assert_eq!(costs.of(1.0), None);
    costs.learn(8, 0, 0, 8 * MS);
    let guess = costs.of(16.0).expect("a guess");
    assert!((8e6..16e6).contains(&guess), "between constant and proportional: {guess}");
    costs.learn(16, 0, 0, 12 * MS);
    costs.learn(32, 0, 0, 10 * MS);
    let known = [1.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0].map(|rows| costs.of(rows).expect("known"));
    assert!(known.is_sorted(), "{known:?}");
    assert_eq!((known[1], known[3], known[5]), (8e6, 11e6, 11e6), "neighbours out of order are pooled");
    assert_eq!(known[2], 9.5e6);
}

#[test]
fn a_cost_that_changed_is_learned_anew() {
    let mut costs = Costs::default();
    costs.learn(8, 0, 0, 900 * MS);
    for _ in 0..40 {
        costs.learn(8, 0, 0, 5 * MS);
    }
    let cost = costs.of(8.0).expect("known");
    assert!((4.9e6..5.5e6).contains(&cost), "{cost}");
}

#[test]
fn arrivals_right_after_releases_are_told_from_independent_ones() {
    // (ages at which the requests of a 5 ms period arrive, strength)
    let cases: [(&[Nanos], _); 3] = [
        (&[100 * US, 150 * US, 200 * US], 0.9..=1.0),
        (&[600 * US, 1800 * US, 3100 * US, 4400 * US], 0.0..=0.05),
        (&[4 * MS, 4800 * US], 0.0..=0.0),
    ];
    for (ages, strength) in cases {
        let mut returns = Returns::default();
        for period in 1..200 {
            returns.released(period * 5 * MS, ages.len() as u32);
            ages.iter().for_each(|age| returns.arrived(period * 5 * MS + age));
        }
        assert!(strength.contains(&returns.coupling()), "{ages:?}: {}", returns.coupling());
    }
}

#[test]
fn those_who_do_not_come_back_are_expected_less() {
    let mut returns = Returns::default();
    let mut expected = Vec::new();
    for round in 1..60 {
        let now = round * 100 * MS;
        returns.released(now, 10);
        expected.push(returns.expected(now, MS));
        // From the thirtieth on only half of them return.
        for client in 0..if round < 30 { 10 } else { 5 } {
            returns.arrived(now + 100 * US + client * 10 * US);
        }
    }
    assert!(expected[28] > 9.5, "{}", expected[28]);
    assert!(expected[57] < 8.5, "{}", expected[57]);
    // Once all that is known to take has passed, nobody is expected any more.
    assert_eq!(returns.expected(60 * 100 * MS, MS), 0.0);
}

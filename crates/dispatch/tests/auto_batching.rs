//! The auto policy in simulated worlds: closed loops reach the ceiling, open loops are not delayed for nothing, and those
//! who leave or dawdle cost little. Run with `--nocapture` for the figures.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

mod simulator;

use penstock_dispatch::{Mode, Nanos};
use simulator::{Client, MS, Report, SECOND, US, World, run};

type Cost = fn(u32) -> Nanos;
type Figure = fn(&Report) -> f64;

const CONSTANT: Cost = |_| 5 * MS;
const LINEAR: Cost = |rows| u64::from(rows) * 200 * US;
const AFFINE: Cost = |rows| MS + u64::from(rows) * 100 * US;
const STEP: Cost = |rows| u64::from(rows).div_ceil(16) * 2 * MS;
const CHEAP: Cost = |rows| 20 * US + u64::from(rows) * US / 4;

fn loops(count: usize, low: Nanos, high: Nanos) -> Vec<Client> {
    vec![Client::Loop(low, high); count]
}

fn show(label: &str, report: &Report) {
    println!(
        "{label:50} {:8.0}/s  batch {:5.1}  p50 {:7.3}  p99 {:7.3}  mean {:7.3} ms  waited {:6.3} at most, {:6.4} a batch",
        report.throughput,
        report.mean_batch,
        report.percentile(0.5) as f64 / 1e6,
        report.percentile(0.99) as f64 / 1e6,
        report.mean() / 1e6,
        report.longest_wait as f64 / 1e6,
        report.waited as f64 / 1e6 / report.batches as f64,
    );
}

fn fixed(max_delay: Nanos) -> Mode {
    Mode::Triton { preferred: Vec::new(), max_delay }
}

#[test]
fn a_closed_loop_on_a_constant_cost_reaches_the_ceiling() {
    // (clients, turnaround, share of what clients / (execution + slowest turnaround) allows)
    let turnarounds =
        [(10 * US, 10 * US + 1, 0.97), (100 * US, 200 * US, 0.97), (50 * US, MS, 0.95), (900 * US, 1100 * US, 0.95)];
    for (low, high, share) in turnarounds {
        for count in [1, 2, 16, 64] {
            for instances in [1, 2, 3] {
                let report = run(&World { clients: loops(count, low, high), instances, ..World::default() });
                let label = format!("{count} clients, {low}..{high} ns, {instances} instances");
                show(&label, &report);
                let ceiling = count as f64 * SECOND as f64 / (5 * MS + high) as f64;
                assert!(report.throughput >= share * ceiling, "{label}: {} of {ceiling}", report.throughput);
            }
        }
    }
}

#[test]
fn turnarounds_of_ten_microseconds_reach_95_percent_of_the_ceiling_of_the_model_alone() {
    for (count, ceiling) in [(1, 200.0), (16, 3200.0), (64, 12800.0)] {
        let report = run(&World { clients: loops(count, 10 * US, 20 * US), ..World::default() });
        assert!(report.throughput >= 0.95 * ceiling, "{count} clients: {}", report.throughput);
    }
}

#[test]
fn a_single_client_never_waits() {
    for cost in [CONSTANT, LINEAR, AFFINE, STEP, CHEAP] {
        for turnaround in [10 * US, 300 * US, 3 * MS, 30 * MS] {
            let clients = loops(1, turnaround, 2 * turnaround);
            assert_eq!(run(&World { clients, cost, ..World::default() }).longest_wait, 0);
        }
    }
}

#[test]
fn more_rows_per_second_than_without_waiting() {
    // The affine model does 8649 rows/s in full batches, 7620 in halves that alternate.
    for (cost, count, least) in [(AFFINE, 64, 8500.0), (AFFINE, 16, 6000.0), (STEP, 64, 7900.0), (STEP, 16, 7900.0)] {
        let world = |mode| World { clients: loops(count, 0, 10 * US), cost, mode, ..World::default() };
        let (auto, greedy) = (run(&world(Mode::Auto)), run(&world(fixed(0))));
        show("auto", &auto);
        show("greedy", &greedy);
        assert!(auto.throughput >= least && auto.throughput > greedy.throughput * 1.05);
    }
}

#[test]
fn a_linear_cost_is_not_waited_for() {
    for count in [2, 16, 64] {
        for (low, high) in [(0, 10 * US), (100 * US, 200 * US), (50 * US, MS)] {
            let report = run(&World { clients: loops(count, low, high), cost: LINEAR, ..World::default() });
            show(&format!("{count} clients, {low}..{high} ns"), &report);
            // Not at all, but for a try in thousands of batches.
            assert!(report.waited < report.batches * 100, "{} ns in {} batches", report.waited, report.batches);
        }
    }
}

#[test]
fn instances_share_the_clients_of_a_model_that_slows_with_rows() {
    // Two instances with 32 clients each do 15200/s; one with 62 and one with 2 do 9700.
    let report = run(&World { clients: loops(64, 10 * US, 20 * US), cost: AFFINE, instances: 2, ..World::default() });
    show("2 instances", &report);
    assert!(report.throughput > 14_500.0);
}

#[test]
fn an_open_loop_is_no_worse_than_with_the_best_fixed_delay() {
    let costs = [
        ("constant", CONSTANT, 12_800.0),
        ("linear", LINEAR, 5_000.0),
        ("affine", AFFINE, 8_649.0),
        ("step", STEP, 8_000.0),
    ];
    for (name, cost, ceiling) in costs {
        for load in [0.3, 0.8, 0.95] {
            let poisson = Some((1e9 / (ceiling * load)) as Nanos);
            // Several seeds, since the 99th percentile of one run is luck.
            let measure = |mode: Mode| {
                [1, 2, 3, 4].map(|seed| {
                    let mode = mode.clone();
                    run(&World { poisson, cost, mode, duration: 3 * SECOND, seed, ..World::default() })
                })
            };
            let auto = measure(Mode::Auto);
            let swept = [0, 100 * US, 500 * US, MS, 2 * MS].map(|delay| measure(fixed(delay)));
            let figures: [(&str, Figure); 2] =
                [("p99", |report| report.percentile(0.99) as f64), ("mean", Report::mean)];
            for (figure, of) in figures {
                let (auto, error) = mean_and_error(&auto, of);
                let best = swept.iter().map(|reports| mean_and_error(reports, of).0).fold(f64::INFINITY, f64::min);
                println!("{name} at {load}, {figure}: auto {:.3} ms, best fixed {:.3} ms", auto / 1e6, best / 1e6);
                // One percent, and two standard errors: the best of five noisy figures is a lucky one.
                let bound = best * 1.01 + 2.0 * error;
                assert!(auto <= bound, "{name} at {load}, {figure}: {auto}, best fixed {best}, bound {bound}");
            }
        }
    }
}

/// The mean of a figure over runs, and the standard error of that mean.
fn mean_and_error(reports: &[Report], of: Figure) -> (f64, f64) {
    let count = reports.len() as f64;
    let mean = reports.iter().map(of).sum::<f64>() / count;
    let variance = reports.iter().map(|report| (of(report) - mean).powi(2)).sum::<f64>() / (count - 1.0);
    (mean, (variance / count).sqrt())
}

#[test]
fn a_cheap_model_is_sent_at_once() {
    for load in [0.1, 0.5] {
        let poisson = Some((1e9 / (1_780_000.0 * load)) as Nanos);
        let world = |mode| World { poisson, cost: CHEAP, mode, duration: SECOND, ..World::default() };
        let (auto, greedy) = (run(&world(Mode::Auto)), run(&world(fixed(0))));
        assert!(auto.percentile(0.99) as f64 <= greedy.percentile(0.99) as f64 * 1.05);
    }
}

#[test]
fn clients_that_vanish_are_not_waited_for_again() {
    // Half of them leave after a second; what is measured comes after.
    let mut clients = loops(32, 100 * US, 200 * US);
    clients.extend(vec![Client::Until(100 * US, 200 * US, SECOND); 32]);
    let left = run(&World { clients: clients.clone(), warm_up: SECOND + 100 * MS, ..World::default() });
    let alone = run(&World { clients: loops(32, 100 * US, 200 * US), ..World::default() });
    show("half left", &left);
    show("the others alone", &alone);
    assert!(left.throughput >= alone.throughput * 0.98);
    // While they leave, nobody waits for longer than people used to be away.
    let leaving = run(&World { clients, warm_up: SECOND, duration: SECOND + 100 * MS, ..World::default() });
    assert!(leaving.longest_wait <= 300 * US, "{}", leaving.longest_wait);
}

#[test]
fn a_straggler_does_not_hold_up_the_others() {
    let mut clients = loops(63, 100 * US, 200 * US);
    clients.push(Client::Loop(20 * MS, 40 * MS));
    let with = run(&World { clients, ..World::default() });
    let without = run(&World { clients: loops(63, 100 * US, 200 * US), ..World::default() });
    show("63 and a straggler", &with);
    show("63", &without);
    assert!(with.throughput >= without.throughput * 0.97);
}

#[test]
fn mixed_think_times_do_not_cost_the_fast_ones() {
    for slow in [(3 * MS, 4 * MS), (10 * MS, 30 * MS)] {
        let mut clients = loops(32, 100 * US, 200 * US);
        clients.extend(loops(32, slow.0, slow.1));
        let world = |mode| World { clients: clients.clone(), mode, ..World::default() };
        let (auto, greedy) = (run(&world(Mode::Auto)), run(&world(fixed(0))));
        show(&format!("auto, slow ones {slow:?}"), &auto);
        show("greedy", &greedy);
        assert!(auto.throughput >= greedy.throughput && auto.mean() <= greedy.mean());
    }
}

#[test]
fn populations_that_take_turns_are_both_served_well() {
    // In the first second 64 fast clients, then eight slow ones: what was learned of the first must not haunt the second.
    let mut clients = vec![Client::Until(50 * US, 100 * US, SECOND); 64];
    clients.extend(loops(8, 10 * MS, 12 * MS));
    let world = |mode| World { clients: clients.clone(), mode, warm_up: 3 * SECOND / 2, ..World::default() };
    let (auto, greedy) = (run(&world(Mode::Auto)), run(&world(fixed(0))));
    show("auto", &auto);
    show("greedy", &greedy);
    assert!(auto.throughput >= greedy.throughput * 0.98 && auto.mean() <= greedy.mean() * 1.02);
}

#[test]
fn without_anything_learned_nothing_is_waited_for() {
    let report = run(&World { clients: loops(64, 0, 10 * US), warm_up: 0, duration: 4 * MS, ..World::default() });
    assert_eq!(report.longest_wait, 0);
}

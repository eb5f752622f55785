//! When is a batch sent? A pure function of what is queued, what is expected, what batches cost, and the time.
//!
//! Called by the queue under its lock whenever an instance is free: no I/O, no locks, no clock of its own.

use crate::{Costs, Mode, Nanos, Returns};

/// What waiting costs must stay below this share of what it gains: forecasts err, and a request in hand is certain.
const MARGIN: f64 = 0.9;

/// Nobody waits for less than half a request.
const LEAST_JOINING: f64 = 0.5;

/// What the decision rests on. Rows count for the model's time, requests for how many wait for an answer.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    pub mode: &'a Mode,
    pub max_batch: u32,
    /// The largest preferred size; the maximum batch size when none is preferred.
    pub max_preferred: u32,
    /// The batch that could be sent now.
    pub requests: u32,
    pub rows: u32,
    /// Nothing more fits or may join.
    pub complete: bool,
    /// Jobs that can't join wait behind it.
    pub mixed: bool,
    /// Rows up to a preferred size; 0: none reached.
    pub preferred: u32,
    /// Arrival of its oldest request.
    pub oldest: Nanos,
    /// No queued request expires before this.
    pub closest: Nanos,
    pub instances: u32,
    /// Instances without work, the asking one included.
    pub idle: u32,
    /// Requests queued and executing.
    pub present: u64,
    pub costs: &'a Costs,
    pub returns: &'a Returns,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Up to this many rows.
    Send {
        rows: u32,
    },
    WaitUntil(Nanos),
    /// Nothing is queued.
    Idle,
}

pub fn decide(view: &View<'_>, now: Nanos) -> Decision {
    if view.requests == 0 {
        return Decision::Idle;
    }
    match view.mode {
        Mode::Off => Decision::Send { rows: view.rows },
        Mode::Triton { max_delay, .. } => triton(view, *max_delay, now),
        Mode::Auto => auto(view, now),
    }
}

/// Triton's dynamic batcher.
fn triton(view: &View<'_>, max_delay: Nanos, now: Nanos) -> Decision {
    let due = view.oldest.saturating_add(max_delay);
    if view.preferred > 0 && (max_delay == 0 || now < due) {
        Decision::Send { rows: view.preferred }
    } else if view.complete || view.rows >= view.max_preferred || now >= due {
        Decision::Send { rows: view.rows }
    } else {
        Decision::WaitUntil(due.min(view.closest))
    }
}

/// Waits while that is expected to pay. With n requests here and m that come within a time x, where c(k) is the time of a
/// batch of k and u how much this is a saturated closed loop:
///
/// * the m gain c(n), since they don't wait for the n to be done;
/// * the n lose x + c(n + m) - c(n): the time itself, and that of a larger batch;
/// * the m lose x + c(n + m) - c(m) against a batch of their own, and r others, too late to join but in time to stand
///   behind this batch, lose x + c(n + m) - c(n). Both only as far as the instances are not saturated anyway, 1 - u.
///
/// At u = 0 that compares the sums of finish times; at u = 1 the rates n / c(n) and (n + m) / (x + c(n + m)), because in a
/// saturated closed loop only throughput counts: latency follows from it (Little's law). A model whose time is
/// proportional to its rows never waits at any u.
fn auto(view: &View<'_>, now: Nanos) -> Decision {
    let send = Decision::Send { rows: share(view, now) };
    // With a second free instance, whoever comes next need not wait for this batch.
    if view.complete || view.mixed || view.idle > 1 {
        return send;
    }
    let queued = f64::from(view.requests);
    let per_request = f64::from(view.rows) / queued;
    let Some(alone) = view.costs.of(f64::from(view.rows)) else { return send };
    let batch = |requests: f64| view.costs.of(requests * per_request).unwrap_or(alone);

    let room = f64::from(view.max_batch - view.rows) / per_request;
    let coming = view.returns.expected(now, alone as Nanos);
    let mut best = (0.0, None);
    for wait in view.returns.candidates(now) {
        let delay = wait as f64;
        if queued * delay > coming.min(room) * alone {
            break;
        }
        let joining = view.returns.expected(now, wait).min(room);
        if joining < LEAST_JOINING {
            continue;
        }
        let done = delay + batch(queued + joining);
        let later = (coming - joining).max(0.0);
        let slack = 1.0 - view.costs.saturation() * view.returns.coupling();
        let lost = queued * (done - alone) + slack * (joining * (done - batch(joining)) + later * (done - alone));
        let gained = joining * alone * MARGIN - lost;
        if gained > best.0 {
            best = (gained, Some(wait));
        }
    }
    match best.1 {
        // Waiting must not cost a request its deadline.
        Some(wait) if now.saturating_add(wait).saturating_add(alone as Nanos) < view.closest => {
            Decision::WaitUntil(now + wait)
        }
        _ => send,
    }
}

/// All rows; or, with a model that gets slower with rows and several instances, an equal share of everyone there is. One
/// instance that takes all but two would leave the others to run batches of two beside it.
fn share(view: &View<'_>, now: Nanos) -> u32 {
    /// A smaller batch has to be this much shorter: instances compete for the same cores.
    const WORTH: f64 = 0.7;
    if view.instances < 2 {
        return view.rows;
    }
    let whole = view.costs.of(f64::from(view.rows));
    let returning = view.returns.expected(now, whole.unwrap_or(0.0) as Nanos) as u64;
    let requests = (view.present + returning).div_ceil(u64::from(view.instances)).max(1);
    let rows = requests.saturating_mul(u64::from(view.rows)).div_ceil(u64::from(view.requests));
    let share = u32::try_from(rows).unwrap_or(u32::MAX).min(view.rows);
    match (view.costs.of(f64::from(share)), whole) {
        (Some(part), Some(whole)) if part < whole * WORTH => share,
        _ => view.rows,
    }
}

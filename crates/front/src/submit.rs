//! From a validated request to its answer: queue it, remember to nudge the instances, wait. Both protocols come here.

use crate::registry::ModelVersion;
use crate::shard::{Shard, touch};
use penstock_dispatch::{Clock, Job, Monotonic, Nudge, reply};
use penstock_schema::{Code, Error, Inputs, ModelSpec, Outputs, Result};
use penstock_wire::{ReplyPlan, Validated};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot::error::RecvError;

/// What the protocol adds to a request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Terms {
    /// From now on, the time after which nobody waits for the answer.
    pub deadline: Option<Duration>,
}

/// Runs one request. Errors are those of the queue (full, expired, shutting down) and of the model.
pub async fn infer(
    shard: &Shard,
    model: &Arc<ModelVersion>,
    request: Validated,
    terms: Terms,
) -> Result<(Outputs, ReplyPlan)> {
    let Validated { inputs, rows, priority, timeout_us, plan, .. } = request;
    let now = Monotonic.now();
    let (sender, mut answer) = reply(&shard.mailbox);
    let timeout = timeout_us.map(Duration::from_micros);
    let mut job = Job {
        rows,
        bytes: inputs.iter().flatten().map(|tensor| tensor.data.len()).sum(),
        key: if model.varies { shape_key(&model.spec, &inputs) } else { 0 },
        extent: padded_extent(&model.spec, &inputs),
        inputs,
        priority,
        timeout: timeout_us.map(|microseconds| microseconds.saturating_mul(1000)),
        deadline: terms.deadline.map(|time| now.saturating_add(time.as_nanos().try_into().unwrap_or(u64::MAX))),
        arrived: now,
        reply: sender,
    };
    let mut model = model.clone();
    loop {
        match model.queue.submit(job) {
            Ok(Nudge::Later) => touch(&model.queue),
            Ok(Nudge::Now) => model.queue.nudge(),
            Err((returned, error)) => {
                job = returned;
                match successor(shard, &model) {
                    Some(next) => {
                        model = next;
                        continue;
                    }
                    None => {
                        job.reply.disarm();
                        return Err(error);
                    }
                }
            }
        }
        break;
    }
    if let Some(time) = timeout {
        // Instances refuse what has waited too long when they pull; should all of them be busy then, it is done here.
        tokio::select! {
            biased;
            answered = &mut answer => return finish(answered, plan),
            () = tokio::time::sleep(time) => model.queue.expire(),
        }
    }
    let answered = match terms.deadline {
        None => answer.await,
        Some(time) => match tokio::time::timeout(time, answer).await {
            Ok(answered) => answered,
            Err(_) => return Err(Error::new(Code::DeadlineExceeded, "Deadline Exceeded")),
        },
    };
    finish(answered, plan)
}

fn finish(answered: Result<Result<Outputs>, RecvError>, plan: ReplyPlan) -> Result<(Outputs, ReplyPlan)> {
    let outputs =
        answered.map_err(|_| Error::unavailable("the instance that ran the request was lost; send it again"))??;
    Ok((outputs, plan))
}

/// The version that took the place of one that was closed by a reload, if requests for one fit the other.
fn successor(shard: &Shard, closed: &Arc<ModelVersion>) -> Option<Arc<ModelVersion>> {
    if !closed.queue.is_closed() {
        return None;
    }
    let version = closed.spec.version.to_string();
    let registry = &shard.server.registry;
    let next =
        registry.get(&closed.spec.name, Some(&version)).or_else(|_| registry.get(&closed.spec.name, None)).ok()?;
    let same = next.spec.inputs == closed.spec.inputs
        && next.spec.outputs == closed.spec.outputs
        && next.spec.max_batch_size == closed.spec.max_batch_size;
    (same && !Arc::ptr_eq(&next, closed)).then_some(next)
}

/// Equal for requests whose rows can lie in one buffer: same inputs present, same shapes but for rows and padded axes.
fn shape_key(spec: &ModelSpec, inputs: &Inputs) -> u64 {
    let mut hasher = DefaultHasher::new();
    let first = usize::from(spec.max_batch_size > 0);
    for (index, tensor) in inputs.iter().enumerate() {
        let Some(tensor) = tensor else {
            u64::MAX.hash(&mut hasher);
            continue;
        };
        for (axis, &size) in tensor.shape.iter().enumerate().skip(first) {
            let size = if is_padded(spec, index, axis) { -1 } else { size };
            size.hash(&mut hasher);
        }
    }
    hasher.finish()
}

fn is_padded(spec: &ModelSpec, input: usize, axis: usize) -> bool {
    spec.padding
        .as_ref()
        .is_some_and(|padding| padding.inputs.iter().any(|rule| rule.input == input && rule.axis == axis))
}

/// The size along the first padded axis, by which near requests are told from far ones; 0 without a padding rule.
fn padded_extent(spec: &ModelSpec, inputs: &Inputs) -> i64 {
    let Some(rule) = spec.padding.as_ref().and_then(|padding| padding.inputs.first()) else { return 0 };
    inputs.get(rule.input).and_then(|tensor| tensor.as_ref()?.shape.get(rule.axis).copied()).unwrap_or(0)
}

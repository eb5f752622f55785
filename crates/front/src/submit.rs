//! From a validated request to its answer: queue it, remember to nudge the instances, wait. Both protocols come here.

use crate::registry::ModelVersion;
use crate::server::Server;
use crate::shard::{Shard, touch};
use penstock_dispatch::{Clock, Job, Monotonic, Nanos, Nudge, Receiver, Reply, reply};
use penstock_schema::{Error, Inputs, ModelSpec, Outputs, Result, Tensor};
use penstock_wire::{ReplyPlan, Validated};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot::error::RecvError;

/// What comes with a request beside its tensors.
#[derive(Clone, Copy, Debug, Default)]
pub struct Terms {
    /// Nobody waits for the answer after this; the caller ends the wait.
    pub deadline: Option<Instant>,
    /// The client named a version, so no other may answer.
    pub pinned: bool,
}

/// An answer, and the version that gave it: a reload may have put another in the place of the one that was asked.
pub struct Answered {
    pub model: Arc<ModelVersion>,
    pub outputs: Outputs,
    pub plan: ReplyPlan,
}

/// Runs one request. Errors are those of the queue (full, expired, shutting down) and of the model. Dropping the future
/// cancels the request.
pub async fn infer(shard: &Shard, model: Arc<ModelVersion>, request: Validated, terms: Terms) -> Result<Answered> {
    let timeout_us = request.timeout_us;
    let (sender, mut answer) = reply(&shard.mailbox);
    let left = terms.deadline.map(|at| at.saturating_duration_since(Instant::now()).as_nanos());
    let deadline = left.map(|left| Monotonic.now().saturating_add(left.try_into().unwrap_or(u64::MAX)));
    let (job, plan) = job(&model, request, deadline, sender);
    let (model, nudge) = queue(&shard.server, model, job, terms.pinned)?;
    match nudge {
        Nudge::Later => touch(&model.queue),
        Nudge::Now => model.queue.nudge(),
    }
    if let Some(microseconds) = timeout_us {
        // Instances refuse what has waited too long when they pull; should all of them be busy then, it is done here.
        tokio::select! {
            biased;
            outputs = settled(shard, &mut answer) => return Ok(Answered { outputs: outputs?, model, plan }),
            () = tokio::time::sleep(Duration::from_micros(microseconds)) => model.queue.expire(),
        }
    }
    Ok(Answered { outputs: settled(shard, &mut answer).await?, model, plan })
}

/// The answer, or that the server's time was over before it came.
async fn settled(shard: &Shard, answer: &mut Receiver) -> Result<Outputs> {
    tokio::select! {
        biased;
        answered = answer => received(answered),
        () = shard.overdue() => Err(Error::unavailable(
            "server is shutting down, and its time was over before the model answered; send to another replica",
        )),
    }
}

/// What a queue gets of a request, and what is kept of it for the way out. `deadline` is on the clock of the queues.
pub fn job(model: &ModelVersion, request: Validated, deadline: Option<Nanos>, reply: Reply) -> (Job, ReplyPlan) {
    let Validated { inputs, rows, priority, timeout_us, plan, .. } = request;
    let job = Job {
        rows,
        bytes: inputs.iter().flatten().map(bytes_of).sum(),
        key: if model.varies { shape_key(&model.spec, &inputs) } else { 0 },
        extent: padded_extent(&model.spec, &inputs),
        inputs,
        priority,
        timeout: timeout_us.map(|microseconds| microseconds.saturating_mul(1000)),
        deadline,
        arrived: Monotonic.now(),
        id: plan.id.as_str().into(),
        taken: None,
        on_device: false,
        reply,
    };
    (job, plan)
}

/// Of the host's memory or of a device's: the bound of a queue is for both.
fn bytes_of(tensor: &Tensor) -> usize {
    tensor.device.as_ref().map_or(tensor.data.len(), |there| there.byte_size)
}

/// Queues a job with the version it was meant for, or with the one that has taken its place since. The queue is to be
/// nudged as it says.
pub fn queue(
    server: &Server,
    mut model: Arc<ModelVersion>,
    mut job: Job,
    pinned: bool,
) -> Result<(Arc<ModelVersion>, Nudge)> {
    loop {
        match model.queue.submit(job) {
            Ok(nudge) => return Ok((model, nudge)),
            Err((returned, error)) => {
                job = returned;
                let Some(next) = successor(server, &model, pinned, job.on_device) else {
                    job.reply.disarm();
                    return Err(error);
                };
                model = next;
            }
        }
    }
}

pub fn received(answered: Result<Result<Outputs>, RecvError>) -> Result<Outputs> {
    answered.map_err(|_| lost())?
}

pub fn lost() -> Error {
    Error::unavailable("the instance that ran the request was lost; send it again")
}

/// The version that took the place of one that was closed by a reload, if requests for one fit the other. `on_device`:
/// the answer is to stay there; rows that lie there are copied by a model that runs on the host.
fn successor(server: &Server, closed: &Arc<ModelVersion>, pinned: bool, on_device: bool) -> Option<Arc<ModelVersion>> {
    if !closed.queue.is_closed() {
        return None;
    }
    let (registry, spec) = (&server.registry, &closed.spec);
    let version = spec.version.to_string();
    let next = match registry.get(&spec.name, Some(&version)) {
        Err(_) if !pinned => registry.get(&spec.name, None),
        found => found,
    }
    .ok()?;
    let fits = next.spec.inputs == spec.inputs
        && next.spec.outputs == spec.outputs
        && next.spec.max_batch_size == spec.max_batch_size
        && next.spec.padding == spec.padding
        && (next.spec.on_device || !on_device);
    (fits && !Arc::ptr_eq(&next, closed)).then_some(next)
}

/// Equal for requests whose rows can lie in one buffer: same inputs present, same shapes but for rows and padded axes.
fn shape_key(spec: &ModelSpec, inputs: &Inputs) -> u64 {
    let mut hasher = DefaultHasher::new();
    let first = usize::from(spec.max_batch_size > 0);
    for (index, tensor) in inputs.iter().enumerate() {
        tensor.is_some().hash(&mut hasher);
        let Some(tensor) = tensor else { continue };
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

//! The life of an instance: pull, gather, execute, split, answer.

use crate::device_rows;
use crate::inputs::{Gathered, Gatherer, arguments};
use crate::mixed::{self, Mixed};
use crate::model::Model;
use crate::outputs::{self, Whole};
use crate::slab::Lent;
use penstock_dispatch::{Answer, Batch, Job, Queue};
use penstock_schema::{Code, Error, ModelSpec, Outputs, Result, TensorSpec};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyString;
use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What runs a batch.
pub struct Execute {
    pub on_host: Py<PyAny>,
    /// Batches of which some rows lie on a GPU, or some answers are to stay there; none: such rows are copied first.
    pub on_device: Option<Py<PyAny>>,
}

/// One worker of one model version. Lives on one thread.
pub struct Instance {
    number: usize,
    spec: Arc<ModelSpec>,
    queue: Arc<Queue>,
    _alive: Alive,
    gatherers: Vec<Gatherer>,
    input_names: Vec<Py<PyAny>>,
    output_names: Vec<Py<PyAny>>,
    execute: Execute,
    /// The backend never touches memory that it has returned.
    fresh_outputs: bool,
}

/// Held by an instance for as long as it works. The last of a model's instances to end without being told to takes the
/// queue with it: nothing may wait for an answer that cannot come.
pub struct Alive {
    spec: Arc<ModelSpec>,
    queue: Arc<Queue>,
    count: Arc<AtomicUsize>,
}

impl Alive {
    pub fn new(model: &Model) -> Alive {
        model.alive.fetch_add(1, Ordering::AcqRel);
        Alive { spec: model.spec.clone(), queue: model.queue.clone(), count: model.alive.clone() }
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        let left = self.count.fetch_sub(1, Ordering::AcqRel) - 1;
        if left == 0 && !self.queue.is_closed() {
            tracing::error!("model '{}': its last instance was lost; it takes no more requests", self.spec.name);
            self.queue.abort();
        }
    }
}

impl Instance {
    pub fn new(py: Python<'_>, number: usize, model: &Model, execute: Execute, lent: Vec<Option<Lent>>) -> Instance {
        let (spec, queue) = (model.spec.clone(), model.queue.clone());
        Instance {
            number,
            gatherers: Gatherer::all(&spec, lent),
            input_names: interned(py, &spec.inputs),
            output_names: interned(py, &spec.outputs),
            spec,
            queue,
            _alive: Alive::new(model),
            execute,
            fresh_outputs: model.fresh_outputs,
        }
    }

    /// Works until the queue is closed and empty. Called with the GIL, which is given up once per batch: to answer the
    /// last one, wait for the next, and gather it.
    pub fn run(&mut self, py: Python<'_>) {
        wake_punctually();
        let mut done = None;
        while let Some((mut batch, gathered)) = py.detach(|| self.turn(done.take())) {
            let whole = gathered.and_then(|gathered| self.call(py, gathered, &batch.jobs));
            batch.mark_infer_done();
            done = Some(match whole {
                // One bad request must not fail its neighbours: each is tried once by itself.
                Err(error) if batch.jobs.len() > 1 => {
                    tracing::debug!(model = %self.spec.name, %error, "batch failed; trying its requests one by one");
                    Done::Apart(batch.jobs.iter_mut().map(|job| self.alone(py, job)).collect(), batch)
                }
                whole => Done::Together(whole, batch),
            });
        }
    }

    /// Without the GIL: answers what was executed, then waits for more and lays it out.
    fn turn(&mut self, done: Option<Done>) -> Option<(Batch, Result<Laid>)> {
        match done {
            None => {}
            Some(Done::Apart(answers, batch)) => batch.finish(answers),
            Some(Done::Together(Err(error), batch)) => batch.finish([Err(error)]),
            Some(Done::Together(Ok(whole), batch)) => {
                let answers = self.split(whole, &batch.jobs);
                batch.finish(answers);
            }
        }
        let mut batch = self.queue.pull(self.number)?;
        let gathered = self.gather(&mut batch.jobs);
        batch.mark_input_done();
        Some((batch, gathered))
    }

    fn gather(&mut self, jobs: &mut [Job]) -> Result<Laid> {
        let there = device_rows::any(jobs);
        if self.execute.on_device.is_some() && (there || jobs.iter().any(|job| job.on_device)) {
            let inputs = self.gatherers.iter_mut().map(|gatherer| Mixed::gather(gatherer, jobs));
            return inputs.collect::<Result<_>>().map(Laid::Mixed);
        }
        if there {
            device_rows::fetch(&self.spec, jobs)?;
        }
        self.gatherers.iter_mut().map(|gatherer| gatherer.gather(jobs)).collect::<Result<_>>().map(Laid::Host)
    }

    /// Runs the model once.
    fn call(&self, py: Python<'_>, laid: Laid, jobs: &[Job]) -> Result<Executed> {
        let gathered = match laid {
            Laid::Host(gathered) => gathered,
            Laid::Mixed(inputs) => return self.call_mixed(py, inputs, jobs),
        };
        let wide = self.padded_size(&gathered);
        let rows = (self.spec.max_batch_size > 0).then(|| jobs.iter().map(|job| job.rows).sum());
        let outputs = arguments(py, &self.input_names, gathered)
            .and_then(|arguments| self.execute.on_host.bind(py).call1((arguments,)))
            .and_then(|result| outputs::read(py, &self.spec, &self.output_names, rows, result, self.fresh_outputs))
            .map_err(|error| failed(py, &self.spec.name, &error))?;
        Ok(Executed { outputs: Some(outputs), device: Vec::new(), wide })
    }

    fn call_mixed(&self, py: Python<'_>, inputs: Vec<Mixed>, jobs: &[Job]) -> Result<Executed> {
        let execute = self.execute.on_device.as_ref().unwrap_or(&self.execute.on_host);
        let names = (&self.input_names[..], &self.output_names[..]);
        let answers = mixed::call(py, &self.spec, names, inputs, jobs, execute, self.fresh_outputs)
            .map_err(|error| failed(py, &self.spec.name, &error))?;
        Ok(Executed { outputs: answers.host, device: answers.device, wide: None })
    }

    fn split(&self, whole: Executed, jobs: &[Job]) -> Vec<Answer> {
        let mut first = 0;
        let mut there = whole.device.into_iter();
        let answers = jobs.iter().map(|job| {
            let outputs = match &whole.outputs {
                _ if job.on_device => there.next(),
                Some(outputs) => Some(outputs::part(&self.spec, outputs, job, first, whole.wide)),
                None => None,
            };
            first += job.rows as usize;
            outputs.ok_or_else(|| Error::internal("the model left no answer where the request wants it"))
        });
        answers.collect()
    }

    fn alone(&mut self, py: Python<'_>, job: &mut Job) -> Answer {
        let jobs = std::slice::from_mut(job);
        let gathered = self.gather(jobs)?;
        let whole = self.call(py, gathered, jobs)?;
        self.split(whole, jobs).swap_remove(0)
    }

    /// The batch's size along the first padded axis.
    fn padded_size(&self, gathered: &[Gathered]) -> Option<i64> {
        let rule = self.spec.padding.as_ref()?.inputs.first()?;
        gathered.get(rule.input)?.shape()?.get(rule.axis).copied()
    }
}

/// The names of tensors. Interned, since dictionaries find such names without comparing text.
pub fn interned(py: Python<'_>, tensors: &[TensorSpec]) -> Vec<Py<PyAny>> {
    tensors.iter().map(|tensor| PyString::intern(py, &tensor.name).into_any().unbind()).collect()
}

/// The inputs of a batch.
enum Laid {
    Host(Vec<Gathered>),
    Mixed(Vec<Mixed>),
}

/// What a batch came to.
struct Executed {
    /// On the host; none where all who asked left theirs on the device.
    outputs: Option<Vec<Whole>>,
    /// Of the jobs that left theirs on the device, in order.
    device: Vec<Outputs>,
    /// The batch's size along the padded axis, if it has one.
    wide: Option<i64>,
}

/// A batch that was executed and not yet answered.
enum Done {
    Together(Result<Executed>, Batch),
    Apart(Vec<Answer>, Batch),
}

/// Lets timed waits of this thread end when they should. The kernel may end them 50 us late to save power, which is
/// much where batches wait for tens of microseconds (prctl(2), PR_SET_TIMERSLACK).
pub fn wake_punctually() {
    const SLACK_NANOSECONDS: libc::c_ulong = 1_000;
    // SAFETY: the call takes plain numbers and concerns the calling thread alone. Failing leaves the default.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, SLACK_NANOSECONDS) };
}

/// What a model's exception means to the client: its own status if it is one of ours, else a failure of the model.
/// The traceback goes to the log, never to the client.
pub fn failed(py: Python<'_>, model: &str, error: &PyErr) -> Error {
    let value = error.value(py);
    let code = own_code(py, error).unwrap_or(Code::Internal);
    let name = error.get_type(py).name().map_or(Cow::Borrowed("error"), |name| Cow::Owned(name.to_string()));
    // The text of an OSError from the system holds the path it was about.
    let text = match value.getattr(intern!(py, "strerror")) {
        Ok(strerror) if !strerror.is_none() => strerror.to_string(),
        _ => value.to_string(),
    };
    if code == Code::Internal {
        let traceback = error.traceback(py).and_then(|traceback| traceback.format().ok()).unwrap_or_default();
        tracing::error!("model '{model}' failed: {name}: {text}\n{traceback}");
        return Error::internal(format!("model '{model}' failed: {name}: {}", cut(&text)));
    }
    Error::new(code, cut(&text).to_owned())
}

/// The status that an exception carries, if it is one of ours.
pub fn own_code(py: Python<'_>, error: &PyErr) -> Option<Code> {
    code_of(error.value(py).getattr(intern!(py, "grpc_code")).ok()?.extract().ok()?)
}

/// Enough of a model's own words to act on; the log has all of them.
const TEXT_BYTES: usize = 1024;

fn cut(text: &str) -> &str {
    let end = (0..=TEXT_BYTES.min(text.len())).rev().find(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or(0)]
}

fn code_of(grpc: u8) -> Option<Code> {
    let all = [
        Code::InvalidArgument,
        Code::NotFound,
        Code::AlreadyExists,
        Code::TooLarge,
        Code::Unsupported,
        Code::Unauthenticated,
        Code::Unavailable,
        Code::DeadlineExceeded,
        Code::Cancelled,
        Code::Internal,
    ];
    all.into_iter().find(|code| code.grpc_status() == grpc)
}

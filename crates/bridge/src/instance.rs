//! The life of an instance: pull, gather, execute, split, answer.

use crate::inputs::{Gatherer, arguments};
use crate::outputs;
use penstock_dispatch::{Answer, Batch, Job, Queue};
use penstock_schema::{Code, Error, ModelSpec};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyString;
use std::borrow::Cow;
use std::sync::Arc;

/// One worker of one model version. Lives on one thread.
pub struct Instance {
    number: usize,
    spec: Arc<ModelSpec>,
    queue: Arc<Queue>,
    gatherers: Vec<Gatherer>,
    input_names: Vec<Py<PyAny>>,
    output_names: Vec<Py<PyAny>>,
    execute: Py<PyAny>,
}

impl Instance {
    pub fn new(py: Python<'_>, number: usize, spec: Arc<ModelSpec>, queue: Arc<Queue>, execute: Py<PyAny>) -> Instance {
        // Interned, since dictionaries find such names without comparing text.
        let intern = |name: &str| PyString::intern(py, name).into_any().unbind();
        Instance {
            number,
            gatherers: Gatherer::all(&spec),
            input_names: spec.inputs.iter().map(|input| intern(&input.name)).collect(),
            output_names: spec.outputs.iter().map(|output| intern(&output.name)).collect(),
            spec,
            queue,
            execute,
        }
    }

    /// Works until the queue is closed and empty. Called with the GIL, which is held only around `execute`.
    pub fn run(&mut self, py: Python<'_>) {
        while let Some(mut batch) = py.detach(|| self.queue.pull(self.number)) {
            let answers = self.answer(py, &mut batch);
            py.detach(|| batch.finish(answers));
        }
    }

    fn answer(&mut self, py: Python<'_>, batch: &mut Batch) -> Vec<Answer> {
        let mut jobs: Vec<&mut Job> = batch.jobs.iter_mut().collect();
        let outcome = self.execute(py, &mut jobs);
        batch.mark_infer_done();
        match outcome {
            Ok(answers) => answers.into_iter().map(Ok).collect(),
            // One bad request must not fail its neighbours: each is tried once by itself.
            Err(error) if batch.jobs.len() > 1 => {
                tracing::debug!(model = %self.spec.name, %error, "batch failed; trying its requests one by one");
                batch
                    .jobs
                    .iter_mut()
                    .map(|job| self.execute(py, &mut [job]).map(|mut answers| answers.swap_remove(0)))
                    .collect()
            }
            Err(error) => vec![Err(error)],
        }
    }

    /// Runs the model once over these jobs.
    fn execute(&mut self, py: Python<'_>, jobs: &mut [&mut Job]) -> Result<Vec<penstock_schema::Outputs>, Error> {
        let gatherers = &mut self.gatherers;
        let gathered =
            py.detach(|| gatherers.iter_mut().map(|gatherer| gatherer.gather(jobs)).collect::<Result<Vec<_>, _>>())?;
        let wide = self.padded_size(&gathered);
        let rows = (self.spec.max_batch_size > 0).then(|| jobs.iter().map(|job| job.rows).sum());
        let whole = arguments(py, &self.input_names, gathered)
            .and_then(|arguments| self.execute.bind(py).call1((arguments,)))
            .and_then(|result| outputs::read(py, &self.spec, &self.output_names, rows, result))
            .map_err(|error| failed(py, &self.spec.name, &error))?;
        let mut first = 0;
        let answers = jobs.iter().map(|job| {
            let outputs = outputs::part(&self.spec, &whole, job, first, wide);
            first += job.rows as usize;
            outputs
        });
        Ok(answers.collect())
    }

    /// The batch's size along the first padded axis.
    fn padded_size(&self, gathered: &[crate::inputs::Gathered]) -> Option<i64> {
        let rule = self.spec.padding.as_ref()?.inputs.first()?;
        gathered.get(rule.input)?.shape()?.get(rule.axis).copied()
    }
}

/// What a model's exception means to the client: its own status if it is one of ours, else a failure of the model.
/// The traceback goes to the log, never to the client.
fn failed(py: Python<'_>, model: &str, error: &PyErr) -> Error {
    let value = error.value(py);
    let code = value
        .getattr(intern!(py, "grpc_code"))
        .ok()
        .and_then(|code| code_of(code.extract().ok()?))
        .unwrap_or(Code::Internal);
    let name = error.get_type(py).name().map_or(Cow::Borrowed("error"), |name| Cow::Owned(name.to_string()));
    // The text of an OSError holds the path it was about.
    let text = match value.getattr(intern!(py, "strerror")) {
        Ok(strerror) => strerror.to_string(),
        Err(_) => value.to_string(),
    };
    if code == Code::Internal {
        let traceback = error.traceback(py).and_then(|traceback| traceback.format().ok()).unwrap_or_default();
        tracing::error!("model '{model}' failed: {name}: {text}\n{traceback}");
        return Error::internal(format!("model '{model}' failed: {name}: {text}"));
    }
    Error::new(code, text)
}

fn code_of(grpc: u8) -> Option<Code> {
    let all = [
        Code::InvalidArgument,
        Code::NotFound,
        Code::AlreadyExists,
        Code::TooLarge,
        Code::Unsupported,
        Code::Unavailable,
        Code::DeadlineExceeded,
        Code::Cancelled,
        Code::Internal,
    ];
    all.into_iter().find(|code| code.grpc_status() == grpc)
}

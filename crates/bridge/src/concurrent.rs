//! A model whose requests run side by side on an event loop: its one instance thread, and a request under way.
//!
//! The thread stays in Rust and never takes the GIL, but to copy what a call has on a GPU. It takes a request when one
//! more may be under way, lays out its inputs and posts it to the loop, which answers through [`Request`] whenever it is
//! done.

use crate::device_rows;
use crate::exchange::Shared;
use crate::inputs::{Gathered, Gatherer, arguments};
use crate::instance::{Alive, failed, interned, wake_punctually};
use crate::model::Model;
use crate::outputs;
use parking_lot::{Condvar, Mutex};
use penstock_dispatch::{Answer, Batch, Clock, Job, Monotonic, Nanos, Queue};
use penstock_schema::{Code, Error, ModelSpec, Outputs, Result};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// How many requests of a model may be under way.
struct Permits {
    free: Mutex<usize>,
    returned: Condvar,
    count: usize,
}

/// One request under way. Dropping it lets another one in.
struct Permit(Arc<Permits>);

impl Drop for Permit {
    fn drop(&mut self) {
        *self.0.free.lock() += 1;
        self.0.returned.notify_one();
    }
}

impl Permits {
    fn take(self: &Arc<Self>) -> Permit {
        let mut free = self.free.lock();
        while *free == 0 {
            self.returned.wait(&mut free);
        }
        *free -= 1;
        Permit(self.clone())
    }

    /// Returns once nothing is under way.
    fn wait_for_all(&self) {
        let mut free = self.free.lock();
        while *free < self.count {
            self.returned.wait(&mut free);
        }
    }
}

/// What the requests of one model version share.
pub struct Face {
    spec: Arc<ModelSpec>,
    input_names: Vec<Py<PyAny>>,
    output_names: Vec<Py<PyAny>>,
    /// Called on the loop with each request.
    begin: Py<PyAny>,
}

/// The instance of one model version. Lives on one thread.
pub struct Serving {
    face: Arc<Face>,
    queue: Arc<Queue>,
    _alive: Alive,
    gatherers: Vec<Gatherer>,
    permits: Arc<Permits>,
    exchange: Arc<Shared>,
}

impl Serving {
    pub fn new(
        py: Python<'_>,
        model: &Model,
        exchange: Arc<Shared>,
        begin: Py<PyAny>,
        max_concurrency: usize,
    ) -> Serving {
        let spec = model.spec.clone();
        let count = max_concurrency.max(1);
        Serving {
            gatherers: Gatherer::all(&spec, spec.inputs.iter().map(|_| None).collect()),
            queue: model.queue.clone(),
            _alive: Alive::new(model),
            permits: Arc::new(Permits { free: Mutex::new(count), returned: Condvar::new(), count }),
            exchange,
            face: Arc::new(Face {
                input_names: interned(py, &spec.inputs),
                output_names: interned(py, &spec.outputs),
                spec,
                begin,
            }),
        }
    }

    /// Without the GIL: until the queue is closed and empty, and everything is answered.
    pub fn run(mut self) {
        wake_punctually();
        loop {
            // First the permit: what waits for one waits in the queue, where it can be cancelled.
            let permit = self.permits.take();
            let Some(mut batch) = self.queue.pull(0) else { break };
            let gathered = self.gather(&mut batch.jobs);
            batch.mark_input_done();
            self.exchange.arrive(Running {
                number: self.exchange.number(),
                face: self.face.clone(),
                work: Mutex::new(Some((batch, permit))),
                gathered: Mutex::new(Some(gathered)),
                prepared: Mutex::default(),
                exchange: self.exchange.clone(),
            });
        }
        self.permits.wait_for_all();
    }

    fn gather(&mut self, jobs: &mut [Job]) -> Result<Vec<Gathered>> {
        if device_rows::any(jobs) {
            device_rows::fetch(&self.face.spec, jobs)?;
        }
        self.gatherers.iter_mut().map(|gatherer| gatherer.gather(jobs)).collect()
    }
}

/// A request between its queue and its answer. Dropped unanswered it answers "instance lost".
pub struct Running {
    pub number: u64,
    face: Arc<Face>,
    /// A batch of one; none once it is answered.
    work: Mutex<Option<(Batch, Permit)>>,
    gathered: Mutex<Option<Result<Vec<Gathered>>>>,
    /// The answer, until it is sent.
    prepared: Mutex<Option<Outputs>>,
    exchange: Arc<Shared>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.exchange.forget(self.number);
    }
}

impl Running {
    /// Whether the client has left; until it has, the exchange is told when it does.
    pub fn is_gone(&self) -> bool {
        let waker = self.exchange.waker(self.number);
        let mut work = self.work.lock();
        let job = work.as_mut().and_then(|(batch, _)| batch.jobs.first_mut());
        job.is_some_and(|job| job.reply.poll_closed(&mut Context::from_waker(&waker)) == Poll::Ready(()))
    }

    /// Nobody wants it any more.
    pub fn give_up(&self) {
        self.answer(Err(Error::new(Code::Cancelled, "the client left before the answer was there")));
    }

    pub fn begin<'py>(&self, py: Python<'py>) -> &Bound<'py, PyAny> {
        self.face.begin.bind(py)
    }

    fn answer(&self, answer: Answer) {
        let work = self.work.lock().take();
        if let Some((batch, permit)) = work {
            batch.finish([answer]);
            drop(permit);
        }
    }

    fn of_job<T>(&self, read: impl FnOnce(&Job) -> T) -> Option<T> {
        self.work.lock().as_ref().and_then(|(batch, _)| batch.jobs.first().map(read))
    }
}

/// A request as the event loop sees it. Answer it once: `prepare` and `finish`, or `fail`.
#[pyclass(frozen, module = "penstock._core")]
pub struct Request {
    pub running: Arc<Running>,
}

#[pymethods]
impl Request {
    #[getter]
    fn number(&self) -> u64 {
        self.running.number
    }

    /// What the client calls it; empty when it gave no name.
    #[getter]
    fn id(&self) -> String {
        self.running.of_job(|job| job.id.to_string()).unwrap_or_default()
    }

    /// Nobody waits for the answer after this; on the clock that calls understand.
    #[getter]
    fn deadline(&self) -> Option<Nanos> {
        self.running.of_job(|job| job.deadline).flatten()
    }

    /// Whatever it needs must have been taken from its queue by then; on the same clock.
    #[getter]
    fn taken_by(&self) -> Option<Nanos> {
        self.running.of_job(|job| job.timeout.map(|timeout| job.arrived.saturating_add(timeout))).flatten()
    }

    /// Seconds until `taken_by`.
    #[getter]
    fn seconds_left(&self) -> Option<f64> {
        self.taken_by().map(|at| Duration::from_nanos(at.saturating_sub(Monotonic.now())).as_secs_f64())
    }

    /// Seconds that it waited in its queue.
    #[getter]
    fn seconds_queued(&self) -> f64 {
        let work = self.running.work.lock();
        let waited =
            work.as_ref().and_then(|(batch, _)| batch.jobs.first().map(|job| batch.pulled.saturating_sub(job.arrived)));
        Duration::from_nanos(waited.unwrap_or(0)).as_secs_f64()
    }

    /// The inputs by name, once. Raises what laying them out failed with.
    fn inputs<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let gathered = self.running.gathered.lock().take();
        let gathered = gathered.ok_or_else(|| PyRuntimeError::new_err("the inputs were taken already"))?;
        let gathered = gathered.map_err(|error| crate::exceptions::raised(py, &error))?;
        arguments(py, &self.running.face.input_names, gathered)
    }

    /// Makes the answer of arrays by output name, for `finish`. Raises TypeError and ValueError for what the signature does
    /// not allow.
    fn prepare(&self, py: Python<'_>, outputs: Bound<'_, PyAny>) -> PyResult<()> {
        let face = &self.running.face;
        if let Some((batch, _)) = self.running.work.lock().as_mut() {
            batch.mark_infer_done();
        }
        let whole = outputs::read(py, &face.spec, &face.output_names, None, outputs, false)?;
        let answer = self.running.of_job(|job| outputs::part(&face.spec, &whole, job, 0, None));
        *self.running.prepared.lock() = answer;
        Ok(())
    }

    /// Answers with what was prepared. Does nothing when it was answered.
    fn finish(&self, py: Python<'_>) {
        let prepared = self.running.prepared.lock().take();
        let answer = prepared.ok_or_else(|| Error::internal("a request was finished before its answer was prepared"));
        py.detach(|| self.running.answer(answer));
    }

    /// Answers with what an exception means to a client; the log gets the traceback of a failure.
    fn fail(&self, py: Python<'_>, error: Bound<'_, PyAny>) {
        let error = failed(py, &self.running.face.spec.name, &PyErr::from_value(error));
        py.detach(|| self.running.answer(Err(error)));
    }
}

//! The load generator as Python sees it, and what a bench asks a gRPC server before and after.

use bytes::Bytes;
use parking_lot::Mutex;
use penstock_load::{Error, Item, Pace, Plan, Protocol, RECORD_BYTES, Run, SequencePlan, Target};
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::time::Duration;

/// `bench.load.Request`
#[derive(FromPyObject)]
struct RequestArgument {
    body: Vec<u8>,
    json_bytes: Option<usize>,
    expected: Option<Vec<u8>>,
}

/// `bench.load.Plan`
#[derive(FromPyObject)]
pub struct PlanArgument {
    protocol: String,
    address: String,
    path: String,
    headers: Vec<(String, String)>,
    requests: Vec<RequestArgument>,
    concurrency: Option<usize>,
    schedule_ns: Vec<u64>,
    sequence_length: Option<u64>,
    first_sequence: u64,
    threads: usize,
    most_connections: usize,
    answer_within_seconds: f64,
}

/// A load under way.
#[pyclass(frozen, module = "penstock._core")]
pub struct Load {
    run: Mutex<Run>,
    #[pyo3(get)]
    thread_ids: Vec<i32>,
    /// When the first request was due, of CLOCK_MONOTONIC.
    #[pyo3(get)]
    started_ns: u64,
}

#[pymethods]
impl Load {
    /// Starts. Errors: ValueError for a plan that can't be meant, OSError where a thread can't be had.
    #[new]
    fn new(plan: PlanArgument) -> PyResult<Load> {
        let run = Run::start(plan.plan()?).map_err(raised)?;
        Ok(Load { thread_ids: run.thread_ids.clone(), started_ns: run.started, run: Mutex::new(run) })
    }

    /// Records since the last time: three u64 and two u32 each, as `bench.records` reads them.
    fn take<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        let records = self.run.lock().take();
        let mut bytes = Vec::with_capacity(records.len() * RECORD_BYTES);
        records.iter().for_each(|record| bytes.extend_from_slice(&record.to_bytes()));
        PyBytes::new(py, &bytes)
    }

    /// What was said of requests that failed, and how often.
    fn messages(&self) -> Vec<(String, u64)> {
        self.run.lock().messages()
    }

    /// Ends the load when what is under way is answered; records can still be taken.
    fn stop(&self, py: Python<'_>) {
        py.detach(|| self.run.lock().stop());
    }
}

impl PlanArgument {
    fn plan(self) -> PyResult<Plan> {
        let protocol = match self.protocol.as_str() {
            "http" => Protocol::Http,
            "grpc" => Protocol::Grpc,
            "grpc-stream" => Protocol::GrpcStream,
            other => {
                return Err(PyValueError::new_err(format!("protocol {other:?}: expected http, grpc or grpc-stream")));
            }
        };
        let items = self
            .requests
            .into_iter()
            .map(|request| Item::new(request.body.into(), request.json_bytes, request.expected.map(Bytes::from)));
        let pace = match self.concurrency {
            Some(concurrency) => Pace::Closed { concurrency },
            None => Pace::Schedule { offsets: self.schedule_ns },
        };
        Ok(Plan {
            target: Target { protocol, address: self.address, path: self.path, headers: self.headers },
            items: items.collect(),
            pace,
            sequences: self.sequence_length.map(|length| SequencePlan { length, first: self.first_sequence }),
            threads: self.threads,
            most_connections: self.most_connections,
            answer_within: seconds(self.answer_within_seconds)?,
        })
    }
}

/// One call of a gRPC method; messages without prefixes. Errors: ValueError where the server refuses, OSError where
/// there is none.
#[pyfunction]
pub fn grpc_call<'py>(
    py: Python<'py>,
    address: &str,
    path: &str,
    message: Vec<u8>,
    timeout_seconds: f64,
) -> PyResult<Bound<'py, PyBytes>> {
    let timeout = seconds(timeout_seconds)?;
    let answer = py.detach(|| penstock_load::call_blocking(address, path, &message, timeout)).map_err(raised)?;
    Ok(PyBytes::new(py, &answer))
}

/// An encoded FileDescriptorSet of the v2 protocol's services.
#[pyfunction]
pub fn grpc_descriptors(py: Python<'_>) -> Bound<'_, PyBytes> {
    PyBytes::new(py, penstock_load::DESCRIPTORS)
}

fn seconds(value: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(value).map_err(|error| PyValueError::new_err(format!("{value} seconds: {error}")))
}

fn raised(error: Error) -> PyErr {
    match error {
        Error::Invalid(_) => PyValueError::new_err(error.to_string()),
        Error::Unreachable { .. } | Error::Thread(_) => PyOSError::new_err(error.to_string()),
    }
}

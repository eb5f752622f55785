//! The listeners and the model registry as Python sees them.

use crate::devices::PythonDevices;
use crate::model::Model;
use bytes::Bytes;
use parking_lot::Mutex;
use penstock_front::{Config, Devices, Handle, IndexEntry, OperationAnswer, OperationRequest, StartError, State};
use penstock_schema::{Code, Error};
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;
use tokio::sync::oneshot;

/// `serve.options.Listeners`
#[derive(FromPyObject)]
struct ListenersArgument {
    http_address: String,
    http_port: Option<u16>,
    grpc_address: String,
    grpc_port: Option<u16>,
    metrics_address: String,
    metrics_port: Option<u16>,
    io_threads: usize,
    max_body_bytes: usize,
    http_header_timeout_seconds: f64,
    http_body_timeout_seconds: f64,
    http_idle_timeout_seconds: f64,
    write_timeout_seconds: f64,
    strict_readiness: bool,
    model_control: bool,
    admin_token: Option<String>,
    client_shared_memory: bool,
    server_name: String,
    server_version: String,
    extensions: Vec<String>,
}

/// A running front: sockets, shards, registry.
#[pyclass(frozen, module = "penstock._core")]
pub struct Front {
    handle: Mutex<Handle>,
    pub server: Arc<penstock_front::Server>,
    operations: Mutex<Receiver<penstock_front::Operation>>,
    #[pyo3(get)]
    http_port: Option<u16>,
    #[pyo3(get)]
    grpc_port: Option<u16>,
    #[pyo3(get)]
    metrics_port: Option<u16>,
}

#[pymethods]
impl Front {
    /// Binds and serves. `devices` reaches the memory of GPUs that clients share (`engine.shared_device_memory`), where
    /// there is any. Errors: ListenError when a port is taken, ValueError for an address that is none.
    #[new]
    #[pyo3(signature = (listeners, devices=None))]
    fn new(py: Python<'_>, listeners: ListenersArgument, devices: Option<Py<PyAny>>) -> PyResult<Front> {
        let config = listeners.config()?;
        let devices = devices.map(|devices| Arc::new(PythonDevices(devices)) as Arc<dyn Devices>);
        let (handle, operations) = Handle::start(config, devices).map_err(|error| not_started(py, &error))?;
        let port = |address: Option<SocketAddr>| address.map(|address| address.port());
        Ok(Front {
            server: handle.server.clone(),
            http_port: port(handle.http),
            grpc_port: port(handle.grpc),
            metrics_port: port(handle.metrics),
            operations: Mutex::new(operations),
            handle: Mutex::new(handle),
        })
    }

    /// Puts these versions in service, and those they replace out of it at the same moment. The replaced ones are to be
    /// closed by the caller.
    fn publish(&self, name: &str, models: Vec<PyRef<'_, Model>>) {
        self.server.registry.publish(name, models.iter().map(|model| model.version()).collect());
    }

    /// Takes a model out of service.
    fn withdraw(&self, name: &str) {
        self.server.registry.withdraw(name);
    }

    /// Takes a model out of service, and its name with it.
    fn forget(&self, name: &str) {
        self.server.registry.forget(name);
    }

    /// Says that a model is not what it should be (loading, failed), which makes a strict server not ready; or, with
    /// None, that it is.
    #[pyo3(signature = (name, reason))]
    fn set_pending(&self, name: &str, reason: Option<String>) {
        self.server.registry.set_pending(name, reason);
    }

    /// Start-up is over.
    fn set_ready(&self) {
        self.server.set_state(State::Ready);
    }

    #[getter]
    fn is_ready(&self) -> bool {
        self.server.is_ready()
    }

    #[getter]
    fn in_flight(&self) -> usize {
        self.server.in_flight()
    }

    /// The next operation to carry out; None when none came within the time.
    fn next_operation(&self, py: Python<'_>, timeout_seconds: f64) -> PyResult<Option<Operation>> {
        let timeout = seconds("timeout_seconds", timeout_seconds)?;
        match py.detach(|| self.operations.lock().recv_timeout(timeout)) {
            Ok(operation) => {
                Ok(Some(Operation { request: operation.request, reply: Mutex::new(Some(operation.reply)) }))
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Ok(None),
        }
    }

    /// Refuses new requests and waits for those in flight; returns how many are left when the time is over.
    fn drain(&self, py: Python<'_>, timeout_seconds: f64) -> PyResult<usize> {
        let timeout = seconds("timeout_seconds", timeout_seconds)?;
        Ok(py.detach(|| self.handle.lock().drain(timeout)))
    }

    /// Closes all connections and ends the threads.
    fn stop(&self, py: Python<'_>, grace_seconds: f64) -> PyResult<()> {
        let grace = seconds("grace_seconds", grace_seconds)?;
        py.detach(|| self.handle.lock().stop(grace));
        Ok(())
    }
}

/// `penstock.errors.ListenError` where a listener is to blame.
fn not_started(py: Python<'_>, error: &StartError) -> PyErr {
    let message = error.to_string();
    let StartError::Bind { what, reason, .. } = error else { return PyOSError::new_err(message) };
    let class = py.import("penstock.errors").and_then(|errors| errors.getattr("ListenError"));
    class
        .and_then(|class| class.call1((message, *what, reason.raw_os_error())))
        .map_or_else(|failure| failure, PyErr::from_value)
}

/// Something that a client asked for and only Python can do. Dropped unanswered, it is answered as unavailable.
#[pyclass(frozen, module = "penstock._core")]
pub struct Operation {
    request: OperationRequest,
    reply: Mutex<Option<oneshot::Sender<Result<OperationAnswer, Error>>>>,
}

#[pymethods]
impl Operation {
    /// "load", "unload" or "index".
    #[getter]
    fn kind(&self) -> &'static str {
        match self.request {
            OperationRequest::Load { .. } => "load",
            OperationRequest::Unload { .. } => "unload",
            OperationRequest::Index { .. } => "index",
        }
    }

    #[getter]
    fn model(&self) -> Option<&str> {
        match &self.request {
            OperationRequest::Load { model, .. } | OperationRequest::Unload { model, .. } => Some(model),
            OperationRequest::Index { .. } => None,
        }
    }

    /// A configuration that replaces the model's own, as JSON.
    #[getter]
    fn config(&self) -> Option<&str> {
        match &self.request {
            OperationRequest::Load { config, .. } => config.as_deref(),
            _ => None,
        }
    }

    /// Files that replace the model's own, by relative path.
    #[getter]
    fn files<'py>(&self, py: Python<'py>) -> Vec<(String, Bound<'py, PyBytes>)> {
        let OperationRequest::Load { files, .. } = &self.request else { return Vec::new() };
        files.iter().map(|(name, content): &(String, Bytes)| (name.clone(), PyBytes::new(py, content))).collect()
    }

    #[getter]
    fn ready_only(&self) -> bool {
        matches!(self.request, OperationRequest::Index { ready_only: true })
    }

    fn done(&self) -> PyResult<()> {
        self.answer(Ok(OperationAnswer::Done))
    }

    /// Rows of (name, version, state, reason).
    fn index(&self, rows: Vec<(String, String, String, String)>) -> PyResult<()> {
        let entry = |(name, version, state, reason)| IndexEntry { name, version, state, reason };
        self.answer(Ok(OperationAnswer::Index(rows.into_iter().map(entry).collect())))
    }

    /// The code is a gRPC status number.
    fn fail(&self, grpc_code: u8, message: String) -> PyResult<()> {
        let code = match grpc_code {
            3 => Code::InvalidArgument,
            5 => Code::NotFound,
            6 => Code::AlreadyExists,
            12 => Code::Unsupported,
            14 => Code::Unavailable,
            _ => Code::Internal,
        };
        self.answer(Err(Error::new(code, message)))
    }
}

impl Operation {
    fn answer(&self, answer: Result<OperationAnswer, Error>) -> PyResult<()> {
        let sender =
            self.reply.lock().take().ok_or_else(|| PyRuntimeError::new_err("the operation was answered already"))?;
        // A client that left is told nothing.
        drop(sender.send(answer));
        Ok(())
    }
}

impl ListenersArgument {
    fn config(self) -> PyResult<Config> {
        Ok(Config {
            http: address("http", &self.http_address, self.http_port)?,
            grpc: address("grpc", &self.grpc_address, self.grpc_port)?,
            metrics: address("metrics", &self.metrics_address, self.metrics_port)?,
            shards: self.io_threads,
            max_body_bytes: self.max_body_bytes,
            header_timeout: seconds("http_header_timeout_seconds", self.http_header_timeout_seconds)?,
            body_grace: seconds("http_body_timeout_seconds", self.http_body_timeout_seconds)?,
            idle_timeout: seconds("http_idle_timeout_seconds", self.http_idle_timeout_seconds)?,
            write_timeout: seconds("write_timeout_seconds", self.write_timeout_seconds)?,
            strict_readiness: self.strict_readiness,
            model_control: self.model_control,
            admin_token: self.admin_token,
            client_shared_memory: self.client_shared_memory,
            server_name: self.server_name,
            server_version: self.server_version,
            extensions: self.extensions,
        })
    }
}

fn address(what: &str, host: &str, port: Option<u16>) -> PyResult<Option<SocketAddr>> {
    let Some(port) = port else { return Ok(None) };
    let host = if host == "localhost" { "127.0.0.1" } else { host };
    let host: IpAddr = host
        .parse()
        .map_err(|_| PyValueError::new_err(format!("{what} address: expected an IP address, got '{host}'")))?;
    Ok(Some(SocketAddr::new(host, port)))
}

fn seconds(what: &str, value: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(value)
        .map_err(|_| PyValueError::new_err(format!("{what}: expected seconds, got {value}")))
}

/// Sends the log of the data plane to standard error: 0 warnings, 1 information, 2 everything. Once per process.
#[pyfunction]
pub fn log_to_stderr(verbosity: u8) {
    let level = match verbosity {
        0 => tracing::Level::WARN,
        1 => tracing::Level::INFO,
        _ => tracing::Level::DEBUG,
    };
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false);
    // A second call finds a subscriber in place, which is as good.
    let _ = subscriber.try_init();
}

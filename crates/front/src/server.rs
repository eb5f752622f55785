//! What all shards share: the configuration, the models, the state of the server, and the queue of operations that
//! the Python side carries out.

use crate::regions::{Devices, Regions};
use crate::registry::Registry;
use penstock_schema::{Error, Result};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Everything the listeners need to know. Defaults and their reasons: `limits.toml`.
#[derive(Clone, Debug)]
pub struct Config {
    pub http: Option<SocketAddr>,
    pub grpc: Option<SocketAddr>,
    pub metrics: Option<SocketAddr>,
    /// Threads that serve sockets.
    pub shards: usize,
    pub max_body_bytes: usize,
    /// From the first byte of a head to its end.
    pub header_timeout: Duration,
    /// A body may take this long, plus its length at the least acceptable rate.
    pub body_grace: Duration,
    /// A connection without a request is closed after this.
    pub idle_timeout: Duration,
    /// An answer that makes no progress for this long is given up.
    pub write_timeout: Duration,
    /// Ready means that every model is ready; otherwise, that the server is up.
    pub strict_readiness: bool,
    /// Load and unload through the API (`--model-control-mode explicit`).
    pub model_control: bool,
    /// When set, load and unload want `Authorization: Bearer ...` with this.
    pub admin_token: Option<String>,
    /// Clients may register shared memory and have tensors read from it and written to it.
    pub client_shared_memory: bool,
    pub server_name: String,
    pub server_version: String,
    /// The v2 extensions that work.
    pub extensions: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    Starting = 0,
    Ready = 1,
    Draining = 2,
}

pub struct Server {
    pub config: Config,
    pub registry: Registry,
    pub regions: Regions,
    state: AtomicU8,
    busy: AtomicUsize,
    operations: std::sync::mpsc::Sender<Operation>,
    pub started: Instant,
}

/// Held by every request from the end of its head until its answer has been handed to the socket.
pub struct Busy(Arc<Server>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Something only the Python side can do.
pub struct Operation {
    pub request: OperationRequest,
    pub reply: oneshot::Sender<Result<OperationAnswer>>,
}

#[derive(Clone, Debug)]
pub enum OperationRequest {
    Load { model: String, config: Option<String>, files: Vec<(String, bytes::Bytes)> },
    Unload { model: String, dependents: bool },
    Index { ready_only: bool },
}

#[derive(Clone, Debug)]
pub enum OperationAnswer {
    Done,
    Index(Vec<IndexEntry>),
}

/// A row of the repository index.
#[derive(Clone, Debug)]
pub struct IndexEntry {
    pub name: String,
    pub version: String,
    pub state: String,
    pub reason: String,
}

impl Server {
    pub fn new(
        config: Config,
        devices: Option<Arc<dyn Devices>>,
    ) -> (Arc<Server>, std::sync::mpsc::Receiver<Operation>) {
        let (operations, receiver) = std::sync::mpsc::channel();
        let server = Server {
            regions: Regions::new(config.client_shared_memory, devices),
            config,
            registry: Registry::default(),
            state: AtomicU8::new(State::Starting as u8),
            busy: AtomicUsize::new(0),
            operations,
            started: Instant::now(),
        };
        (Arc::new(server), receiver)
    }

    pub fn state(&self) -> State {
        match self.state.load(Ordering::Acquire) {
            0 => State::Starting,
            1 => State::Ready,
            _ => State::Draining,
        }
    }

    pub fn set_state(&self, state: State) {
        self.state.store(state as u8, Ordering::Release);
    }

    /// Ready to infer: started, not draining and, if strict, without a model that failed or is still loading.
    pub fn is_ready(&self) -> bool {
        self.state() == State::Ready && (!self.config.strict_readiness || self.registry.all_ready())
    }

    /// Counts a request as in flight; refused while draining.
    pub fn enter(self: &Arc<Self>) -> Result<Busy> {
        self.busy.fetch_add(1, Ordering::AcqRel);
        let busy = Busy(self.clone());
        if self.state() == State::Draining {
            return Err(Error::unavailable("server is shutting down; send to another replica"));
        }
        Ok(busy)
    }

    pub fn in_flight(&self) -> usize {
        self.busy.load(Ordering::Acquire)
    }

    /// Hands an operation to the Python side and waits for its answer.
    pub async fn operate(&self, request: OperationRequest) -> Result<OperationAnswer> {
        let (reply, answer) = oneshot::channel();
        let gone = || Error::unavailable("server is shutting down");
        self.operations.send(Operation { request, reply }).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

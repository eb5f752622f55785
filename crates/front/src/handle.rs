//! Starting and stopping: sockets are bound first, so that a busy port is an error before any thread exists.

use crate::regions::Devices;
use crate::server::{Config, Operation, Server, State};
use crate::shard::{Role, Shard, Stop, accept, runtime};
use penstock_schema::limits;
use socket2::{Domain, Protocol, Socket, Type};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, mpsc::Receiver};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, mpsc, watch};

/// Connections that wait for `accept`; the kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Sockets under way from an acceptor to a shard.
const HANDOVER: usize = 1024;

/// How often a drain looks whether it is done: well below the latency of anything worth waiting for.
const DRAIN_LOOK: Duration = Duration::from_millis(2);

/// Time for cut connections to be dropped.
const CUT_TIME: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot listen on {address} for {what}: {reason}")]
    Bind { what: &'static str, address: SocketAddr, reason: std::io::Error },
    #[error("cannot start a server thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// A running server. Dropping it stops without waiting for requests.
pub struct Handle {
    pub server: Arc<Server>,
    pub http: Option<SocketAddr>,
    pub grpc: Option<SocketAddr>,
    pub metrics: Option<SocketAddr>,
    stop: watch::Sender<Stop>,
    threads: Vec<JoinHandle<()>>,
}

impl Handle {
    /// Binds, then serves. Every model is still unknown and the server not ready.
    /// `devices` reaches the memory of GPUs that clients share, if something here can.
    pub fn start(
        config: Config,
        devices: Option<Arc<dyn Devices>>,
    ) -> Result<(Handle, Receiver<Operation>), StartError> {
        let mut listeners = Vec::new();
        let mut addresses = [None; 3];
        let wanted = [
            ("http", config.http, Role::Http),
            ("grpc", config.grpc, Role::Grpc),
            ("metrics", config.metrics, Role::Metrics),
        ];
        for (bound, (what, address, role)) in addresses.iter_mut().zip(wanted) {
            let Some(address) = address else { continue };
            let listener = bind(address).map_err(|reason| StartError::Bind { what, address, reason })?;
            *bound = Some(listener.local_addr()?);
            listeners.push((listener, role));
        }
        let [http, grpc, metrics] = addresses;
        let (server, operations) = Server::new(config, devices);
        let (stop, stopped) = watch::channel(Stop::Not);
        let mut threads = Vec::new();
        let mut shards = Vec::new();
        for number in 0..server.config.shards.max(1) {
            let (sender, sockets) = mpsc::channel(HANDOVER);
            let shard = Shard::new(server.clone(), stopped.clone());
            let runtime = runtime()?;
            let thread = std::thread::Builder::new().name(format!("penstock-io-{number}"));
            threads.push((thread, runtime, shard, sockets));
            shards.push(sender);
        }
        // The acceptors live on the first shard: accepting is rare and cheap.
        let mut listeners = Some(listeners);
        let mut handles = Vec::new();
        let permits = Arc::new(Semaphore::new(limits::CONNECTIONS as usize));
        for (thread, runtime, shard, sockets) in threads {
            let acceptors = listeners.take().unwrap_or_default();
            let (shards, stopped, permits) = (shards.clone(), stopped.clone(), permits.clone());
            handles.push(thread.spawn(move || {
                runtime.block_on(async move {
                    for (listener, role) in acceptors {
                        match tokio::net::TcpListener::from_std(listener) {
                            Ok(listener) => {
                                let shards = shards.clone();
                                tokio::spawn(accept(listener, role, shards, permits.clone(), stopped.clone()));
                            }
                            Err(error) => tracing::error!(%error, "cannot serve a listener"),
                        }
                    }
                    drop(shards);
                    shard.run(sockets).await;
                });
                runtime.shutdown_background();
            })?);
        }
        Ok((Handle { server, http, grpc, metrics, stop, threads: handles }, operations))
    }

    /// Refuses new requests and waits until those in flight are answered. Returns how many were not; they are refused.
    pub fn drain(&self, timeout: Duration) -> usize {
        self.server.set_state(State::Draining);
        self.stop.send_replace(Stop::Drain);
        let deadline = Instant::now() + timeout;
        while self.server.in_flight() > 0 && Instant::now() < deadline {
            std::thread::sleep(DRAIN_LOOK);
        }
        let left = self.server.in_flight();
        if left > 0 {
            self.stop.send_replace(Stop::Soon);
        }
        left
    }

    /// Ends all connections: those without a request at once, others when their answers are written or, at the latest,
    /// after `grace`.
    pub fn stop(&mut self, grace: Duration) {
        self.stop.send_replace(Stop::Soon);
        wait(&self.threads, grace);
        self.stop.send_replace(Stop::Now);
        wait(&self.threads, CUT_TIME);
        for thread in self.threads.drain(..).filter(JoinHandle::is_finished) {
            if thread.join().is_err() {
                tracing::error!("a server thread had panicked");
            }
        }
    }
}

/// Returns when all threads have ended, or the time is over.
fn wait(threads: &[JoinHandle<()>], time: Duration) {
    let deadline = Instant::now() + time;
    while !threads.iter().all(JoinHandle::is_finished) && Instant::now() < deadline {
        std::thread::sleep(DRAIN_LOOK);
    }
}

fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    // A restarted server may take its port back while old connections still linger.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

//! A shard: one thread, one runtime, the connections it accepted, and the mailbox their answers come back to.

use crate::server::Server;
use crate::stream::{Phase, Stream, Watch};
use crate::{grpc, http1};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use penstock_dispatch::{Mailbox, Queue};
use penstock_schema::{Error, limits};
use std::cell::RefCell;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};

/// The coarse clock's tick: fine enough for time-outs of seconds.
const TICK: Duration = Duration::from_millis(250);

/// How long input is read over after the last answer of a connection.
const LINGER: Duration = Duration::from_secs(2);

/// Threads of a shard for long work on single requests: each may hold a body and what it inflates to.
const BLOCKING_THREADS: usize = 4;

/// An HTTP/2 peer that does not answer a ping is gone. Others may idle: clients keep channels open for hours.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the acceptor rests when the process has no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

fn ticks(time: Duration) -> u32 {
    time.as_millis().div_ceil(TICK.as_millis()).max(1) as u32
}

/// The protocol of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Http,
    Grpc,
    Metrics,
}

/// How far stopping has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    Not,
    /// Requests that have arrived are answered, new ones refused, and those that stopped arriving are given up.
    Drain,
    /// Answers under way go out. There is nothing else to wait for, or the time for it is over.
    Soon,
    /// Connections are cut.
    Now,
}

/// A connection on its way from an acceptor to its shard.
pub struct Accepted {
    socket: std::net::TcpStream,
    role: Role,
    /// Counts it against the bound on connections until it has ended.
    permit: OwnedSemaphorePermit,
}

/// A peer that was silent for this long, while the server stops, is not about to send or to close: packets are around
/// the world sooner.
const QUIET: Duration = TICK;

/// How often a stopping shard looks whether its connections have ended.
const STOP_LOOK: Duration = Duration::from_millis(5);

/// What the requests of one shard share.
pub struct Shard {
    pub server: Arc<Server>,
    pub mailbox: Arc<Mailbox>,
    clock: Arc<AtomicU32>,
    watches: Mutex<Vec<Weak<Watch>>>,
    stop: watch::Receiver<Stop>,
    /// Wakes requests that wait for models when no time is left for them.
    overdue: Notify,
}

thread_local! {
    /// Queues that took a job since this shard last ran out of ready sockets.
    static TOUCHED: RefCell<Vec<Arc<Queue>>> = const { RefCell::new(Vec::new()) };
}

/// Remembers to look at this queue before the shard goes to sleep.
pub fn touch(queue: &Arc<Queue>) {
    TOUCHED.with_borrow_mut(|touched| {
        if !touched.iter().any(|other| Arc::ptr_eq(other, queue)) {
            touched.push(queue.clone());
        }
    });
}

/// What arrived together has been queued: let the instances look at it.
fn nudge_touched() {
    TOUCHED.with_borrow_mut(|touched| touched.drain(..).for_each(|queue| queue.nudge()));
}

pub fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .on_thread_park(nudge_touched)
        .build()
}

impl Shard {
    pub fn new(server: Arc<Server>, stop: watch::Receiver<Stop>) -> Arc<Shard> {
        let clock = Arc::new(AtomicU32::new(0));
        Arc::new(Shard {
            server,
            mailbox: Mailbox::new(),
            clock,
            watches: Mutex::default(),
            stop,
            overdue: Notify::new(),
        })
    }

    /// Serves what the acceptors send until they are gone and every connection has ended.
    pub async fn run(self: Arc<Self>, mut sockets: mpsc::Receiver<Accepted>) {
        tokio::spawn(self.mailbox.clone().run());
        tokio::spawn(self.clone().sweep());
        while let Some(accepted) = sockets.recv().await {
            match TcpStream::from_std(accepted.socket) {
                Ok(socket) => self.adopt(socket, accepted.role, accepted.permit),
                Err(error) => tracing::debug!(%error, "connection lost before it was served"),
            }
        }
        let began = self.clock.load(Relaxed);
        while self.watches.lock().iter().any(|watch| watch.strong_count() > 0) {
            self.overdue.notify_waiters();
            let now = *self.stop.borrow() == Stop::Now;
            // The first tick may be nearly over when it is counted.
            let quiet = self.clock.load(Relaxed).wrapping_sub(began) > ticks(QUIET);
            for watch in self.watches.lock().iter().filter_map(Weak::upgrade) {
                let patience = if watch.wrote_much() { ticks(LINGER) } else { ticks(QUIET) };
                if now || quiet && watch.silence() > patience && watch.is_done() {
                    watch.abort();
                }
            }
            tokio::time::sleep(STOP_LOOK).await;
        }
    }

    /// Ends when a request that still waits for its answer is to be given up, because the server's time is over.
    pub async fn overdue(&self) {
        self.overdue.notified().await;
    }

    /// What the server has come to now, for [`Arrival::is_given_up`].
    pub fn arrival(&self) -> Arrival {
        let stop = self.stop.clone();
        let began = *stop.borrow();
        Arrival { stop, began }
    }

    fn adopt(self: &Arc<Self>, socket: TcpStream, role: Role, permit: OwnedSemaphorePermit) {
        let watch = Watch::new(self.clock.clone(), permit);
        self.watches.lock().push(Arc::downgrade(&watch));
        let task = match role {
            Role::Grpc => tokio::spawn(serve_grpc(self.clone(), socket, watch.clone())),
            Role::Http | Role::Metrics => tokio::spawn(serve_http(self.clone(), socket, watch.clone(), role)),
        };
        watch.attach(task.abort_handle());
    }

    /// Advances the coarse clock and ends connections that have been in a phase for too long.
    async fn sweep(self: Arc<Self>) {
        let config = &self.server.config;
        let (head, idle) = (ticks(config.header_timeout), ticks(config.idle_timeout));
        let (reply, linger) = (ticks(config.write_timeout), ticks(LINGER));
        loop {
            tokio::time::sleep(TICK).await;
            self.clock.fetch_add(1, Relaxed);
            // What waited too long is answered even while every instance is busy or hangs.
            self.server.registry.all().iter().for_each(|model| model.queue.expire());
            self.watches.lock().retain(|watch| {
                let Some(watch) = watch.upgrade() else { return false };
                let limit = match watch.phase() {
                    Phase::Idle => idle,
                    Phase::Head => head,
                    Phase::Busy => u32::MAX,
                    Phase::Reply => reply,
                    Phase::Linger => linger,
                };
                if watch.age() > limit {
                    watch.abort();
                }
                true
            });
        }
    }
}

/// Something that is still coming in from a client.
pub struct Arrival {
    stop: watch::Receiver<Stop>,
    /// Where the server was when it began to arrive.
    began: Stop,
}

impl Arrival {
    /// Ends when the server has gone a step further towards its end, and the client a while without sending: to be
    /// raced with what the client sends, piece by piece.
    pub async fn is_given_up(&mut self) -> Error {
        let began = self.began;
        self.until(|stop| stop > began).await
    }

    /// As `is_given_up`, for what may begin at any time and has to be over when the server ends.
    pub async fn is_over(&mut self) -> Error {
        self.until(|stop| stop >= Stop::Soon).await
    }

    async fn until(&mut self, reached: impl Fn(Stop) -> bool) -> Error {
        // A sender that is gone ends the wait as well.
        let _ = self.stop.wait_for(|stop| reached(*stop)).await.is_ok();
        tokio::time::sleep(QUIET).await;
        Error::unavailable("server is shutting down, and the request had not arrived; send it to another replica")
    }
}

async fn serve_http(shard: Arc<Shard>, socket: TcpStream, watch: Arc<Watch>, role: Role) {
    let io = TokioIo::new(Stream::http1(socket, watch.clone()));
    let mut stop = shard.stop.clone();
    let seen = watch.clone();
    let service = service_fn(move |request| http1::serve(shard.clone(), watch.clone(), role, request));
    let connection = hyper::server::conn::http1::Builder::new().serve_connection(io, service);
    let mut connection = pin!(connection);
    until_stopped(&mut stop, &seen, connection.as_mut(), |connection| connection.graceful_shutdown()).await;
}

async fn serve_grpc(shard: Arc<Shard>, socket: TcpStream, watch: Arc<Watch>) {
    let io = TokioIo::new(Stream::http2(socket, watch.clone()));
    let mut stop = shard.stop.clone();
    let max_body = shard.server.config.max_body_bytes as u64;
    let seen = watch.clone();
    let service = service_fn(move |request| grpc::serve(shard.clone(), seen.answering(), request));
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_local_error_reset_streams(limits::HTTP2_RESET_STREAMS as usize)
        .max_concurrent_streams(limits::HTTP2_STREAMS as u32)
        .max_header_list_size(limits::HTTP2_HEADER_BYTES as u32)
        // A whole tensor may be under way on a stream without a round trip for permission to go on.
        .initial_stream_window_size(max_body.min(limits::HTTP2_WINDOW_BYTES) as u32)
        .initial_connection_window_size(max_body.min(limits::HTTP2_WINDOW_BYTES) as u32 * 2)
        .max_frame_size(limits::HTTP2_FRAME_BYTES as u32)
        .max_send_buf_size(limits::HTTP2_WINDOW_BYTES as usize);
    let connection = builder.serve_connection(io, service);
    let mut connection = pin!(connection);
    until_stopped(&mut stop, &watch, connection.as_mut(), |connection| connection.graceful_shutdown()).await;
}

/// Runs a connection; when the server stops, lets it finish what it has begun, if it has begun anything.
async fn until_stopped<C, E>(
    stop: &mut watch::Receiver<Stop>,
    watch: &Watch,
    mut connection: std::pin::Pin<&mut C>,
    finish: impl FnOnce(std::pin::Pin<&mut C>),
) where
    C: Future<Output = Result<(), E>>,
    E: std::fmt::Display,
{
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => ended,
        _ = stopped(stop) => {
            match watch.phase() {
                // hyper would wait for the rest of a head, and for the whole of HTTP/2's preface.
                Phase::Head => return,
                Phase::Idle => watch.leave(),
                Phase::Busy | Phase::Reply | Phase::Linger => {}
            }
            finish(connection.as_mut());
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}

/// Ends when the server has nothing to wait for but answers on their way, or is gone.
async fn stopped(stop: &mut watch::Receiver<Stop>) {
    let _ = stop.wait_for(|stop| *stop >= Stop::Soon).await.is_ok();
}

/// Accepts on one listener and deals the sockets out to the shards in turn.
pub async fn accept(
    listener: TcpListener,
    role: Role,
    shards: Vec<mpsc::Sender<Accepted>>,
    permits: Arc<Semaphore>,
    mut stop: watch::Receiver<Stop>,
) {
    let mut failing = false;
    for turn in 0usize.. {
        // At the bound on connections further ones wait in the kernel.
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped(&mut stop) => return,
        };
        match accepted {
            Ok((socket, _)) => {
                let sent = socket.set_nodelay(true).and_then(|()| socket.into_std());
                if let Ok(socket) = sent {
                    let _ = shards[turn % shards.len()].send(Accepted { socket, role, permit }).await;
                }
                failing = false;
            }
            Err(error) => {
                // Once per episode: a process out of descriptors fails twenty times a second.
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, "cannot accept");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

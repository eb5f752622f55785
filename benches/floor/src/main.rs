//! The floor: what a request costs when a server only receives it, hands its body to another thread and sends it back.
//!
//! It is the yardstick of `benches/dataplane.py`, which starts it and quotes every server as a multiple of it. It promises
//! to do nothing else that a model server does: no decoding, no validation, no model. HTTP/1.1 on one port, HTTP/2 with
//! gRPC trailers on the other, one I/O thread, one worker thread that takes what is queued, up to 64 bodies, at a time.
//! A GET answers how many bodies went through in how many batches, in the words of a v2 statistics answer.

#![forbid(unsafe_code)]

use std::{
    convert::Infallible,
    env,
    error::Error,
    io,
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender};
use http_body_util::{BodyExt, Full};
use hyper::{
    HeaderMap, Method, Request, Response,
    body::Incoming,
    header::{CONTENT_TYPE, HeaderValue},
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::oneshot,
};

/// As the models that it is compared with.
const MAX_BATCH: usize = 64;

/// Holds a 602 KB message, so that no upload waits for leave to go on.
const WINDOW: u32 = 1 << 20;

struct Options {
    http_port: u16,
    grpc_port: u16,
    /// How long each batch sleeps: the batching workload.
    sleep: Duration,
    /// Answers are cut to this: a model that reads 602 KB and answers 12 bytes is not compared with a 602 KB echo.
    reply_bytes: usize,
}

struct Job {
    body: Bytes,
    reply: oneshot::Sender<Bytes>,
}

#[derive(Default)]
struct Counts {
    bodies: AtomicU64,
    batches: AtomicU64,
}

fn options(mut words: impl Iterator<Item = String>) -> Result<Options, Box<dyn Error>> {
    let mut options = Options { http_port: 8000, grpc_port: 8001, sleep: Duration::ZERO, reply_bytes: usize::MAX };
    while let Some(flag) = words.next() {
        let value = words.next().ok_or_else(|| format!("{flag}: no value given"))?;
        match flag.as_str() {
            "--http-port" => options.http_port = value.parse()?,
            "--grpc-port" => options.grpc_port = value.parse()?,
            "--sleep" => options.sleep = Duration::try_from_secs_f64(value.parse()?)?,
            "--reply-bytes" => options.reply_bytes = value.parse()?,
            _ => return Err(format!("{flag}: not one of --http-port --grpc-port --sleep --reply-bytes").into()),
        }
    }
    Ok(options)
}

fn work(jobs: &Receiver<Job>, counts: &Counts, options: &Options) {
    while let Ok(first) = jobs.recv() {
        let mut batch = vec![first];
        batch.extend(jobs.try_iter().take(MAX_BATCH - 1));
        if !options.sleep.is_zero() {
            thread::sleep(options.sleep);
        }
        counts.bodies.fetch_add(batch.len() as u64, Relaxed);
        counts.batches.fetch_add(1, Relaxed);
        for job in batch {
            let end = job.body.len().min(options.reply_bytes);
            // The client may be gone; then nobody waits for the answer.
            let _ = job.reply.send(job.body.slice(..end));
        }
    }
}

/// The body comes back from the worker; `None` when the connection or the worker is gone.
async fn echo(request: Request<Incoming>, queue: &Sender<Job>) -> Option<Bytes> {
    let body = request.into_body().collect().await.ok()?.to_bytes();
    let (reply, answer) = oneshot::channel();
    queue.send(Job { body, reply }).ok()?;
    answer.await.ok()
}

fn statistics(counts: &Counts) -> Response<Full<Bytes>> {
    let (bodies, batches) = (counts.bodies.load(Relaxed), counts.batches.load(Relaxed));
    Response::new(Full::from(format!(
        r#"{{"model_stats":[{{"name":"ident","inference_count":{bodies},"execution_count":{batches}}}]}}"#
    )))
}

fn gone() -> io::Error {
    io::Error::other("the connection or the worker is gone")
}

async fn serve_http(socket: TcpStream, queue: Sender<Job>, counts: Arc<Counts>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let (queue, counts) = (queue.clone(), Arc::clone(&counts));
        async move {
            if request.method() == Method::GET {
                return Ok(statistics(&counts));
            }
            echo(request, &queue).await.map(|body| Response::new(Full::new(body))).ok_or_else(gone)
        }
    });
    // A connection that ends badly is the client's affair; the generators count it.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(socket), service).await;
}

async fn serve_grpc(socket: TcpStream, queue: Sender<Job>) {
    let service = service_fn(move |request| {
        let queue = queue.clone();
        async move {
            let answer = echo(request, &queue).await.ok_or_else(gone)?;
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            let body = Full::new(answer).with_trailers(async move { Some(Ok::<_, Infallible>(trailers)) });
            let mut response = Response::new(body);
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            Ok::<_, io::Error>(response)
        }
    });
    let _ = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .serve_connection(TokioIo::new(socket), service)
        .await;
}

async fn listen(http: TcpListener, grpc: TcpListener, queue: Sender<Job>, counts: Arc<Counts>) -> io::Result<()> {
    let grpc_queue = queue.clone();
    tokio::spawn(async move {
        while let Ok((socket, _)) = grpc.accept().await {
            let _ = socket.set_nodelay(true);
            tokio::spawn(serve_grpc(socket, grpc_queue.clone()));
        }
    });
    loop {
        let (socket, _) = http.accept().await?;
        let _ = socket.set_nodelay(true);
        tokio::spawn(serve_http(socket, queue.clone(), Arc::clone(&counts)));
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = options(env::args().skip(1))?;
    let (http_port, grpc_port) = (options.http_port, options.grpc_port);
    let counts = Arc::new(Counts::default());
    let (queue, jobs) = crossbeam_channel::unbounded();
    let worker_counts = Arc::clone(&counts);
    thread::spawn(move || work(&jobs, &worker_counts, &options));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_io().build()?;
    runtime.block_on(async move {
        let http = TcpListener::bind((Ipv4Addr::LOCALHOST, http_port)).await?;
        let grpc = TcpListener::bind((Ipv4Addr::LOCALHOST, grpc_port)).await?;
        listen(http, grpc, queue, counts).await
    })?;
    Ok(())
}

//! Requests that this process itself makes of its models, such as those of a pipeline. They join the queues that requests
//! from sockets wait in, after the same checks and under the same rules; nothing is encoded or decoded.
//!
//! The caller is a thread with an event loop of its own, which is no runtime of ours. It submits, goes on, and is woken by
//! a bell when [`Calls::turn`] has something for it: once for the answers of a whole batch.

use crate::ready::Ready;
use crate::registry::ModelVersion;
use crate::server::Server;
use crate::submit;
use parking_lot::Mutex;
use penstock_dispatch::{Clock, Mailbox, Monotonic, Nanos, Nudge, Queue, Receiver, reply};
use penstock_schema::{Code, Error, Outputs, Result, Tensor};
use penstock_wire::{Parameters, RawRequest, RawTensor, validate};
use smallvec::SmallVec;
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use tokio::sync::oneshot::error::TryRecvError;

/// One request to be made.
pub struct Call {
    pub model: Arc<ModelVersion>,
    /// The caller named the version, so no other may answer.
    pub pinned: bool,
    /// By name, as a client would send them.
    pub inputs: SmallVec<[(String, Tensor); 2]>,
    /// On the clock of the queues: nobody waits for the answer after this.
    pub deadline: Option<Nanos>,
    /// On the same clock: it must have been taken from its queue by then.
    pub taken_by: Option<Nanos>,
}

/// What came of a call.
pub struct Answered<T> {
    pub tag: T,
    /// The version that gave the answer.
    pub model: Arc<ModelVersion>,
    pub outputs: Result<Outputs>,
    /// How long it waited for an instance; None when none took it.
    pub queued: Option<Nanos>,
}

/// What there is to do.
pub struct Turn<T> {
    pub answered: Vec<Answered<T>>,
    /// Numbers of other things than calls that became ready, and of calls that were cancelled meanwhile.
    pub others: Vec<u64>,
}

struct Open<T> {
    tag: T,
    model: Arc<ModelVersion>,
    answer: Receiver,
    arrived: Nanos,
    /// 0 until an instance takes it.
    taken: Arc<AtomicU64>,
}

/// The calls of one thread. `T` is what the caller knows a call by.
pub struct Calls<T> {
    server: Arc<Server>,
    mailbox: Arc<Mailbox>,
    /// `mailbox.run()`, which completes the answers that instances post.
    post: Mutex<Pin<Box<dyn Future<Output = ()> + Send>>>,
    post_waker: Waker,
    ready: Arc<Ready>,
    open: Mutex<HashMap<u64, Open<T>>>,
    /// Queues that took a call since the last nudge.
    touched: Mutex<Vec<Arc<Queue>>>,
    next: AtomicU64,
}

impl<T> Calls<T> {
    /// `bell` is called from any thread when there is something new for [`Calls::turn`].
    pub fn new(server: Arc<Server>, bell: impl Fn() + Send + Sync + 'static) -> Calls<T> {
        let mailbox = Mailbox::new();
        let ready = Ready::new(bell);
        let calls = Calls {
            post: Mutex::new(Box::pin(mailbox.clone().run())),
            post_waker: ready.waker(None),
            server,
            mailbox,
            ready,
            open: Mutex::default(),
            touched: Mutex::default(),
            next: AtomicU64::new(0),
        };
        calls.complete();
        calls
    }

    /// The version in service; without one, the latest.
    pub fn model(&self, name: &str, version: Option<&str>) -> Result<Arc<ModelVersion>> {
        self.server.registry.get(name, version)
    }

    /// A number for something that may become ready beside the calls.
    pub fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Waking it puts the number into the next turn.
    pub fn waker(&self, number: u64) -> Waker {
        self.ready.waker(Some(number))
    }

    /// Puts the number into the next turn.
    pub fn announce(&self, number: u64) {
        self.ready.add(Some(number));
    }

    /// Queues a call and gives its number. Wakes no instance unless a batch is full: that is what [`Calls::nudge`] is for.
    /// Errors are those that a client would get, and at once.
    pub fn submit(&self, call: Call, tag: T) -> Result<u64> {
        let Call { model, pinned, inputs, deadline, taken_by } = call;
        let now = Monotonic.now();
        if deadline.is_some_and(|at| at <= now) {
            return Err(Error::new(Code::DeadlineExceeded, "the deadline passed before the request was executed"));
        }
        if taken_by.is_some_and(|at| at <= now) {
            return Err(Error::unavailable("Request timeout expired"));
        }
        // Rounded up: 0 would mean forever.
        let timeout_us = taken_by.map_or(0, |at| (at - now).div_ceil(1000));
        let raw = |(name, tensor): (String, Tensor)| RawTensor {
            name: name.into(),
            datatype: tensor.datatype,
            shape: tensor.shape,
            data: tensor.data,
            place: None,
        };
        let request = RawRequest {
            inputs: inputs.into_iter().map(raw).collect(),
            parameters: Parameters { timeout_us, binary_data_output: true, ..Parameters::default() },
            ..RawRequest::default()
        };
        let request = validate::validate(&model.spec, request)?;
        let (sender, mut answer) = reply(&self.mailbox);
        let taken = Arc::new(AtomicU64::new(0));
        let (mut job, _) = submit::job(&model, request, deadline, sender);
        job.taken = Some(taken.clone());
        let arrived = job.arrived;
        let (model, nudge) = submit::queue(&self.server, model, job, pinned)?;
        match nudge {
            Nudge::Now => model.queue.nudge(),
            Nudge::Later => {
                let mut touched = self.touched.lock();
                if !touched.iter().any(|queue| Arc::ptr_eq(queue, &model.queue)) {
                    touched.push(model.queue.clone());
                }
            }
        }
        let number = self.number();
        // Answers come in turns; a refusal may be here already.
        if let Poll::Ready(refused) = Pin::new(&mut answer).poll(&mut Context::from_waker(&self.waker(number))) {
            submit::received(refused)?;
            return Err(Error::internal("a call was answered before anybody could have run it"));
        }
        self.open.lock().insert(number, Open { tag, model, answer, arrived, taken });
        Ok(number)
    }

    /// Everything that was ready has been submitted: let the instances look at it.
    pub fn nudge(&self) {
        let touched = std::mem::take(&mut *self.touched.lock());
        touched.iter().for_each(|queue| queue.nudge());
    }

    /// Nobody wants the answer any more: a call that waits is never executed.
    pub fn cancel(&self, number: u64) -> Option<T> {
        let call = self.open.lock().remove(&number)?;
        Some(call.tag)
    }

    /// Answers what has waited for too long, in all queues: for a timer.
    pub fn expire(&self) {
        self.server.registry.all().iter().for_each(|model| model.queue.expire());
    }

    /// Calls that were submitted and not answered.
    pub fn open(&self) -> usize {
        self.open.lock().len()
    }

    /// What became ready since the last time.
    pub fn turn(&self) -> Turn<T> {
        let numbers = self.ready.collect(|| self.complete());
        let mut turn = Turn { answered: Vec::new(), others: Vec::new() };
        let mut open = self.open.lock();
        for number in numbers {
            let Some(call) = open.get_mut(&number) else {
                turn.others.push(number);
                continue;
            };
            let answered = match call.answer.try_recv() {
                Err(TryRecvError::Empty) => continue,
                Ok(answer) => answer,
                Err(TryRecvError::Closed) => Err(submit::lost()),
            };
            if let Some(Open { tag, model, arrived, taken, .. }) = open.remove(&number) {
                let taken = taken.load(Ordering::Relaxed);
                let queued = (taken > 0).then(|| taken.saturating_sub(arrived));
                turn.answered.push(Answered { tag, model, outputs: answered, queued });
            }
        }
        turn
    }

    /// Completes the answers that arrived, and asks to be told of the next ones.
    fn complete(&self) {
        let done = self.post.lock().as_mut().poll(&mut Context::from_waker(&self.post_waker));
        debug_assert!(done.is_pending(), "a mailbox is never done");
    }
}

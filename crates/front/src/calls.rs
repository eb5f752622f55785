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
    /// The answer is to stay on the device that computes it.
    pub on_device: bool,
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
        let Call { model, pinned, inputs, deadline, taken_by, on_device } = call;
        let now = Monotonic.now();
        if deadline.is_some_and(|at| at <= now) {
            return Err(Error::new(Code::DeadlineExceeded, "the deadline passed before the request was executed"));
        }
        if taken_by.is_some_and(|at| at <= now) {
            return Err(Error::unavailable("Request timeout expired"));
        }
        if on_device && !model.spec.on_device {
            return Err(Error::new(
                Code::Unsupported,
                format!(
                    "model '{}' answers in memory of the host: expected an engine whose programs all run on a GPU, without \
                     padding, reshaping or reduced outputs; call it without on_device",
                    model.spec.name
                ),
            ));
        }
        // Rounded up: 0 would mean forever.
        let timeout_us = taken_by.map_or(0, |at| (at - now).div_ceil(1000));
        let raw = |(name, tensor): (String, Tensor)| RawTensor {
            name: name.into(),
            datatype: tensor.datatype,
            shape: tensor.shape,
            data: tensor.data,
            place: None,
            device: tensor.device,
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
        job.on_device = on_device;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::Config;
    use bytes::Bytes;
    use penstock_dispatch::{Attempt, Mode, QueuePolicy, Settings};
    use penstock_schema::{DataType, ModelSpec, OnDevice, Shape, TensorSpec};
    use std::collections::BTreeMap;
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    struct Place {
        calls: Calls<u32>,
        model: Arc<ModelVersion>,
        rung: Arc<AtomicUsize>,
    }

    fn version(number: u64) -> Arc<ModelVersion> {
        on(number, false)
    }

    fn on(number: u64, on_device: bool) -> Arc<ModelVersion> {
        let tensor = |name: &str| TensorSpec {
            name: name.to_owned(),
            datatype: DataType::Uint8,
            dims: vec![2],
            optional: false,
        };
        let spec = ModelSpec {
            name: "m".to_owned(),
            version: number,
            platform: String::new(),
            max_batch_size: 4,
            inputs: vec![tensor("x")],
            outputs: vec![tensor("y")],
            padding: None,
            on_device,
            config_json: Bytes::new(),
            config_proto: Bytes::new(),
        };
        let settings = Settings { max_batch_size: 4, mode: Mode::Auto, ..settings() };
        ModelVersion::new(spec, Queue::new(settings, Monotonic), 0.0)
    }

    fn settings() -> Settings {
        Settings {
            max_batch_size: 4,
            instances: 1,
            mode: Mode::Auto,
            preserve_ordering: false,
            max_requests: 3,
            max_bytes: 1 << 20,
            priority_levels: 0,
            default_priority_level: 0,
            default_policy: QueuePolicy { allow_override: true, ..QueuePolicy::default() },
            priority_policies: BTreeMap::new(),
        }
    }

    fn config() -> Config {
        let long = Duration::from_secs(60);
        Config {
            http: None,
            grpc: None,
            metrics: None,
            shards: 1,
            max_body_bytes: 1 << 20,
            header_timeout: long,
            body_grace: long,
            idle_timeout: long,
            write_timeout: long,
            strict_readiness: true,
            model_control: false,
            admin_token: None,
            client_shared_memory: false,
            server_name: String::new(),
            server_version: String::new(),
            extensions: Vec::new(),
        }
    }

    fn place() -> Place {
        let (server, _) = Server::new(config(), None);
        let model = version(1);
        server.registry.publish("m", vec![model.clone()]);
        let rung = Arc::new(AtomicUsize::new(0));
        let bell = rung.clone();
        let ring = move || {
            bell.fetch_add(1, Ordering::Relaxed);
        };
        Place { calls: Calls::new(server, ring), model, rung }
    }

    impl Place {
        fn call(&self, value: u8) -> Call {
            let tensor = Tensor::new(DataType::Uint8, Shape::from_slice(&[1, 2]), Bytes::copy_from_slice(&[value; 2]));
            let model = self.calls.model("m", None).unwrap();
            let inputs = SmallVec::from_iter([("x".to_owned(), tensor)]);
            Call { model, pinned: false, inputs, deadline: None, taken_by: None, on_device: false }
        }

        /// Executes what is queued, as one batch; gives its size.
        fn execute(&self) -> usize {
            self.calls.nudge();
            let Attempt::Batch(batch) = self.model.queue.try_pull() else { return 0 };
            let answers: Vec<_> =
                batch.jobs.iter().map(|job| Ok(job.inputs.iter().flatten().cloned().collect())).collect();
            let count = answers.len();
            batch.finish(answers);
            count
        }

        fn rings(&self) -> usize {
            self.rung.swap(0, Ordering::Relaxed)
        }
    }

    #[test]
    fn calls_made_together_are_one_batch_and_one_bell() {
        let place = place();
        for tag in 0..3 {
            place.calls.submit(place.call(tag as u8), tag).unwrap();
        }
        assert_eq!(place.execute(), 3);
        assert_eq!(place.rings(), 1);
        let turn = place.calls.turn();
        let mut got: Vec<(u32, u8)> =
            turn.answered.iter().map(|call| (call.tag, call.outputs.as_ref().unwrap()[0].data[0])).collect();
        got.sort_unstable();
        assert_eq!(got, [(0, 0), (1, 1), (2, 2)]);
        assert!(turn.answered.iter().all(|call| call.queued.is_some()));
        assert_eq!((place.calls.open(), place.rings()), (0, 0));
    }

    fn there(byte_size: usize) -> Box<OnDevice> {
        Box::new(OnDevice { byte_size, owner: Arc::new(()) })
    }

    #[test]
    fn what_lies_on_a_device_is_queued_by_its_size_and_let_go_with_its_call() {
        let place = place();
        let given = there(2);
        let tensor = |given: &OnDevice| Tensor {
            device: Some(Box::new(given.clone())),
            ..Tensor::new(DataType::Uint8, Shape::from_slice(&[1, 2]), Bytes::new())
        };
        let numbers: Vec<u64> = (0..2)
            .map(|tag| {
                let mut call = place.call(0);
                call.inputs[0].1 = tensor(&given);
                place.calls.submit(call, tag).unwrap()
            })
            .collect();
        assert_eq!(place.model.queue.statistics().pending_bytes, 4);
        place.calls.cancel(numbers[0]);
        assert_eq!(place.execute(), 1);
        let turn = place.calls.turn();
        let [call] = &turn.answered[..] else { panic!("one answer") };
        assert_eq!(call.outputs.as_ref().unwrap()[0].device, Some(given.clone()));
        drop(turn);
        assert_eq!(Arc::strong_count(&given.owner), 1);
    }

    #[test]
    fn a_cancelled_call_is_never_executed() {
        let place = place();
        let first = place.calls.submit(place.call(1), 1).unwrap();
        place.calls.submit(place.call(2), 2).unwrap();
        assert_eq!(place.calls.cancel(first), Some(1));
        assert_eq!(place.calls.cancel(first), None);
        assert_eq!(place.execute(), 1);
        let turn = place.calls.turn();
        assert_eq!(turn.answered.iter().map(|call| call.tag).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn refusals_come_at_once_and_say_why() {
        let place = place();
        let refused = |change: fn(&mut Call)| {
            let mut call = place.call(0);
            change(&mut call);
            place.calls.submit(call, 0).unwrap_err().code
        };
        assert_eq!(refused(|call| call.inputs.clear()), Code::InvalidArgument);
        assert_eq!(refused(|call| call.inputs[0].1.shape = Shape::from_slice(&[1, 3])), Code::InvalidArgument);
        assert_eq!(refused(|call| call.inputs[0].1.data = Bytes::new()), Code::InvalidArgument);
        assert_eq!(refused(|call| call.inputs[0].1.device = Some(there(3))), Code::InvalidArgument);
        assert_eq!(refused(|call| call.on_device = true), Code::Unsupported);
        assert_eq!(refused(|call| call.deadline = Some(0)), Code::DeadlineExceeded);
        assert_eq!(refused(|call| call.taken_by = Some(0)), Code::Unavailable);
        assert_eq!(place.calls.model("other", None).map(|_| ()).unwrap_err().code, Code::NotFound);
        for tag in 0..3 {
            place.calls.submit(place.call(0), tag).unwrap();
        }
        assert_eq!(refused(|_| ()), Code::Overloaded);
        assert_eq!(place.calls.open(), 3);
    }

    #[test]
    fn what_waits_for_too_long_is_answered_without_an_instance() {
        let place = place();
        let mut call = place.call(0);
        call.taken_by = Some(Monotonic.now() + 1_000_000);
        place.calls.submit(call, 7).unwrap();
        while place.rings() == 0 {
            place.calls.expire();
            std::thread::yield_now();
        }
        let turn = place.calls.turn();
        let [call] = &turn.answered[..] else { panic!("one answer") };
        assert_eq!((call.tag, call.outputs.as_ref().unwrap_err().code), (7, Code::Unavailable));
        assert_eq!(call.queued, None);
        assert_eq!(place.execute(), 0);
    }

    #[test]
    fn a_call_prepared_for_a_version_that_was_replaced_goes_to_its_successor() {
        let place = place();
        let call = place.call(5);
        let next = version(1);
        place.calls.server.registry.publish("m", vec![next.clone()]);
        place.model.queue.close();
        place.calls.submit(call, 0).unwrap();
        place.calls.nudge();
        let Attempt::Batch(batch) = next.queue.try_pull() else { panic!("the call is there") };
        drop(batch);
        assert_eq!(place.calls.turn().answered[0].outputs.as_ref().unwrap_err().code, Code::Unavailable);
    }

    #[test]
    fn a_successor_that_answers_elsewhere_gets_the_calls_that_do_not_mind() {
        for (before, after, stays, fits) in [
            (true, false, true, false),
            (true, false, false, true),
            (false, true, false, true),
            (true, true, true, true),
        ] {
            let place = place();
            let first = on(1, before);
            place.calls.server.registry.publish("m", vec![first.clone()]);
            let call = Call { on_device: stays, ..place.call(5) };
            place.calls.server.registry.publish("m", vec![on(1, after)]);
            first.queue.close();
            let code = place.calls.submit(call, 0).err().map(|error| error.code);
            assert_eq!(code, (!fits).then_some(Code::Unavailable), "{before} {after} {stays}");
        }
    }

    #[test]
    fn other_numbers_come_along() {
        let place = place();
        let number = place.calls.number();
        place.calls.announce(number);
        place.calls.waker(number + 1).wake();
        assert_eq!(place.rings(), 1);
        assert_eq!(place.calls.turn().others, [number, number + 1]);
    }
}

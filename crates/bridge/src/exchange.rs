//! Where a Python event loop meets the queues: requests for it come in, its calls of models go out, answers come back.
//!
//! One byte on a pair of sockets wakes the loop for everything that happened together. All methods are for the loop's own
//! thread; instances and shards reach in from theirs through [`Shared`].

use crate::concurrent::{Request, Running};
use crate::exceptions::raised;
use crate::front::Front;
use crate::passing;
use parking_lot::Mutex;
use penstock_dispatch::Nanos;
use penstock_front::{Answered, Call, Calls};
use penstock_schema::Error;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use smallvec::SmallVec;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Weak};
use std::task::Waker;

/// What Python knows a call by.
struct Tag {
    call: Py<PyAny>,
    /// It was made without the batch dimension, and is answered without.
    row: bool,
    model: String,
}

/// A request that the loop was told of, or has yet to be.
enum Known {
    Arrived(Arc<Running>),
    Begun(Weak<Running>),
}

/// What other threads reach.
pub struct Shared {
    calls: Calls<Tag>,
    requests: Mutex<HashMap<u64, Known>>,
}

impl Shared {
    pub fn number(&self) -> u64 {
        self.calls.number()
    }

    pub fn waker(&self, number: u64) -> Waker {
        self.calls.waker(number)
    }

    /// Hands a request to the loop.
    pub fn arrive(&self, running: Running) {
        let number = running.number;
        self.requests.lock().insert(number, Known::Arrived(Arc::new(running)));
        self.calls.announce(number);
    }

    pub fn forget(&self, number: u64) {
        self.requests.lock().remove(&number);
    }

    /// What a number stands for: a request to begin, or one whose client may have left.
    fn known(&self, number: u64) -> Option<(Arc<Running>, bool)> {
        let mut requests = self.requests.lock();
        let known = requests.get_mut(&number)?;
        if let Known::Begun(running) = known {
            return running.upgrade().map(|running| (running, false));
        }
        match std::mem::replace(known, Known::Begun(Weak::new())) {
            Known::Arrived(running) => {
                *known = Known::Begun(Arc::downgrade(&running));
                Some((running, true))
            }
            Known::Begun(_) => None,
        }
    }
}

#[pyclass(frozen, module = "penstock._core")]
pub struct Exchange {
    shared: Arc<Shared>,
    /// A byte to read here means that there is something for `turn`.
    bell: UnixStream,
}

impl Exchange {
    pub fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }
}

/// A call, its answer or its exception, and the seconds that it waited for an instance.
type Settled<'py> = (Py<PyAny>, Option<Bound<'py, PyAny>>, Option<Bound<'py, PyAny>>, Option<f64>);

/// Requests to begin, with what begins them; calls that were answered; numbers of requests whose client left.
type Happened<'py> = (Vec<(Bound<'py, PyAny>, Request)>, Vec<Settled<'py>>, Vec<u64>);

#[pymethods]
impl Exchange {
    #[new]
    fn new(front: PyRef<'_, Front>) -> PyResult<Exchange> {
        let (bell, hammer) = UnixStream::pair()?;
        bell.set_nonblocking(true)?;
        hammer.set_nonblocking(true)?;
        let ring = move || {
            // Fails when it is full of earlier rings, or nobody listens any more: both are fine.
            drop((&hammer).write(&[1]));
        };
        let calls = Calls::new(front.server.clone(), ring);
        Ok(Exchange { shared: Arc::new(Shared { calls, requests: Mutex::default() }), bell })
    }

    /// Readable when there is something for `turn`.
    fn fileno(&self) -> i32 {
        self.bell.as_raw_fd()
    }

    /// Queues a request to a model of this server, and gives its number; `call` comes back with the answer. `row`: the
    /// inputs are one row, without the batch dimension. Times are those of a `Request`. `on_device`: the answer stays on the
    /// GPU. Raises what a client would be refused with.
    #[allow(clippy::too_many_arguments, reason = "the loop's one hot call: an object of terms would be made each time")]
    fn submit(
        &self,
        py: Python<'_>,
        model: &str,
        version: Option<&str>,
        row: bool,
        positional: &Bound<'_, PyTuple>,
        named: &Bound<'_, PyDict>,
        deadline: Option<Nanos>,
        taken_by: Option<Nanos>,
        on_device: bool,
        call: Py<PyAny>,
    ) -> PyResult<u64> {
        let calls = &self.shared.calls;
        let refused = |error: Error| raised(py, &of_call(model, &error));
        let found = calls.model(model, version).map_err(refused)?;
        let mut inputs = SmallVec::new();
        for (position, value) in positional.iter().enumerate() {
            let name = passing::name_at(&found.spec, position).map_err(refused)?;
            inputs.push((name.to_owned(), passing::tensor(&found.spec, name, value, row)?));
        }
        for (name, value) in named {
            let name: String = name.extract()?;
            let tensor = passing::tensor(&found.spec, &name, value, row)?;
            inputs.push((name, tensor));
        }
        let wanted = Call { model: found, pinned: version.is_some(), inputs, deadline, taken_by, on_device };
        calls.submit(wanted, Tag { call, row, model: model.to_owned() }).map_err(refused)
    }

    /// Everything that was ready has been submitted: let the instances look at it.
    fn nudge(&self, py: Python<'_>) {
        py.detach(|| self.shared.calls.nudge());
    }

    /// Nobody wants the answer of this call.
    fn cancel(&self, number: u64) {
        drop(self.shared.calls.cancel(number));
    }

    /// Answers what has waited for too long.
    fn expire(&self, py: Python<'_>) {
        py.detach(|| self.shared.calls.expire());
    }

    /// Calls that were submitted and not answered.
    #[getter]
    fn open_calls(&self) -> usize {
        self.shared.calls.open()
    }

    /// What happened since the last time.
    fn turn<'py>(&self, py: Python<'py>) -> PyResult<Happened<'py>> {
        // The bell is emptied first: what comes from here on rings it again. It never holds more than a few bytes.
        drop((&self.bell).read(&mut [0; 16]));
        let turn = self.shared.calls.turn();
        let answered = turn.answered.into_iter().map(|answered| self.answer(py, answered)).collect();
        let (mut arrived, mut gone) = (Vec::new(), Vec::new());
        for number in turn.others {
            match self.shared.known(number) {
                // Left before it was begun: there is nothing to stop.
                Some((running, true)) if running.is_gone() => running.give_up(),
                Some((running, true)) => arrived.push((running.begin(py).clone(), Request { running })),
                Some((running, false)) if running.is_gone() => gone.push(number),
                _ => {}
            }
        }
        Ok((arrived, answered, gone))
    }
}

impl Exchange {
    fn answer<'py>(&self, py: Python<'py>, answered: Answered<Tag>) -> Settled<'py> {
        let Answered { tag, model, outputs, queued } = answered;
        let queued = queued.map(|nanos| nanos as f64 / 1e9);
        let value = match outputs {
            Ok(outputs) => passing::answer(py, &model.spec, outputs, tag.row),
            Err(error) => Err(raised(py, &of_call(&tag.model, &error))),
        };
        match value {
            Ok(value) => (tag.call, Some(value), None, queued),
            Err(error) => (tag.call, None, Some(error.into_value(py).into_bound(py).into_any()), queued),
        }
    }
}

/// The same error, saying which call it was.
fn of_call(model: &str, error: &Error) -> Error {
    Error::new(error.code, format!("call of '{model}': {error}"))
}

//! The way back: one list per batch to the shard, one wake-up per list.
//!
//! An instance that completed 64 oneshot channels of another thread would wake that thread 64 times. Instead it posts one
//! list to the shard's mailbox and the shard completes the channels on its own thread, where waking a task costs nothing.

use parking_lot::Mutex;
use penstock_schema::{Error, Outputs, Result};
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::{Notify, oneshot};

pub type Answer = Result<Outputs>;

/// Where the answer arrives, on the shard. Dropping it cancels the job.
pub type Receiver = oneshot::Receiver<Answer>;

pub(crate) type Delivery = Vec<(oneshot::Sender<Answer>, Answer)>;

/// The shard's side of replies. Each shard has one and spawns [`Mailbox::run`] on itself.
#[derive(Debug, Default)]
pub struct Mailbox {
    list: Mutex<Delivery>,
    arrived: Notify,
}

impl Mailbox {
    pub fn new() -> Arc<Mailbox> {
        Arc::default()
    }

    /// Completes what instances post, forever; the shard ends it by dropping the task.
    pub async fn run(self: Arc<Mailbox>) {
        let mut list = Delivery::new();
        loop {
            self.arrived.notified().await;
            std::mem::swap(&mut list, &mut *self.list.lock());
            for (sender, answer) in list.drain(..) {
                // A receiver that went away since was told nothing it still wants to know.
                drop(sender.send(answer));
            }
        }
    }

    /// Empties `delivery` into the mailbox; its capacity may be swapped for that of an earlier list.
    pub(crate) fn post(&self, delivery: &mut Delivery) {
        let was_empty = {
            let mut list = self.list.lock();
            let was_empty = list.is_empty();
            if was_empty {
                std::mem::swap(&mut *list, delivery);
            } else {
                list.append(delivery);
            }
            was_empty
        };
        // A list that was not empty has a wake-up on its way already.
        if was_empty {
            self.arrived.notify_one();
        }
    }
}

/// The promise of exactly one answer. Dropped unanswered it answers "instance lost".
#[derive(Debug)]
pub struct Reply {
    /// `None` once the answer is on its way.
    sender: Option<oneshot::Sender<Answer>>,
    mailbox: Arc<Mailbox>,
}

/// A reply and the end at which its answer arrives. Dropping the receiver cancels the job.
pub fn reply(mailbox: &Arc<Mailbox>) -> (Reply, Receiver) {
    let (sender, receiver) = oneshot::channel();
    (Reply { sender: Some(sender), mailbox: mailbox.clone() }, receiver)
}

impl Reply {
    /// Nobody waits for the answer any more.
    pub fn is_closed(&self) -> bool {
        self.sender.as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    /// Ready once nobody waits for the answer any more; until then the task is woken when that happens. For work that
    /// can be given up while it is under way.
    pub fn poll_closed(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.sender.as_mut().map_or(Poll::Ready(()), |sender| sender.poll_closed(context))
    }

    /// Answers now, from any thread; meant for single refusals. Batches answer through [`crate::Batch::finish`].
    pub fn send(mut self, answer: Answer) {
        if let Some(sender) = self.sender.take() {
            drop(sender.send(answer));
        }
    }

    /// Gives the promise up without an answer: the receiver sees a closed channel. For a caller that answers by itself.
    pub fn disarm(mut self) {
        self.sender = None;
    }

    pub(crate) fn take(&mut self) -> Option<oneshot::Sender<Answer>> {
        self.sender.take()
    }

    pub(crate) fn mailbox(&self) -> &Arc<Mailbox> {
        &self.mailbox
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(sender) = self.sender.take() {
            drop(sender.send(Err(lost())));
        }
    }
}

pub(crate) fn lost() -> Error {
    Error::unavailable("instance lost: it ended before it answered this request; send the request again")
}

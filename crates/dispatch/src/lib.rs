//! From single requests to batches: the queue of one model version.
//!
//! A shard (a thread with sockets) submits [`Job`]s and nudges the [`Queue`] when it has no more ready sockets; an
//! instance (a thread with a model) pulls a [`Batch`], executes it and finishes it with one answer per job. Answers go
//! back to the shard as one list per batch through its [`Mailbox`].
//!
//! What holds here:
//! * a job gets exactly one answer: one dropped unanswered is answered "instance lost";
//! * a job whose client is gone, or whose deadline passed, is never executed;
//! * the queue is bounded by count and by bytes, and refuses at once what does not fit;
//! * *when* to send a batch is decided by [`policy::decide`], a pure function of what is queued, what is expected and what
//!   a batch costs;
//! * nothing here does I/O, reads a tensor or knows a protocol.
#![forbid(unsafe_code)]

mod backlog;
mod batch;
mod clock;
mod costs;
mod job;
mod mailbox;
pub mod policy;
mod queue;
mod returns;
mod settings;
mod state;
mod statistics;

pub use batch::Batch;
pub use clock::{Clock, Manual, Monotonic, Nanos};
pub use costs::Costs;
pub use job::Job;
pub use mailbox::{Answer, Mailbox, Receiver, Reply, reply};
pub use queue::{Attempt, Nudge, Queue};
pub use returns::Returns;
pub use settings::{Mode, QueuePolicy, Settings, TimeoutAction};
pub use statistics::{BatchStatistics, DURATION_BOUNDS, Histogram, ROWS_BOUNDS, Statistics, Total};

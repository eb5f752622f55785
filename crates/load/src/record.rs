//! What became of a request: 32 bytes each.

use parking_lot::Mutex;
use std::collections::BTreeMap;

pub const RECORD_BYTES: usize = 32;

/// Distinct messages that are kept; a server that fails says the same thing again and again.
const MESSAGES: usize = 32;
const MESSAGE_CHARS: usize = 300;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Outcome {
    Answered = 0,
    /// By the server, with a status.
    Refused = 1,
    /// No connection, or one that ended, or no answer in time.
    Lost = 2,
    /// An answer, but not the expected bytes.
    Wrong = 3,
    /// Due, but still waiting for a connection when the run ended. It was not sent, and `received` is the end.
    Unsent = 4,
}

/// Nanoseconds of CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    /// When it was due; in a closed loop, when it was sent.
    pub scheduled: u64,
    pub sent: u64,
    pub received: u64,
    pub outcome: Outcome,
    pub item: u32,
}

impl Record {
    /// Three u64 and two u32, little-endian.
    pub fn to_bytes(self) -> [u8; RECORD_BYTES] {
        let mut found = [0; RECORD_BYTES];
        for (place, value) in found.chunks_exact_mut(8).zip([self.scheduled, self.sent, self.received]) {
            place.copy_from_slice(&value.to_le_bytes());
        }
        found[24..28].copy_from_slice(&(self.outcome as u32).to_le_bytes());
        found[28..].copy_from_slice(&self.item.to_le_bytes());
        found
    }
}

/// Records of all threads, until they are taken.
#[derive(Debug, Default)]
pub(crate) struct Records {
    list: Mutex<Vec<Record>>,
    messages: Mutex<BTreeMap<String, u64>>,
}

impl Records {
    pub(crate) fn push(&self, record: Record) {
        self.list.lock().push(record);
    }

    pub(crate) fn take(&self) -> Vec<Record> {
        std::mem::take(&mut self.list.lock())
    }

    /// Counts a failure by what was said of it.
    pub(crate) fn note(&self, message: &str) {
        let mut messages = self.messages.lock();
        let text: String = message.chars().take(MESSAGE_CHARS).collect();
        if messages.len() < MESSAGES || messages.contains_key(&text) {
            *messages.entry(text).or_default() += 1;
        }
    }

    pub(crate) fn messages(&self) -> Vec<(String, u64)> {
        self.messages.lock().iter().map(|(text, count)| (text.clone(), *count)).collect()
    }
}

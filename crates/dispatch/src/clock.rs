//! Time, injected: the queue and its policy read it from a [`Clock`], so tests own it.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Nanoseconds of a monotonic clock; the origin means nothing.
pub type Nanos = u64;

pub trait Clock: Send + Sync + 'static {
    fn now(&self) -> Nanos;

    /// Milliseconds since 1970, for the statistics' `last_inference` alone: it may jump, nothing is computed from it.
    fn epoch_millis(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
    }
}

/// The process's clock. All values of this type share one origin, so their times can be compared.
#[derive(Clone, Copy, Debug, Default)]
pub struct Monotonic;

static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

impl Clock for Monotonic {
    fn now(&self) -> Nanos {
        ORIGIN.elapsed().as_nanos() as Nanos
    }
}

/// A clock that stands still until it is set: for tests and simulations.
#[derive(Debug, Default)]
pub struct Manual(AtomicU64);

impl Manual {
    pub fn set(&self, now: Nanos) {
        self.0.store(now, Ordering::Relaxed);
    }

    pub fn advance(&self, by: Nanos) {
        self.0.fetch_add(by, Ordering::Relaxed);
    }
}

impl Clock for Manual {
    fn now(&self) -> Nanos {
        self.0.load(Ordering::Relaxed)
    }
}

impl<C: Clock> Clock for std::sync::Arc<C> {
    fn now(&self) -> Nanos {
        (**self).now()
    }
}

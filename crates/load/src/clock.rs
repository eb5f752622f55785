//! The one clock, and a timer that is due to the microsecond: the runtime's own has steps of a millisecond.

use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime, timerfd_create,
    timerfd_settime,
};
use std::io;
use std::os::fd::OwnedFd;
use tokio::io::unix::AsyncFd;

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// Nanoseconds of CLOCK_MONOTONIC: what Python calls `time.monotonic_ns()`.
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec.unsigned_abs() * NANOS_PER_SECOND + time.tv_nsec.unsigned_abs()
}

/// Waits for moments, one after the other.
pub(crate) struct Timer(AsyncFd<OwnedFd>);

impl Timer {
    /// Within a runtime.
    #[expect(deprecated, reason = "its successor is unsafe, for types that close what they own; an OwnedFd does not")]
    pub(crate) fn new() -> io::Result<Timer> {
        let descriptor = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        Ok(Timer(AsyncFd::new(descriptor)?))
    }

    /// Returns when `at` has come; at once if it has.
    pub(crate) async fn until(&self, at: u64) -> io::Result<()> {
        if at <= now() {
            return Ok(());
        }
        let value = Timespec { tv_sec: (at / NANOS_PER_SECOND) as i64, tv_nsec: (at % NANOS_PER_SECOND) as _ };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        timerfd_settime(self.0.get_ref(), TimerfdTimerFlags::ABSTIME, &once)?;
        while at > now() {
            let mut ready = self.0.readable().await?;
            let mut expirations = [0; 8];
            // Read or not: it is ready again when it has expired again.
            let _ = rustix::io::read(self.0.get_ref(), &mut expirations);
            ready.clear_ready();
        }
        Ok(())
    }
}

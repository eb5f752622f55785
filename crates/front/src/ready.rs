//! What became ready for a thread that waits for something else, such as a Python event loop: a list of numbers, and a
//! bell that is rung once for all that came since the list was last taken.

use parking_lot::Mutex;
use std::sync::Arc;
use std::task::{Wake, Waker};

pub struct Ready {
    state: Mutex<State>,
    /// Called from any thread, never under the lock; wakes the thread that calls [`Ready::collect`].
    bell: Box<dyn Fn() + Send + Sync>,
}

#[derive(Default)]
struct State {
    numbers: Vec<u64>,
    /// The one task without a number has something to do.
    post: bool,
    /// The list is being collected: what comes now is seen without a bell.
    collecting: bool,
    /// The bell was rung since the list was last collected.
    rung: bool,
}

struct Entry {
    ready: Arc<Ready>,
    /// None: the task without a number.
    number: Option<u64>,
}

impl Wake for Entry {
    fn wake(self: Arc<Self>) {
        self.ready.add(self.number);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ready.add(self.number);
    }
}

impl Ready {
    pub fn new(bell: impl Fn() + Send + Sync + 'static) -> Arc<Ready> {
        Arc::new(Ready { state: Mutex::default(), bell: Box::new(bell) })
    }

    /// Waking it puts the number on the list; None stands for the post.
    pub fn waker(self: &Arc<Self>, number: Option<u64>) -> Waker {
        Waker::from(Arc::new(Entry { ready: self.clone(), number }))
    }

    pub fn add(&self, number: Option<u64>) {
        let ring = {
            let mut state = self.state.lock();
            match number {
                Some(number) => state.numbers.push(number),
                None => state.post = true,
            }
            !state.collecting && !std::mem::replace(&mut state.rung, true)
        };
        if ring {
            (self.bell)();
        }
    }

    /// Everything that became ready since the last time. `post` is called as long as its task has something to do, and
    /// what that makes ready is taken along.
    pub fn collect(&self, mut post: impl FnMut()) -> Vec<u64> {
        loop {
            let mut state = self.state.lock();
            state.collecting = true;
            state.rung = false;
            if !std::mem::take(&mut state.post) {
                state.collecting = false;
                return std::mem::take(&mut state.numbers);
            }
            drop(state);
            post();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn counting() -> (Arc<Ready>, Arc<AtomicUsize>) {
        let rung = Arc::new(AtomicUsize::new(0));
        let bell = rung.clone();
        let ready = Ready::new(move || {
            bell.fetch_add(1, Ordering::Relaxed);
        });
        (ready, rung)
    }

    #[test]
    fn the_bell_rings_once_for_what_is_collected_together() {
        let (ready, rung) = counting();
        ready.waker(Some(1)).wake();
        ready.waker(Some(2)).wake();
        assert_eq!(rung.load(Ordering::Relaxed), 1);
        assert_eq!(ready.collect(|| ()), [1, 2]);
        assert!(ready.collect(|| ()).is_empty());
        ready.waker(Some(3)).wake();
        assert_eq!(rung.load(Ordering::Relaxed), 2);
        assert_eq!(ready.collect(|| ()), [3]);
    }

    #[test]
    fn what_the_post_makes_ready_is_taken_along_without_a_bell() {
        let (ready, rung) = counting();
        ready.waker(None).wake();
        assert_eq!(rung.load(Ordering::Relaxed), 1);
        let mut left = 2;
        let numbers = ready.collect(|| {
            left -= 1;
            ready.waker(Some(left)).wake();
            if left > 0 {
                ready.waker(None).wake();
            }
        });
        assert_eq!(numbers, [1, 0]);
        assert_eq!(rung.load(Ordering::Relaxed), 1);
    }
}

//! The allocator of everything that Rust holds here: large blocks are kept for a while and used again.
//!
//! Bodies and batches of megabytes come and go with every request. The system maps such a block anew each time and takes
//! it back at the end, so that every page is faulted in and zeroed again, which costs more than copying the bytes does,
//! and in all threads. Small blocks are the system's affair. What is kept is bounded, in bytes and in time.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::null_mut;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// From here on a block is worth keeping; malloc keeps smaller ones itself.
const LARGE: usize = 1 << 20;

/// What most tensors want to start at. More is not asked for here, and would not be kept.
const ALIGNMENT: usize = 64;

/// Kept at most, over all sizes: as much as some clients with batches of pictures have under way.
const KEPT_BYTES: usize = 512 << 20;
const KEPT_BLOCKS: usize = 256;

/// What was not wanted for so long goes back to the system when the next block comes.
const KEPT_FOR: Duration = Duration::from_secs(20);

/// Blocks that are given back for one that comes.
const EVICTIONS: usize = 8;

#[derive(Clone, Copy)]
struct Free {
    start: *mut u8,
    size: usize,
    since: Instant,
}

/// Blocks nobody uses, the longest unused first.
struct Kept {
    blocks: [Option<Free>; KEPT_BLOCKS],
    count: usize,
    bytes: usize,
}

// SAFETY: the pointers are to memory that nobody else refers to.
unsafe impl Send for Kept {}

/// The system's allocator, with a stock of large blocks.
pub struct Reusing {
    kept: Mutex<Kept>,
}

impl Reusing {
    pub const fn new() -> Reusing {
        Reusing { kept: Mutex::new(Kept { blocks: [None; KEPT_BLOCKS], count: 0, bytes: 0 }) }
    }

    /// Nothing panics while it is held, and nothing that is large is allocated.
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// The one that was used last, whose pages are the likeliest to be in a cache.
    fn take(&mut self, size: usize) -> Option<*mut u8> {
        let at = self.blocks[..self.count].iter().rposition(|each| each.is_some_and(|free| free.size == size))?;
        self.remove(at).map(|free| free.start)
    }

    fn remove(&mut self, at: usize) -> Option<Free> {
        let found = self.blocks[at].take()?;
        self.blocks.copy_within(at + 1..self.count, at);
        self.count -= 1;
        self.blocks[self.count] = None;
        self.bytes -= found.size;
        Some(found)
    }

    /// What has to go for a block of this size, or has been here for too long: to be freed by the caller. And whether the
    /// block itself was kept.
    fn put(&mut self, start: *mut u8, size: usize, now: Instant) -> ([Option<Free>; EVICTIONS], bool) {
        let mut evicted = [None; EVICTIONS];
        for slot in &mut evicted {
            let old = |free: Free| now.saturating_duration_since(free.since) > KEPT_FOR;
            match self.blocks[0] {
                Some(first) if (size <= KEPT_BYTES && !self.has_room(size)) || old(first) => *slot = self.remove(0),
                _ => break,
            }
        }
        let kept = self.has_room(size);
        if kept {
            self.blocks[self.count] = Some(Free { start, size, since: now });
            self.count += 1;
            self.bytes += size;
        }
        (evicted, kept)
    }

    fn has_room(&self, size: usize) -> bool {
        self.count < KEPT_BLOCKS && size <= KEPT_BYTES - self.bytes
    }
}

/// The size that a large block really has, of which there are eight between powers of two; None for others.
fn class(layout: Layout) -> Option<Layout> {
    if layout.size() < LARGE || layout.align() > ALIGNMENT {
        return None;
    }
    let step = 1usize << (layout.size().ilog2() - 3);
    let size = layout.size().checked_next_multiple_of(step)?;
    Layout::from_size_align(size, ALIGNMENT).ok()
}

// SAFETY: memory comes from the system's allocator with the size and alignment of `class`, which depends on the layout
// alone, so that the same memory goes back with the same one; a kept block belongs to nobody.
unsafe impl GlobalAlloc for Reusing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some(class) = class(layout) else {
            // SAFETY: as promised to us.
            return unsafe { System.alloc(layout) };
        };
        let found = self.kept().take(class.size());
        // SAFETY: the size is not zero.
        found.unwrap_or_else(|| unsafe { System.alloc(class) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let Some(class) = class(layout) else {
            // SAFETY: as promised to us.
            return unsafe { System.alloc_zeroed(layout) };
        };
        let found = self.kept().take(class.size());
        match found {
            Some(start) => {
                // SAFETY: a kept block has the size of its class, and nobody uses it.
                unsafe { start.write_bytes(0, layout.size()) };
                start
            }
            // SAFETY: the size is not zero.
            None => unsafe { System.alloc_zeroed(class) },
        }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        let Some(class) = class(layout) else {
            // SAFETY: it came from there with this layout.
            return unsafe { System.dealloc(start, layout) };
        };
        let (evicted, kept) = self.kept().put(start, class.size(), Instant::now());
        if !kept {
            // SAFETY: it came from there with this layout.
            unsafe { System.dealloc(start, class) };
        }
        for free in evicted.into_iter().flatten() {
            // SAFETY: every block of a class was allocated with its size and this alignment, and nobody uses it.
            unsafe { System.dealloc(free.start, Layout::from_size_align_unchecked(free.size, ALIGNMENT)) };
        }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller promises that the new size is one of a layout.
        let wanted = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        match (class(layout), class(wanted)) {
            // SAFETY: as promised to us; neither is one of ours.
            (None, None) => unsafe { System.realloc(start, layout, new_size) },
            (Some(old), Some(new)) if old == new => start,
            _ => {
                // SAFETY: the new block is another one, both have the bytes that are copied, and the old one came from here.
                unsafe {
                    let moved = self.alloc(wanted);
                    if moved.is_null() {
                        return null_mut();
                    }
                    moved.copy_from_nonoverlapping(start, layout.size().min(new_size));
                    self.dealloc(start, layout);
                    moved
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, 1).expect("a layout")
    }

    /// Blocks of these sizes, which are freed again as they are asked for.
    fn sizes(allocator: &Reusing) -> Vec<usize> {
        let kept = allocator.kept();
        kept.blocks[..kept.count].iter().map(|free| free.expect("a block").size).collect()
    }

    #[test]
    fn a_large_block_comes_back_to_whoever_asks_for_about_as_much() {
        let own = Reusing::new();
        // SAFETY: every block is freed with its layout, and written inside its size.
        unsafe {
            let first = own.alloc(layout(5 << 20));
            first.write_bytes(7, 5 << 20);
            own.dealloc(first, layout(5 << 20));
            let again = own.alloc(layout((5 << 20) - 1000));
            assert_eq!(again, first);
            let other = own.alloc(layout(5 << 20));
            assert_ne!(other, first);
            own.dealloc(again, layout((5 << 20) - 1000));
            own.dealloc(other, layout(5 << 20));
            let zeroed = own.alloc_zeroed(layout(5 << 20));
            assert!(std::slice::from_raw_parts(zeroed, 5 << 20).iter().all(|&byte| byte == 0));
            own.dealloc(zeroed, layout(5 << 20));
        }
        assert_eq!(sizes(&own).len(), 2);
    }

    #[test]
    fn small_blocks_and_unusual_alignments_are_not_kept() {
        let own = Reusing::new();
        for layout in [layout(LARGE - 1), Layout::from_size_align(LARGE, 4096).expect("a layout")] {
            // SAFETY: freed with its layout.
            unsafe { own.dealloc(own.alloc(layout), layout) };
        }
        assert!(sizes(&own).is_empty());
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let own = Reusing::new();
        let each = layout(100 << 20);
        // SAFETY: freed with their layout.
        unsafe {
            let all: Vec<_> = (0..7).map(|_| own.alloc(each)).collect();
            all.into_iter().for_each(|start| own.dealloc(start, each));
            assert!(sizes(&own).iter().sum::<usize>() <= KEPT_BYTES);
            assert_eq!(sizes(&own).len(), 4);
            let huge = layout(2 * KEPT_BYTES);
            own.dealloc(own.alloc(huge), huge);
            assert!(!sizes(&own).contains(&(2 * KEPT_BYTES)));
        }
    }

    #[test]
    fn contents_move_along_when_a_block_grows_or_shrinks() {
        let own = Reusing::new();
        let steps = [1000, 1 << 20, (1 << 20) + 1, 3 << 20, 40 << 20, 2 << 20, 10];
        // SAFETY: each size follows the one the block has, and reads stay inside.
        unsafe {
            let mut start = own.alloc(layout(steps[0]));
            start.write_bytes(9, 10);
            for pair in steps.windows(2) {
                start = own.realloc(start, layout(pair[0]), pair[1]);
                assert_eq!(std::slice::from_raw_parts(start, 10), [9; 10]);
            }
            own.dealloc(start, layout(10));
        }
    }

    #[test]
    fn what_nobody_wanted_for_long_is_given_back() {
        let own = Reusing::new();
        let now = Instant::now();
        // SAFETY: the blocks are freed below, with the layout of their class.
        let blocks: Vec<_> = (0..3).map(|_| unsafe { own.alloc(layout(2 << 20)) }).collect();
        let mut kept = own.kept();
        kept.put(blocks[0], 2 << 20, now);
        kept.put(blocks[1], 2 << 20, now + KEPT_FOR / 2);
        let (evicted, _) = kept.put(blocks[2], 2 << 20, now + KEPT_FOR + Duration::from_secs(1));
        assert_eq!(evicted.iter().flatten().map(|free| free.start).collect::<Vec<_>>(), [blocks[0]]);
        drop(kept);
        // SAFETY: nobody uses them, or will.
        blocks.into_iter().for_each(|start| unsafe { System.dealloc(start, layout(2 << 20)) });
    }
}

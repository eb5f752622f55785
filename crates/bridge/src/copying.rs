//! Copies of megabytes by several threads: one alone does some ten gigabytes a second, whatever the memory could do.
//!
//! A batch of pictures is a millisecond of copying, in which its instance does nothing else. Called by the gatherers.

use parking_lot::Mutex;
use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Where bytes go, and what they are.
pub type Piece<'a> = (&'a mut [MaybeUninit<u8>], &'a [u8]);

/// What a thread takes at a time: starting one takes as long as copying a quarter of it.
const SHARE_BYTES: usize = 1 << 20;

/// Of so many cores one copies: the others have requests to read, and other batches to copy.
const CORES_OF_A_COPIER: usize = 4;
const MOST_COPIERS: usize = 4;

/// How many threads are to copy so many bytes.
pub fn copiers(bytes: usize) -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    // Each has two shares at least.
    let worth = bytes / (2 * SHARE_BYTES);
    if worth < 2 {
        return 1;
    }
    let cores = *CORES.get_or_init(|| thread::available_parallelism().map_or(1, usize::from));
    worth.min(cores / CORES_OF_A_COPIER).clamp(1, MOST_COPIERS)
}

/// Copies all pieces, on this thread and on others that are started for it. Where none can be started this one does all.
pub fn together(copiers: usize, pieces: Vec<Piece<'_>>) {
    let shares: Vec<_> = pieces.into_iter().flat_map(shares).map(|share| Mutex::new(Some(share))).collect();
    let next = AtomicUsize::new(0);
    let copy = || {
        while let Some(share) = shares.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Some((to, from)) = share.lock().take() {
                to.write_copy_of_slice(from);
            }
        }
    };
    if copiers.min(shares.len()) < 2 {
        return copy();
    }
    thread::scope(|scope| {
        for _ in 1..copiers {
            // Refused where the system has no thread left.
            let _ = thread::Builder::new().name("penstock-copy".into()).spawn_scoped(scope, copy);
        }
        copy();
    });
}

fn shares<'a>((to, from): Piece<'a>) -> impl Iterator<Item = Piece<'a>> {
    to.chunks_mut(SHARE_BYTES).zip(from.chunks(SHARE_BYTES))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_arrives_where_it_belongs_however_many_copy() {
        let sources: Vec<Vec<u8>> = [3, SHARE_BYTES, 2 * SHARE_BYTES + 17, 0, 5 * SHARE_BYTES - 1]
            .into_iter()
            .enumerate()
            .map(|(number, length)| (0..length).map(|at| (at * 31 + number * 7) as u8).collect())
            .collect();
        let right = sources.concat();
        for copiers in [1, 2, 5, 40] {
            let mut memory = vec![MaybeUninit::new(0xAA); right.len()];
            let mut rest = &mut memory[..];
            let mut pieces = Vec::new();
            for source in &sources {
                let (mine, others) = rest.split_at_mut(source.len());
                pieces.push((mine, &source[..]));
                rest = others;
            }
            together(copiers, pieces);
            // SAFETY: every byte was written when the memory was made.
            let found: Vec<u8> = memory.iter().map(|byte| unsafe { byte.assume_init() }).collect();
            assert!(found == right, "{copiers} copiers");
        }
    }

    #[test]
    fn small_batches_are_copied_by_one() {
        assert_eq!(copiers(0), 1);
        assert_eq!(copiers(4 * SHARE_BYTES - 1), 1);
        assert!(copiers(usize::MAX) <= MOST_COPIERS);
    }
}

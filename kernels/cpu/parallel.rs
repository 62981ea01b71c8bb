//! Sharing one call's work among threads. Which thread does a piece cannot change its result.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};

mod crew;

/// Vector operations that repay a helper who is awake: some microseconds of one core.
const AWAKE_OPS: usize = 15_000;
/// Those that repay waking one up.
const ASLEEP_OPS: usize = 120_000;

/// Calls `body(i)` once for every `i` below `count`; `ops` estimates the vector operations of
/// one such call. Little work stays on the calling thread.
pub(super) fn for_each(count: usize, ops: usize, body: impl Fn(usize) + Sync) {
    let wake = count.saturating_mul(ops) >= ASLEEP_OPS;
    let grain = (AWAKE_OPS / ops.max(1)).max(1);
    let threads = count.div_ceil(grain).min(rayon::current_num_threads());
    if threads <= 1 || !(wake || crew::are_awake()) {
        return (0..count).for_each(body);
    }
    // Pieces get claimed, not dealt, as helpers come when they can. Neighbours stay together
    // where possible, for they may write to the same cache line.
    let piece = count.div_ceil(threads * 4);
    let next = AtomicUsize::new(0);
    let work = || {
        loop {
            let first = next.fetch_add(piece, Ordering::Relaxed);
            if first >= count {
                return;
            }
            (first..count.min(first + piece)).for_each(&body);
        }
    };
    crew::work_with(threads - 1, wake, &work);
}

/// The row that holds the `i`-th of all tokens of rows with `lens` tokens, and the token's index
/// in it.
pub(super) fn locate(lens: impl Iterator<Item = usize>, mut i: usize) -> (usize, usize) {
    for (row, len) in lens.enumerate() {
        if i < len {
            return (row, i);
        }
        i -= len;
    }
    panic!("{i} tokens beyond those of the rows")
}

/// A mutable slice whose disjoint parts are written by several threads at once.
pub(super) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: it is a `&mut [T]` in parts; `part` makes its callers keep the parts disjoint.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(super) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// The `len` elements from `start` on.
    ///
    /// # Safety
    /// Nobody else may hold a part that overlaps this one while it is alive.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn part(&self, start: usize, len: usize) -> &'a mut [T] {
        assert!(start + len <= self.len, "part outside of the shared slice");
        // SAFETY: inside the slice by the assertion, exclusive by this function's contract.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }

    /// The same, to be read by any number.
    ///
    /// # Safety
    /// Nobody may hold a part that overlaps it while it is alive.
    #[inline(always)]
    pub(super) unsafe fn read(&self, start: usize, len: usize) -> &'a [T] {
        assert!(start + len <= self.len, "part outside of the shared slice");
        // SAFETY: inside the slice by the assertion, unchanging by this function's contract.
        unsafe { std::slice::from_raw_parts(self.start.add(start), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_is_visited_once() {
        for count in [0, 1, 2, 7, 64, 1000] {
            for ops in [1, 1000, 1_000_000] {
                let mut seen = vec![0u8; count];
                let shared = Shared::new(&mut seen);
                // SAFETY: each index is given out once, which is what the test is about.
                for_each(count, ops, |i| unsafe { shared.part(i, 1)[0] += 1 });
                assert!(seen.iter().all(|&n| n == 1), "{count} {ops}");
            }
        }
    }
}

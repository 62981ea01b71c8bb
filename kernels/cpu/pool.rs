//! Memory for caches, aligned to cache lines.

use super::simd::{LANES, Line, flat, flat_mut};
use std::ops::{Deref, DerefMut};

/// Zeroed fp32 values that begin on a cache line. Kernels take any slice, but a state or cache
/// that straddles lines costs up to twice the time, and most allocators align to 16 bytes only.
pub struct Pool {
    lines: Vec<Line<f32>>,
    len: usize,
}

impl Pool {
    /// `len` zeros.
    pub fn zeros(len: usize) -> Self {
        Self { lines: vec![Line::<f32>::ZERO; len.div_ceil(LANES)], len }
    }
}

impl Deref for Pool {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &flat(&self.lines)[..self.len]
    }
}

impl DerefMut for Pool {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut flat_mut(&mut self.lines)[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_is_zeroed_and_aligned() {
        let mut pool = Pool::zeros(100);
        assert!(pool.len() == 100 && pool.iter().all(|&x| x == 0.0));
        assert!(pool.as_ptr().addr().is_multiple_of(64));
        pool[99] = 1.0;
        assert_eq!(pool[99], 1.0);
    }
}

//! Where the totals of a tile go.

use crate::cpu::parallel::Shared;
use crate::cpu::simd::{LANES, Line, Simd, padded};

pub(super) struct Output<'a> {
    /// N: the width of a row.
    pub(super) columns: usize,
    /// `[M, N]`, added to the totals.
    pub(super) residual: Option<&'a [f32]>,
    /// `[M, N]`.
    pub(super) out: Shared<'a, f32>,
}

impl Output<'_> {
    /// Writes one row's totals to `width` columns from `column`.
    ///
    /// # Safety
    /// No two threads may write the same columns of the same row.
    #[inline(always)]
    pub(super) unsafe fn write<S: Simd>(
        &self,
        simd: S,
        row: usize,
        column: usize,
        width: usize,
        totals: &[Line<f32>],
    ) {
        let at = row * self.columns + column;
        // SAFETY: passed on to the caller.
        let out = unsafe { self.out.part(at, width) };
        for (i, (total, out)) in totals.iter().zip(out.chunks_mut(LANES)).enumerate() {
            let mut total = *total;
            if let Some(residual) = self.residual {
                let residual = padded(&residual[at + i * LANES..][..out.len()]);
                simd.store(simd.add(simd.load(&residual), simd.load(&total.0)), &mut total.0);
            }
            out.copy_from_slice(&total.0[..out.len()]);
        }
    }
}

//! Panels of values that need no scale: fp32, or halves to be widened.

use super::panels;
use crate::cpu::simd::{LANES, Line, Simd};

/// A matrix in panels of sixteen rows, `[panels][K]`; the last panel is filled up with zeros.
pub(in crate::cpu) struct Dense {
    pub(in crate::cpu) rows: usize,
    pub(in crate::cpu) cols: usize,
    pub(in crate::cpu) values: Values,
}

pub(in crate::cpu) enum Values {
    F32(Vec<Line<f32>>),
    Bf16(Vec<Halves<false>>),
    F16(Vec<Halves<true>>),
}

/// Sixteen halves that never straddle a cache line: IEEE's, or the upper halves of fp32.
#[repr(C, align(32))]
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Halves<const IEEE: bool>([u16; LANES]);

/// Sixteen values of one step of k.
pub(in crate::cpu) trait Item: Copy + Send + Sync {
    fn load<S: Simd>(&self, simd: S) -> S::V;
}

impl Item for Line<f32> {
    #[inline(always)]
    fn load<S: Simd>(&self, simd: S) -> S::V {
        simd.load(&self.0)
    }
}

impl<const IEEE: bool> Item for Halves<IEEE> {
    #[inline(always)]
    fn load<S: Simd>(&self, simd: S) -> S::V {
        if IEEE { simd.load_f16(&self.0) } else { simd.load_bf16(&self.0) }
    }
}

// === impl Dense ===

impl Dense {
    pub(super) fn f32(values: &[f32], rows: usize, cols: usize) -> Self {
        let pack = |item: &mut Line<f32>, lane: usize, row: usize, k: usize| {
            item.0[lane] = values[row * cols + k];
        };
        Self { rows, cols, values: Values::F32(panels(rows, cols, Line::<f32>::ZERO, pack)) }
    }

    pub(super) fn bf16(values: &[u16], rows: usize, cols: usize) -> Self {
        Self { rows, cols, values: Values::Bf16(pack_halves(values, rows, cols)) }
    }

    pub(super) fn f16(values: &[u16], rows: usize, cols: usize) -> Self {
        Self { rows, cols, values: Values::F16(pack_halves(values, rows, cols)) }
    }

    pub(super) fn bytes(&self) -> usize {
        match &self.values {
            Values::F32(items) => size_of_val(items.as_slice()),
            Values::Bf16(items) => size_of_val(items.as_slice()),
            Values::F16(items) => size_of_val(items.as_slice()),
        }
    }

    /// One row as fp32.
    pub(super) fn read_row(&self, row: usize, out: &mut [f32]) {
        let (first, lane) = (row / LANES * self.cols, row % LANES);
        for (k, out) in out.iter_mut().enumerate() {
            *out = match &self.values {
                Values::F32(items) => items[first + k].0[lane],
                Values::Bf16(items) => half::bf16::from_bits(items[first + k].0[lane]).to_f32(),
                Values::F16(items) => half::f16::from_bits(items[first + k].0[lane]).to_f32(),
            };
        }
    }
}

fn pack_halves<const IEEE: bool>(values: &[u16], rows: usize, cols: usize) -> Vec<Halves<IEEE>> {
    panels(rows, cols, Halves([0; LANES]), |item, lane, row, k| {
        item.0[lane] = values[row * cols + k];
    })
}

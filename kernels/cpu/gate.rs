//! The gate of a feed-forward layer.

use super::parallel::{self, Shared};
use super::simd::{Job, LANES, Simd, Tier, lanes, lanes_mut, padded};

/// `out [M, I] = silu(gate) * up`, of `gate_up [M, 2 I]` with I = `width`.
pub fn silu_mul(gate_up: &[f32], width: usize, out: &mut [f32]) {
    assert!(width > 0 && out.len().is_multiple_of(width), "silu_mul: out is not [M, I]");
    assert_eq!(gate_up.len(), out.len() * 2, "silu_mul: gate_up is not [M, 2 I]");
    let (tier, rows) = (Tier::current(), out.len() / width);
    let out = Shared::new(out);
    parallel::for_each(rows, width.div_ceil(LANES) * 30, |row| {
        let (gate, up) = gate_up[row * 2 * width..][..2 * width].split_at(width);
        // SAFETY: each row is visited once.
        let out = unsafe { out.part(row * width, width) };
        tier.run(SiluMul { gate, up, out });
    });
}

struct SiluMul<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl Job for SiluMul<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let ((gate, gate_tail), (up, up_tail)) = (lanes(self.gate), lanes(self.up));
        let (out, out_tail) = lanes_mut(self.out);
        for ((gate, up), out) in gate.iter().zip(up).zip(out) {
            simd.store(simd.mul(simd.silu(simd.load(gate)), simd.load(up)), out);
        }
        if !gate_tail.is_empty() {
            let gate = simd.silu(simd.load(&padded(gate_tail)));
            let mut last = [0.0; LANES];
            simd.store(simd.mul(gate, simd.load(&padded(up_tail))), &mut last);
            out_tail.copy_from_slice(&last[..out_tail.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Random, assert_close, assert_same, assert_same_on_all_tiers};
    use super::*;

    fn gated(gate_up: &[f32], width: usize) -> Vec<f32> {
        let mut out = vec![f32::NAN; gate_up.len() / 2];
        silu_mul(gate_up, width, &mut out);
        out
    }

    #[test]
    fn gates_are_right_and_rows_alone() {
        let mut random = Random::new(30);
        for width in [1, 16, 33, 1024] {
            let x: Vec<f32> = random.values(40 * 2 * width).iter().map(|x| x * 12.0).collect();
            let out = gated(&x, width);
            let alone: Vec<f32> = x.chunks(2 * width).flat_map(|x| gated(x, width)).collect();
            assert_same(&out, &alone, "rows");
            assert_same_on_all_tiers(|| gated(&x, width), "tiers");
            for (x, out) in x.chunks(2 * width).zip(out.chunks(width)) {
                let silu = |x: f32| f64::from(x) / (1.0 + f64::from(-x).exp());
                let (gate, up) = x.split_at(width);
                let expected: Vec<f64> =
                    gate.iter().zip(up).map(|(&g, &u)| silu(g) * f64::from(u)).collect();
                assert_close(out, &expected, 5e-7, "silu_mul");
            }
        }
    }
}

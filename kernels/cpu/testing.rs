//! What the tests of kernels share: seeded numbers, and comparison to a tolerance or to the bit.

use super::simd::{Tier, with_tier};

/// SplitMix64: the same numbers on every machine.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `bound`.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// In -1..1.
    pub(super) fn value(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub(super) fn values(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.value()).collect()
    }

    /// A random order of `0..len`.
    pub(super) fn order(&mut self, len: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..len as u32).collect();
        for i in (1..len).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}

/// Fails unless every value is within `tolerance` of the expected, relative to the largest one.
pub(super) fn assert_close(got: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(1e-30f64, |a, b| a.max(b.abs()));
    for (i, (&g, &e)) in got.iter().zip(expected).enumerate() {
        let error = (f64::from(g) - e).abs() / scale;
        assert!(error <= tolerance, "{what}: [{i}] is {g}, not {e}: {error:e} of {scale}");
    }
}

/// Fails unless both have the same bits.
pub(super) fn assert_same(got: &[f32], expected: &[f32], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        assert!(g.to_bits() == e.to_bits(), "{what}: [{i}] is {g}, not {e}");
    }
}

/// A hash of the bits (FNV-1a), to be compared with what another machine found.
pub(super) fn fingerprint(values: &[f32]) -> u64 {
    let bytes = values.iter().flat_map(|value| value.to_bits().to_le_bytes());
    bytes.fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    })
}

/// Runs `body` on each tier of this machine.
pub(super) fn on_all_tiers(body: impl Fn()) {
    for tier in Tier::all() {
        with_tier(tier, &body);
    }
}

/// Runs `body` on each tier and demands the same bits from all that fuse multiply-add.
pub(super) fn assert_same_on_all_tiers(body: impl Fn() -> Vec<f32>, what: &str) {
    let mut first: Option<Vec<f32>> = None;
    for tier in Tier::all().into_iter().filter(|t| t.is_fused()) {
        let got = with_tier(tier, &body);
        match &first {
            None => first = Some(got),
            Some(expected) => assert_same(&got, expected, what),
        }
    }
}

use super::super::testing::{Random, assert_close, assert_same, assert_same_on_all_tiers};
use super::*;

/// Every operation of a tier on one random vector, laid out in a row.
struct Everything<'a>(&'a [f32]);

impl Job for Everything<'_> {
    type Out = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<f32> {
        let (x, _) = lanes(self.0);
        let (a, b) = (s.load(&x[0]), s.load(&x[1]));
        let each: Vec<S::V> = x[..LANES].iter().map(|x| s.load(x)).collect();
        let words = x[0].map(f32::to_bits);
        let halves = words.map(|w| (w >> 17) as u16 & 0x3FFF);
        let results = [
            s.add(a, b),
            s.sub(a, b),
            s.mul(a, b),
            s.div(a, b),
            s.fma(a, b, a),
            s.max(a, b),
            s.min(a, b),
            s.exp(s.mul(a, s.splat(20.0))),
            s.sigmoid(a),
            s.silu(a),
            s.sum_each(&core::array::from_fn(|i| each[i])),
            s.splat(s.sum(a)),
            s.splat(s.largest(a)),
            s.load_bf16(&halves),
            s.load_f16(&halves),
        ];
        let mut out = vec![0.0; results.len() * LANES];
        for (v, out) in results.into_iter().zip(lanes_mut(&mut out).0) {
            s.store(v, out);
        }
        out
    }
}

#[test]
fn tiers_agree_to_the_bit() {
    let mut random = Random::new(1);
    for _ in 0..100 {
        let x = random.values(LANES * LANES);
        assert_same_on_all_tiers(|| Tier::current().run(Everything(&x)), "all operations");
        // The portable tier fuses only where the machine does; nothing else may differ.
        let mut best = Tier::current().run(Everything(&x));
        let mut plain = Tier::all()[Tier::all().len() - 1].run(Everything(&x));
        for fused in [4, 7, 8, 9] {
            best[fused * LANES..][..LANES].fill(0.0);
            plain[fused * LANES..][..LANES].fill(0.0);
        }
        assert_same(&best, &plain, "unfused operations");
    }
}

#[test]
fn a_sum_is_the_same_alone_and_among_others() {
    let x = Random::new(2).values(LANES * LANES);
    for tier in Tier::all() {
        let out = tier.run(Everything(&x));
        assert_eq!(out[10 * LANES].to_bits(), out[11 * LANES].to_bits());
    }
}

struct Exp<'a>(&'a [f32], &'a mut [f32]);

impl Job for Exp<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (x, y) in lanes(self.0).0.iter().zip(lanes_mut(self.1).0) {
            s.store(s.exp(s.load(x)), y);
        }
    }
}

#[test]
fn exp_is_accurate_and_saturates() {
    for tier in Tier::all() {
        for i in -8600..8700 {
            let x: [f32; LANES] = core::array::from_fn(|j| (i as f32 + j as f32 / 16.0) / 100.0);
            let mut y = [0.0; LANES];
            tier.run(Exp(&x, &mut y));
            for (&x, &y) in x.iter().zip(&y) {
                assert_close(&[y], &[f64::from(x).exp()], 2.5e-7, "exp");
            }
        }
        let mut y = [0.0; LANES];
        tier.run(Exp(&padded(&[f32::NEG_INFINITY, f32::INFINITY, f32::NAN, 0.0]), &mut y));
        assert!(y[0] < 2e-38 && y[1] > 1e38 && y[2].is_nan() && y[3] == 1.0, "{y:?}");
    }
}

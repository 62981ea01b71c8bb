use super::super::testing::{Random, assert_close, assert_same, assert_same_on_all_tiers};
use super::*;

const HIDDEN: usize = 64;

fn weight(random: &mut Random, rows: usize, cols: usize) -> (Weight, Vec<f32>) {
    let values: Vec<f32> = random.values(rows * cols).iter().map(|x| x / 4.0).collect();
    (Weight::f32(&values, rows, cols).unwrap(), values)
}

struct Sample {
    experts: Experts,
    /// Gate and up, and down, of each block.
    values: Vec<(Vec<f32>, Vec<f32>)>,
    /// Widths of the blocks.
    widths: Vec<usize>,
}

impl Sample {
    fn new(random: &mut Random, experts: usize, per_token: usize, renormalise: bool) -> Self {
        let widths: Vec<usize> = (0..=experts).map(|e| if e < experts { 32 } else { 48 }).collect();
        let (mut blocks, mut values) = (Vec::new(), Vec::new());
        for &width in &widths {
            let (gate_up, a) = weight(random, 2 * width, HIDDEN);
            let (down, b) = weight(random, HIDDEN, width);
            blocks.push(Expert { gate_up, down });
            values.push((a, b));
        }
        let shared = blocks.pop().unwrap();
        let experts = Experts::new(blocks, shared, per_token, renormalise).unwrap();
        Self { experts, values, widths }
    }

    fn run(&self, x: &[f32], scores: &[f32]) -> Vec<f32> {
        let residual: Vec<f32> = x.iter().map(|x| 1.0 - x).collect();
        let mut out = vec![f32::NAN; x.len()];
        mix_experts(x, scores, &self.experts, &residual, &mut out);
        out
    }

    fn block(&self, e: usize, x: &[f32]) -> Vec<f64> {
        let (gate_up, down) = &self.values[e];
        let dot =
            |w: &[f32], x: &[f64]| -> f64 { w.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum() };
        let x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        let wide: Vec<f64> = gate_up.chunks(HIDDEN).map(|w| dot(w, &x)).collect();
        let (gate, up) = wide.split_at(self.widths[e]);
        let gated: Vec<f64> =
            gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
        down.chunks(self.widths[e]).map(|w| dot(w, &gated)).collect()
    }

    fn reference(&self, x: &[f32], scores: &[f32]) -> Vec<f64> {
        let Choice { experts, per_token, renormalise } = self.experts.choice;
        let mut order: Vec<usize> = (0..experts).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        let of = |e: usize| f64::from(scores[e]).exp();
        let counted = if renormalise { &order[..per_token] } else { &order[..] };
        let sum: f64 = counted.iter().map(|&e| of(e)).sum();
        let mut all: Vec<(usize, f64)> =
            order[..per_token].iter().map(|&e| (e, of(e) / sum)).collect();
        all.push((experts, 1.0 / (1.0 + (-f64::from(scores[experts])).exp())));
        let mut out: Vec<f64> = x.iter().map(|&x| f64::from(1.0 - x)).collect();
        for (e, weight) in all {
            for (out, part) in out.iter_mut().zip(self.block(e, x)) {
                *out += weight * part;
            }
        }
        out
    }
}

#[test]
fn mixtures_are_right_and_rows_alone() {
    let mut random = Random::new(40);
    for (experts, per_token, renormalise) in [(8, 2, true), (5, 5, true), (9, 1, false)] {
        let sample = Sample::new(&mut random, experts, per_token, renormalise);
        for tokens in [1, 2, 7, 90] {
            let x = random.values(tokens * HIDDEN);
            let scores = random.values(tokens * (experts + 1));
            let out = sample.run(&x, &scores);
            let rows = || x.chunks(HIDDEN).zip(scores.chunks(experts + 1));
            let alone: Vec<f32> = rows().flat_map(|(x, s)| sample.run(x, s)).collect();
            assert_same(&out, &alone, "rows");
            assert_same_on_all_tiers(|| sample.run(&x, &scores), "tiers");
            let expected: Vec<f64> = rows().flat_map(|(x, s)| sample.reference(x, s)).collect();
            assert_close(&out, &expected, 2e-6, "mix_experts");
        }
    }
}

#[test]
fn long_calls_are_cut_and_full_blocks_are_split() {
    let mut random = Random::new(41);
    let sample = Sample::new(&mut random, 3, 2, true);
    let tokens = TOKENS + ROWS + 1;
    let (x, scores) = (random.values(tokens * HIDDEN), random.values(tokens * 4));
    let out = sample.run(&x, &scores);
    for token in [0, ROWS - 1, ROWS, TOKENS - 1, TOKENS, tokens - 1] {
        let alone = sample.run(&x[token * HIDDEN..][..HIDDEN], &scores[token * 4..][..4]);
        assert_same(&out[token * HIDDEN..][..HIDDEN], &alone, "a token of many");
    }
}

#[test]
fn blocks_that_do_not_fit_are_refused() {
    let mut random = Random::new(42);
    let mut expert = |wide, width| Expert {
        gate_up: weight(&mut random, wide, HIDDEN).0,
        down: weight(&mut random, HIDDEN, width).0,
    };
    assert!(Experts::new(vec![expert(64, 32)], expert(64, 32), 1, true).is_ok());
    assert!(Experts::new(vec![expert(64, 32)], expert(64, 32), 2, true).is_err());
    assert!(Experts::new(vec![expert(64, 16)], expert(64, 32), 1, true).is_err());
    assert!(Experts::new(vec![], expert(64, 32), 1, true).is_err());
}

use super::super::testing::{Random, assert_close};
use super::*;
use crate::cpu::gather_rows;

mod vectors;

/// Random codes of every width, with scales and biases: what a checkpoint holds, and what each
/// value means.
pub(in crate::cpu) struct Codes {
    bits: u32,
    group: usize,
    words: Vec<u32>,
    scales: Vec<f32>,
    biases: Vec<f32>,
    pub(in crate::cpu) values: Vec<f64>,
}

impl Codes {
    pub(in crate::cpu) fn random(
        random: &mut Random,
        (bits, group): (u32, usize),
        rows: usize,
        cols: usize,
    ) -> Self {
        let words: Vec<u32> =
            (0..rows * cols * bits as usize / 32).map(|_| random.next() as u32).collect();
        let scales = random.values(rows * cols / group);
        let biases = random.values(rows * cols / group);
        let values = (0..rows * cols).map(|i| {
            // Bit by bit, so that the test shares no cleverness with the code.
            let at = i * bits as usize;
            let bit = |b: usize| u32::from(words[b / 32] & 1 << (b % 32) != 0);
            let code: u32 = (0..bits as usize).map(|b| bit(at + b) << b).sum();
            f64::from(scales[i / group]) * f64::from(code) + f64::from(biases[i / group])
        });
        let values = values.collect();
        Self { bits, group, words, scales, biases, values }
    }

    pub(in crate::cpu) fn affine(&self) -> Affine<'_> {
        let Self { bits, group, words, scales, biases, .. } = self;
        Affine { bits: *bits, group: *group, words, scales, biases }
    }
}

/// Every width with every group.
pub(in crate::cpu) fn all_codes() -> impl Iterator<Item = (u32, usize)> {
    [2, 3, 4, 5, 6, 8].into_iter().flat_map(|bits| [32, 64, 128].map(|group| (bits, group)))
}

fn gathered(w: &Weight, ids: &[u32]) -> Vec<f32> {
    let mut out = vec![f32::NAN; ids.len() * w.cols()];
    gather_rows(w, ids, &mut out);
    out
}

#[test]
fn codes_mean_what_mlx_means() {
    let original = |row: usize, k: usize| ((row * 37 + k * 101) % 257) as f32 / 64.0 - 2.0;
    for (bits, words, scales, biases) in vectors::MLX {
        let codes = Affine { bits, group: 32, words, scales: &scales, biases: &biases };
        let w = Weight::affine(codes, 2, 64).unwrap();
        let values = gathered(&w, &[0, 1]);
        for (i, value) in values.iter().enumerate() {
            let (error, scale) = (value - original(i / 64, i % 64), scales[i / 32].abs());
            // MLX moves the zero point to a code, which may cost the ends half a step more.
            assert!(error.abs() <= 1.01 * scale, "{bits} bits: [{i}] is off by {error}");
        }
        let mean = values.iter().enumerate().map(|(i, v)| (v - original(i / 64, i % 64)).abs());
        let mean = mean.sum::<f32>() / values.len() as f32;
        assert!(mean <= 0.35 * scales[0].abs(), "{bits} bits: mean error {mean}");
    }
}

#[test]
fn rows_come_back_as_they_were() {
    let mut random = Random::new(3);
    for (bits, group) in all_codes() {
        let (rows, cols) = (1 + random.below(40), group * (1 + random.below(3)));
        let codes = Codes::random(&mut random, (bits, group), rows, cols);
        let w = Weight::affine(codes.affine(), rows, cols).unwrap();
        let ids: Vec<u32> = (0..rows as u32).collect();
        assert_close(&gathered(&w, &ids), &codes.values, 1e-6, "affine rows");
    }
    for (rows, cols) in [(1, 1), (16, 7), (33, 64), (5, 129)] {
        let values = random.values(rows * cols);
        let ids = random.order(rows);
        let expected: Vec<f32> =
            ids.iter().flat_map(|&i| &values[i as usize * cols..][..cols]).copied().collect();
        let w = Weight::f32(&values, rows, cols).unwrap();
        assert_eq!(gathered(&w, &ids), expected);
        let halves: Vec<u16> = values.iter().map(|&v| half::bf16::from_f32(v).to_bits()).collect();
        let rounded: Vec<f32> =
            expected.iter().map(|&v| half::bf16::from_f32(v).to_f32()).collect();
        assert_eq!(gathered(&Weight::bf16(&halves, rows, cols).unwrap(), &ids), rounded);
        let halves: Vec<u16> = values.iter().map(|&v| half::f16::from_f32(v).to_bits()).collect();
        let rounded: Vec<f32> = expected.iter().map(|&v| half::f16::from_f32(v).to_f32()).collect();
        assert_eq!(gathered(&Weight::f16(&halves, rows, cols).unwrap(), &ids), rounded);
    }
}

#[test]
fn codes_take_no_more_than_their_bits() {
    for (bits, group) in all_codes() {
        let codes = Codes::random(&mut Random::new(4), (bits, group), 64, 256);
        let w = Weight::affine(codes.affine(), 64, 256).unwrap();
        assert_eq!(w.bytes(), 64 * 256 * bits as usize / 8 + 64 * 256 / group * 8);
    }
}

#[test]
fn a_stack_has_the_rows_of_its_parts() {
    let mut random = Random::new(5);
    let values = random.values(20 * 64);
    let codes = Codes::random(&mut random, (5, 32), 19, 64);
    let parts = || {
        let w = Weight::f32(&values, 20, 64).unwrap();
        vec![w, Weight::affine(codes.affine(), 19, 64).unwrap()]
    };
    let separate = parts();
    let mut expected = gathered(&separate[0], &[0, 19]);
    expected.extend(gathered(&separate[1], &[0, 18]));
    let stack = Weight::stack(parts()).unwrap();
    assert_eq!((stack.rows(), stack.cols()), (39, 64));
    assert_eq!(gathered(&stack, &[0, 19, 20, 38]), expected);
}

#[test]
fn wrong_shapes_are_refused() {
    let length = Weight::f32(&[0.0; 5], 2, 3).unwrap_err();
    assert_eq!(length, WeightError::Length { tensor: "weight", found: 5, expected: 6 });
    let codes = Codes::random(&mut Random::new(6), (4, 64), 2, 128);
    let refused = |change: &dyn Fn(&mut Affine<'_>), cols| {
        let mut affine = codes.affine();
        change(&mut affine);
        Weight::affine(affine, 2, cols).is_err()
    };
    assert!(!refused(&|_| (), 128));
    assert!(refused(&|a| a.bits = 7, 128));
    assert!(refused(&|a| a.group = 48, 128));
    assert!(refused(&|a| a.words = &a.words[1..], 128));
    assert!(refused(&|a| a.scales = &a.scales[1..], 128));
    assert!(refused(&|a| a.biases = &[], 128));
    assert!(refused(&|_| (), 96));
    let (a, b) = (Weight::f32(&[0.0; 4], 2, 2).unwrap(), Weight::f32(&[0.0; 3], 1, 3).unwrap());
    assert!(Weight::stack(vec![a, b]).is_err());
}

use super::super::testing::{
    Random, assert_close, assert_same, assert_same_on_all_tiers, on_all_tiers,
};
use super::*;

const EPS: f32 = 1e-6;
const WIDTHS: [usize; 9] = [1, 15, 16, 17, 63, 64, 100, 512, 1030];

fn normed(x: &[f32], gain: &[f32]) -> Vec<f32> {
    let mut out = vec![f32::NAN; x.len()];
    rms_norm(x, gain, EPS, &mut out);
    out
}

fn reference(x: &[f32], gain: &[f32]) -> Vec<f64> {
    let mut out = vec![];
    for x in x.chunks(gain.len()) {
        let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (mean + f64::from(EPS)).sqrt();
        out.extend(x.iter().zip(gain).map(|(&x, &g)| f64::from(x) * scale * f64::from(g)));
    }
    out
}

#[test]
fn norms_are_right() {
    on_all_tiers(|| {
        let mut random = Random::new(20);
        for width in WIDTHS {
            let (x, gain) = (random.values(3 * width), random.values(width));
            assert_close(&normed(&x, &gain), &reference(&x, &gain), 5e-7, "rms_norm");
        }
    });
}

#[test]
fn a_row_does_not_see_the_others() {
    on_all_tiers(|| {
        let mut random = Random::new(21);
        for width in WIDTHS {
            let (x, gain) = (random.values(9 * width), random.values(width));
            let alone: Vec<f32> = x.chunks(width).flat_map(|x| normed(x, &gain)).collect();
            assert_same(&normed(&x, &gain), &alone, "rows");
        }
        // Enough rows for several threads.
        let (x, gain) = (random.values(2000 * 256), random.values(256));
        let alone: Vec<f32> = x.chunks(256).flat_map(|x| normed(x, &gain)).collect();
        assert_same(&normed(&x, &gain), &alone, "many rows");
    });
}

#[test]
fn tiers_agree() {
    let mut random = Random::new(22);
    for width in WIDTHS {
        let (x, gain) = (random.values(3 * width), random.values(width));
        assert_same_on_all_tiers(|| normed(&x, &gain), "rms_norm");
    }
}

#[test]
fn combinations_are_what_they_combine() {
    let mut random = Random::new(23);
    for width in WIDTHS {
        let (a, b) = (random.values(4 * width), random.values(4 * width));
        let gain = random.values(width);
        let total: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
        let (mut sum, mut out) = (vec![f32::NAN; a.len()], vec![f32::NAN; a.len()]);
        add_rms_norm(&a, &b, &gain, EPS, &mut sum, &mut out);
        assert_same(&sum, &total, "sum");
        assert_same(&out, &normed(&total, &gain), "norm of the sum");

        let (c, other) = (random.values(4 * 48), random.values(48));
        let mut pair = vec![f32::NAN; 4 * (width + 48)];
        rms_norm_pair((&a, &gain), (&c, &other), EPS, &mut pair);
        let (a, c) = (normed(&a, &gain), normed(&c, &other));
        let rows = a.chunks(width).zip(c.chunks(48));
        let expected: Vec<f32> = rows.flat_map(|(a, c)| [a, c].concat()).collect();
        assert_same(&pair, &expected, "pair");
    }
}

use super::super::simd::Digits;
use super::super::testing::{
    Random, assert_close, assert_same, assert_same_on_all_tiers, fingerprint, on_all_tiers,
};
use super::super::weight::Affine;
use super::super::weight::tests::{Codes, all_codes};
use super::*;

/// A weight with the value of each element.
struct Sample {
    w: Weight,
    values: Vec<f64>,
}

fn dense(random: &mut Random, format: usize, rows: usize, cols: usize) -> Sample {
    let values = random.values(rows * cols);
    let (w, values): (_, Vec<f32>) = match format {
        0 => (Weight::f32(&values, rows, cols), values),
        1 => {
            let halves: Vec<_> = values.iter().map(|&v| half::bf16::from_f32(v)).collect();
            let bits: Vec<u16> = halves.iter().map(|v| v.to_bits()).collect();
            (Weight::bf16(&bits, rows, cols), halves.iter().map(|v| v.to_f32()).collect())
        }
        _ => {
            let halves: Vec<_> = values.iter().map(|&v| half::f16::from_f32(v)).collect();
            let bits: Vec<u16> = halves.iter().map(|v| v.to_bits()).collect();
            (Weight::f16(&bits, rows, cols), halves.iter().map(|v| v.to_f32()).collect())
        }
    };
    Sample { w: w.unwrap(), values: values.into_iter().map(f64::from).collect() }
}

fn coded(random: &mut Random, format: (u32, usize), rows: usize, cols: usize) -> Sample {
    let codes = Codes::random(random, format, rows, cols);
    let w = Weight::affine(codes.affine(), rows, cols).unwrap();
    Sample { w, values: codes.values }
}

/// One sample of each format, of odd sizes, and one of all of them stacked.
fn samples(random: &mut Random) -> Vec<Sample> {
    let rows = |random: &mut Random| random.pick(&[1, 4, 15, 16, 17, 63, 64, 65, 100, 150]);
    let mut samples: Vec<Sample> = all_codes()
        .map(|(bits, group)| {
            let (rows, cols) = (rows(random), group * (1 + random.below(3)));
            coded(random, (bits, group), rows, cols)
        })
        .collect();
    for format in 0..3 {
        for cols in [1, 17, 64, 130] {
            let rows = rows(random);
            samples.push(dense(random, format, rows, cols));
        }
    }
    let mut parts: Vec<Sample> =
        all_codes().map(|format| coded(random, format, 3 + format.1 % 23, 256)).collect();
    parts.push(dense(random, 0, 31, 256));
    parts.push(dense(random, 1, 80, 256));
    let (parts, values): (Vec<_>, Vec<_>) = parts.into_iter().map(|s| (s.w, s.values)).unzip();
    samples.push(Sample { w: Weight::stack(parts).unwrap(), values: values.concat() });
    samples
}

fn run(x: &[f32], w: &Weight) -> Vec<f32> {
    let mut out = vec![f32::NAN; x.len() / w.cols() * w.rows()];
    linear(x, w, &mut out);
    out
}

fn reference(x: &[f32], sample: &Sample) -> Vec<f64> {
    let cols = sample.w.cols();
    let mut out = vec![];
    for x in x.chunks(cols) {
        for w in sample.values.chunks(cols) {
            out.push(x.iter().zip(w).map(|(&x, w)| f64::from(x) * w).sum());
        }
    }
    out
}

#[test]
fn products_are_right_in_every_format() {
    on_all_tiers(|| {
        let mut random = Random::new(10);
        for sample in samples(&mut random) {
            for rows in [1, 2, 3, 4, 7] {
                let x = random.values(rows * sample.w.cols());
                let what = format!("{:?} with {rows} rows", sample.w);
                assert_close(&run(&x, &sample.w), &reference(&x, &sample), 2e-6, &what);
            }
        }
    });
}

#[test]
fn a_row_does_not_see_the_others() {
    on_all_tiers(|| {
        let mut random = Random::new(11);
        for sample in samples(&mut random) {
            let (cols, columns) = (sample.w.cols(), sample.w.rows());
            let x = random.values(150 * cols);
            let alone: Vec<f32> = x.chunks(cols).flat_map(|x| run(x, &sample.w)).collect();
            for rows in [2, 3, 4, 5, 8, 13, 64, 65, 150] {
                let first = random.below(151 - rows);
                let together = run(&x[first * cols..][..rows * cols], &sample.w);
                let expected = &alone[first * columns..][..rows * columns];
                assert_same(&together, expected, &format!("{:?} with {rows} rows", sample.w));
            }
        }
    });
}

#[test]
fn tiers_agree() {
    let mut random = Random::new(12);
    for sample in samples(&mut random) {
        for rows in [1, 2, 5, 70] {
            let x = random.values(rows * sample.w.cols());
            assert_same_on_all_tiers(|| run(&x, &sample.w), &format!("{:?}", sample.w));
        }
    }
}

/// Found on x86-64 with AVX-512, and again on an emulated aarch64.
#[test]
fn machines_agree() {
    if !Tier::current().is_fused() {
        return;
    }
    let mut random = Random::new(18);
    let mut all = vec![];
    for sample in samples(&mut random) {
        let x = random.values(5 * sample.w.cols());
        all.extend(run(&x, &sample.w));
    }
    assert_eq!(fingerprint(&all), 6_520_460_802_532_110_740);
}

#[test]
fn threads_change_nothing() {
    let mut random = Random::new(13);
    let pools = [1, 2, 5].map(|n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap());
    for format in [(4, 64), (8, 32), (3, 128)] {
        // Large enough to be shared.
        let sample = coded(&mut random, format, 3000, 256);
        let x = random.values(20 * 256);
        let expected = pools[0].install(|| run(&x, &sample.w));
        for pool in &pools[1..] {
            assert_same(&pool.install(|| run(&x, &sample.w)), &expected, "threads");
        }
    }
}

#[test]
fn a_residual_is_added_last() {
    on_all_tiers(|| {
        let mut random = Random::new(14);
        for sample in samples(&mut random) {
            let x = random.values(6 * sample.w.cols());
            let product = run(&x, &sample.w);
            let residual = random.values(product.len());
            let expected: Vec<f32> = residual.iter().zip(&product).map(|(r, p)| r + p).collect();
            let mut out = vec![f32::NAN; product.len()];
            linear_add(&x, &sample.w, &residual, &mut out);
            assert_same(&out, &expected, &format!("{:?}", sample.w));
        }
    });
}

/// A group whose largest value dwarfs the others, one of zeros, tiny ones, and a huge one.
#[test]
fn fixed_point_is_as_good_as_floating_point() {
    on_all_tiers(|| {
        let mut random = Random::new(15);
        let sample = coded(&mut random, (8, 64), 32, 256);
        for scale in [1e-30f32, 1e-3, 1.0, 1e4, 1e25] {
            let mut x: Vec<f32> = random.values(256).iter().map(|v| v * scale).collect();
            x[3] *= 1e3;
            x[64..128].fill(0.0);
            assert_close(&run(&x, &sample.w), &reference(&x, &sample), 1e-6, "uneven groups");
        }
        let small = random.values(256).iter().map(|v| v * 1e-41).collect::<Vec<_>>();
        assert!(run(&small, &sample.w).iter().all(|y| y.abs() < 1e-30));
    });
}

#[test]
fn what_is_not_finite_stays_so() {
    on_all_tiers(|| {
        let mut random = Random::new(16);
        for format in [(8, 64), (4, 32)] {
            let sample = coded(&mut random, format, 40, 128);
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = random.values(3 * 128);
                x[128 + 77] = bad;
                let out = run(&x, &sample.w);
                assert!(out[40..80].iter().all(|y| !y.is_finite()), "{bad}");
                assert!(out[..40].iter().chain(&out[80..]).all(|y| y.is_finite()), "{bad}");
            }
        }
    });
}

/// The integer path against the same sums done one by one in 64-bit integers.
#[test]
fn integer_sums_are_exact() {
    let mut random = Random::new(17);
    let (rows, cols, group) = (16, 256, 128);
    // The largest codes against the largest numbers: nothing may overflow.
    let words = vec![u32::MAX; rows * cols / 4];
    let (scales, biases) = (random.values(rows * cols / group), vec![0.0; rows * cols / group]);
    let codes = Affine { bits: 8, group, words: &words, scales: &scales, biases: &biases };
    let w = Weight::affine(codes, rows, cols).unwrap();
    let largest = Digits::MAX as f32;
    for x in [vec![largest; cols], vec![-largest; cols], vec![1.0; cols]] {
        on_all_tiers(|| {
            let out = run(&x, &w);
            for (row, out) in out.iter().enumerate() {
                let mut expected = 0.0f32;
                for g in 0..cols / group {
                    let sum: i64 = x[g * group..][..group].iter().map(|&x| x as i64 * 255).sum();
                    expected = scales[row * 2 + g].mul_add(sum as f32, expected);
                }
                let error = (out - expected).abs() / expected.abs();
                assert!(error < 2e-7, "{out} {expected}");
            }
        });
    }
}

#[test]
#[should_panic(expected = "not [M, K]")]
fn a_wrong_width_panics() {
    let w = Weight::f32(&[0.0; 12], 3, 4).unwrap();
    linear(&[0.0; 6], &w, &mut [0.0; 6]);
}

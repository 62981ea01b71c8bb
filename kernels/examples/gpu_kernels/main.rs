//! Checks `verify_qmm` against MLX's own quantised product and times the two side by side, through
//! MLX's graph. Needs a GPU.
//!
//! `cargo run --release --example gpu_kernels`

#![allow(clippy::print_stdout)]

use std::rc::Rc;
use std::time::Instant;

use mlx_rs::ops::{quantized_matmul, stack};
use mlx_rs::transforms::eval;
use mlx_rs::{Array, Dtype, random};
use mtplx_kernels::gpu::device::Kernel;
use mtplx_kernels::gpu::layout::Form;
use mtplx_kernels::gpu::qmm::{PackedMatrix, kernel};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// One matrix as MLX's own product takes it (words, scales, biases) and, with other random values,
/// as ours does: only their times are compared.
struct Pair {
    plain: [Array; 3],
    own: PackedMatrix,
}

fn main() -> Result<()> {
    println!("{:?}", mlx_rs::Device::try_default()?);
    let kernel = kernel()?;
    let forms = [
        (96, 512, 4, 64),
        (200, 5120, 4, 64),
        (64, 1024, 8, 64),
        (64, 512, 4, 32),
        (64, 512, 8, 128),
    ];
    for (rows, cols, bits, group) in forms {
        check(&kernel, Form { rows, cols, bits, group })?;
    }
    time(&kernel)
}

fn noise(len: usize, mut seed: u32) -> Vec<u32> {
    std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        seed ^ seed >> 15
    })
    .take(len)
    .collect()
}

fn unit(len: usize, seed: u32) -> Vec<f32> {
    noise(len, seed).iter().map(|v| (v >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

fn bf16(values: &[f32], shape: &[i32]) -> Result<Array> {
    Ok(Array::from_slice(values, shape).as_dtype(Dtype::Bfloat16)?)
}

/// Error beside the plain path, and for how many M a row changes.
fn check(kernel: &Rc<Kernel>, form: Form) -> Result<()> {
    let Form { rows, cols, bits, group } = form;
    let stored = noise(rows * cols * bits / 32, 3);
    let groups = rows * cols / group;
    let scales: Vec<f32> = unit(groups, 5).iter().map(|v| 0.01 + 0.005 * v).collect();
    let biases: Vec<f32> = unit(groups, 6).iter().map(|v| -0.08 + 0.03 * v).collect();
    let side = [rows as i32, (cols / group) as i32];
    let (s, b) = (bf16(&scales, &side)?, bf16(&biases, &side)?);
    let w = Array::from_slice(&stored, &[rows as i32, (cols * bits / 32) as i32]);
    let words = form.pack(&stored);
    let words = Array::from_slice(&words, &[words.len() as i32]);
    let sides = form.pack_sides(&scales, &biases);
    let sides = bf16(&sides, &[sides.len() as i32])?;
    let packed = PackedMatrix::new(Rc::clone(kernel), form, words, sides);
    let x = bf16(&unit(64 * cols, 9), &[64, cols as i32])?;
    let plain = quantized_matmul(&x, &w, &s, &b, true, group as i32, bits as i32)?;
    let (ours, plain) =
        (packed.apply(&x)?.as_dtype(Dtype::Float32)?, plain.as_dtype(Dtype::Float32)?);
    eval([&ours, &plain])?;
    let all: Vec<f32> = ours.as_slice::<f32>().to_vec();
    let (mut d, mut n) = (0.0_f64, 0.0_f64);
    for (a, b) in all.iter().zip(plain.as_slice::<f32>()) {
        d += f64::from(a - b).powi(2);
        n += f64::from(*b).powi(2);
    }
    let mut differ = 0;
    for m in 1..=64 {
        let index: Vec<i32> = (0..m).collect();
        let part = x.take_axis(Array::from_slice(&index, &[m]), 0)?;
        let y = packed.apply(&part)?.as_dtype(Dtype::Float32)?;
        y.eval()?;
        differ += usize::from(y.as_slice::<f32>() != &all[..m as usize * rows]);
    }
    println!("{form:?}: error {:.2e}, M whose rows differ {differ}", (d / n).sqrt());
    Ok(())
}

/// Random values of a matrix whose products keep the size of x.
fn random_pair(kernel: &Rc<Kernel>, rows: i32, cols: i32) -> Result<Pair> {
    let form = Form { rows: rows as usize, cols: cols as usize, bits: 4, group: 64 };
    let scale = 0.217 / (cols as f32).sqrt();
    let bits = |shape: &[i32]| -> Result<Array> {
        let ints = random::randint::<_, i32>(i32::MIN, i32::MAX, shape, None)?;
        Ok(ints.view_dtype(Dtype::Uint32)?)
    };
    let around = |shape: &[i32], v: f32| -> Result<Array> {
        let noise = random::uniform::<_, f32>(0.9_f32, 1.1_f32, shape, None)?;
        Ok(noise.multiply(Array::from_f32(v))?.as_dtype(Dtype::Bfloat16)?)
    };
    let side = [rows, cols / 64];
    let plain = [bits(&[rows, cols / 8])?, around(&side, scale)?, around(&side, -7.5 * scale)?];
    let half = [form.sides() as i32 / 2];
    let sides = stack(&[around(&half, scale)?, around(&half, -7.5 * scale)?], 1)?.reshape(&[-1])?;
    let words = bits(&[form.words() as i32])?;
    eval(plain.iter().chain([&words, &sides]))?;
    Ok(Pair { plain, own: PackedMatrix::new(Rc::clone(kernel), form, words, sides) })
}

/// Up and down products in turn, each needing the one before; six pairs, so that no cache holds
/// them.
fn time(kernel: &Rc<Kernel>) -> Result<()> {
    let (wide, narrow, reps) = (17408, 5120, 24);
    let mut pairs = Vec::new();
    for _ in 0..6 {
        pairs.push(random_pair(kernel, wide, narrow)?);
        pairs.push(random_pair(kernel, narrow, wide)?);
    }
    for m in [1, 2, 3, 4, 6, 8, 16, 32, 64, 256, 1024] {
        let x = random::normal::<f32>(&[m, narrow], None, None, None)?.as_dtype(Dtype::Bfloat16)?;
        x.eval()?;
        let mut figures = Vec::new();
        for own in [true, false] {
            let mut best = f64::INFINITY;
            for _ in 0..4 {
                let start = Instant::now();
                let mut y = x.clone();
                for pair in pairs.iter().cycle().take(2 * reps) {
                    let [w, s, b] = &pair.plain;
                    y = if own {
                        pair.own.apply(&y)?
                    } else {
                        quantized_matmul(&y, w, s, b, true, 64, 4)?
                    };
                }
                y.eval()?;
                best = best.min(start.elapsed().as_secs_f64());
            }
            figures.push(best * 1e6 / reps as f64);
        }
        println!("M={m}: up and down, ours {:.1} us, MLX {:.1} us", figures[0], figures[1]);
    }
    Ok(())
}

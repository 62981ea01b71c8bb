//! Times of bare products with quantised weights, the shapes of verification.

use std::time::Instant;

use mlx_rs::{Array, random};

use super::{Noise, Scheme};
use crate::error::Result;
use crate::linear::Matrix;
use crate::place::{Place, eval};

/// Bytes of weights that take turns, so that no cache holds what comes next.
const TURN_BYTES: f64 = 512e6;
/// Products of a chain on a GPU, so many that it counts little how the host gets ahead of it. A CPU
/// computes while nobody is ahead: there each matrix takes one turn.
const CHAIN: usize = 400;
/// Chains of each number of rows; the fastest counts.
const ROUNDS: usize = 7;

/// What one product took.
#[derive(Clone, Copy, Debug)]
pub struct ProductTime {
    /// Rows of x.
    pub rows: usize,
    /// Microseconds.
    pub micros: f64,
}

/// Times `y [M, N] = r + x [M, K] · Wᵀ` for every M of `rows`, in a chain: each product adds to the
/// one before, so that none runs beside another. The numbers of rows take turns in every round.
/// `shape` is `[N, K]`.
///
/// # Errors
/// When MLX fails.
pub fn products(
    place: Place,
    scheme: Scheme,
    shape: [usize; 2],
    rows: &[usize],
) -> Result<Vec<ProductTime>> {
    let [out, input] = shape;
    let noise = Noise::new(out * input, scheme);
    let bytes = (out * input) as f64 * scheme.bytes();
    let copies = ((TURN_BYTES / bytes).ceil() as usize).clamp(2, 64);
    let weights = noise.linear("product", out, input);
    let load = |_| Matrix::load(place, &[&weights]);
    let matrices = (0..copies).map(load).collect::<Result<Vec<_>>>()?;
    let noise = |m: usize, n: usize| -> Result<Array> {
        let noise = random::normal::<f32>(&[m as i32, n as i32], None, None, None)?;
        let noise = noise.as_dtype(place.dtype())?;
        eval([&noise])?;
        Ok(noise)
    };
    let inputs = rows.iter().map(|&m| Ok((noise(m, input)?, noise(m, out)?)));
    let inputs = inputs.collect::<Result<Vec<_>>>()?;
    let gpu = matches!(place, Place::Mlx(_));
    let chain = if gpu { CHAIN.next_multiple_of(copies) } else { copies };
    let mut best = vec![f64::INFINITY; rows.len()];
    for _ in 0..ROUNDS {
        for ((x, residual), best) in inputs.iter().zip(&mut best) {
            let mut y = residual.clone();
            for i in 0..chain {
                y = matrices[i % copies].apply_add(x, &y)?;
            }
            let start = Instant::now();
            eval([&y])?;
            *best = best.min(start.elapsed().as_secs_f64());
        }
    }
    let each = 1e6 / chain as f64;
    Ok(rows.iter().zip(best).map(|(&rows, s)| ProductTime { rows, micros: s * each }).collect())
}

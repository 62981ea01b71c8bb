//! The fused kernel beside its plain twin, over prompts, verify cycles and what they leave; alone,
//! or with the form in chunks, which is a kernel of its own.

use mlx_rs::{Array, Dtype};

use super::plain::PlainGdn;
use super::{GdnPool, GdnRow, GdnShape, Mixer, Sides};
use crate::error::Result;
use crate::gpu::gdn::{FusedGdn, GdnParameters, LONG};
use crate::gpu::{gpu, trial};

const SLOTS: usize = 3;
/// Calls without a long prompt, which come first.
const SHORT: usize = 4;

/// # Errors
/// When the two differ, and what MLX or the compiler found wrong.
pub(super) fn run(shape: GdnShape, dtype: Dtype, chunks: bool) -> Result<()> {
    let heads = shape.value_heads;
    let parameters = GdnParameters {
        key_heads: shape.key_heads,
        value_heads: heads,
        verify_max: shape.verify_max,
        conv: &trial::floats(4 * shape.channels(), 1, (0.0, 0.6)),
        a_log: &trial::floats(heads, 2, (0.0, 1.0)),
        dt_bias: &trial::floats(heads, 3, (0.5, 0.5)),
        gain: &trial::floats(shape.value_dim, 4, (1.0, 0.3)),
        eps: 1e-6,
    };
    let plain = Mixer::Plain(PlainGdn::load(&parameters, shape, dtype)?);
    let fused = Mixer::Fused(FusedGdn::new(&gpu(), &parameters, dtype, chunks)?);
    let mut pools = [pool(&shape, dtype, false)?, pool(&shape, dtype, true)?];
    let most = shape.verify_max;
    let row =
        |slot, start, len, keep, commit| GdnRow { slot, start, len, keep, commit, mark: None };
    let mut calls = vec![
        vec![row(2, 0, 11, 0, true), row(0, 11, 2, 0, true)],
        vec![row(0, 0, most, 0, false), row(2, most, 1, 0, false)],
        vec![row(2, 0, most, 1, false), row(0, most, most, most.min(2), false)],
        vec![row(0, 0, 3, most, true), row(2, 3, 1, most, true)],
        // Long enough to be walked in chunks, the last of them ragged, beside one that is not.
        vec![row(0, 0, most, 0, false), row(2, most, LONG + 43, 0, true)],
        vec![row(2, 0, 1, 0, false), row(0, 1, LONG + 1, most.min(2), true)],
        vec![row(2, 0, 1, 1, true)],
        // Prompts of several lengths, one of which goes on in the call after.
        vec![row(0, 0, LONG, 0, true), row(2, LONG, 2 * LONG - 1, 0, true)],
        vec![row(2, 0, LONG + 17, 0, true), row(0, LONG + 17, most, 0, false)],
        vec![row(0, 0, 1, most, true)],
    ];
    if !chunks {
        calls.truncate(SHORT);
    }
    let width = shape.channels() + heads * (shape.value_dim + 2);
    for (i, rows) in (0..).zip(&calls) {
        let m = rows.iter().map(|r| r.len).sum::<usize>() as i32;
        let proj = trial::noise(&[m, width as i32], 10 + i, dtype)?;
        let expected = plain.mix(&proj, rows, &mut pools[0])?;
        let found = fused.mix(&proj, rows, &mut pools[1])?;
        trial::close(&format!("the result of call {i}"), &found, &expected, dtype)?;
    }
    for slot in [0, 2] {
        let [expected, found] = [pools[0].save(slot)?, pools[1].save(slot)?];
        trial::close("the state", &found.state, &expected.state, dtype)?;
    }
    Ok(())
}

fn pool(s: &GdnShape, dtype: Dtype, fused: bool) -> Result<GdnPool> {
    let zeros = |shape: &[usize], dtype| -> Result<Array> {
        let shape: Vec<i32> = shape.iter().map(|&n| n as i32).collect();
        Ok(mlx_rs::ops::zeros_dtype(&shape, dtype)?)
    };
    let tape = |shape: &[usize]| zeros(&[&[SLOTS, s.verify_max], shape].concat(), Dtype::Float32);
    let heads = s.value_heads;
    let (rows, wide) = if fused { (2 * SLOTS, 2 * heads) } else { (SLOTS, 0) };
    Ok(GdnPool {
        state: zeros(&[SLOTS, heads, s.value_dim, s.key_dim], Dtype::Float32)?,
        window: zeros(&[rows, 3 + s.verify_max, s.channels() + wide], dtype)?,
        tape: vec![
            tape(&[heads, s.key_dim])?,
            tape(&[heads, s.value_dim])?,
            tape(&[heads])?,
            tape(&[heads])?,
        ],
        fused: fused.then(|| Sides { good: vec![0; SLOTS], last: Array::from_int(0) }),
    })
}

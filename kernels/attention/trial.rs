//! The fused kernels beside their plain twin, over prompts and ragged verify rows.

use std::sync::Arc;

use mlx_rs::ops::zeros_dtype;

use super::fused::Fused;
use super::plain::PlainAttention;
use super::{AttentionRow, AttentionShape, KvPool};
use crate::error::Result;
use crate::gpu::trial;
use crate::place::Place;

/// # Errors
/// When the two differ, and what MLX or the compiler found wrong.
pub(super) fn run(shape: AttentionShape, rotation: (&[f32], f32), place: Place) -> Result<()> {
    let (s, dtype) = (&shape, place.dtype());
    let gain = |seed| trial::floats(s.head_dim, seed, (1.0, 0.2));
    let norms = [gain(1), gain(2)];
    let fused = Fused::untried(place, &norms, rotation, shape)?;
    let plain = PlainAttention::load(place, norms, rotation, shape)?;
    // Two rows: one inside the first span of keys, one well into the second.
    let held = [21_usize, 300];
    // What the calls below add to a row, at most.
    let most = 64;
    let mut next = 0;
    let pages = held.map(|len| {
        let count = ((len + most).div_ceil(s.page_tokens)) as u32;
        next += count;
        // Not in order.
        (next - count..next).rev().collect::<Arc<[u32]>>()
    });
    let size = [next as usize, s.kv_heads, s.page_tokens, s.head_dim].map(|n| n as i32);
    let pool = || -> Result<KvPool> {
        let (keys, values) = (zeros_dtype(&size, dtype)?, zeros_dtype(&size, dtype)?);
        Ok(KvPool { keys, values, last: None })
    };
    let (mut expected_pool, mut found_pool) = (pool()?, pool()?);
    let row = |i: usize, start, len, position| AttentionRow {
        start,
        len,
        position,
        pages: Arc::clone(&pages[i]),
    };
    let calls = [
        vec![row(0, 0, held[0], 0), row(1, held[0], held[1], 0)],
        vec![row(1, 0, 4, held[1]), row(0, 4, 1, held[0])],
        vec![row(1, 0, 1, held[1] + 2), row(0, 1, 5, held[0] + 1)],
        // Rows of prompts beside rows that verify, before and after others that only verify.
        vec![row(0, 0, 40, held[0] + 3), row(1, 40, 8, held[1] + 3)],
        vec![row(1, 0, 3, held[1] + 11), row(0, 3, 6, held[0] + 43)],
        vec![row(1, 0, 17, held[1] + 14), row(0, 17, 5, held[0] + 49)],
    ];
    let width = 2 * (s.query_heads + s.kv_heads) * s.head_dim;
    let mut results = Vec::new();
    for (i, rows) in (0..).zip(&calls) {
        let m = rows.iter().map(|r| r.len).sum::<usize>() as i32;
        let proj = trial::noise(&[m, width as i32], 10 + i, dtype)?;
        let expected = plain.attend(&proj, rows, &mut expected_pool)?;
        let found = fused.attend(&plain, &proj, rows, &mut found_pool)?;
        results.push((found, expected));
        // The last calls are computed together, so that what orders them is the graph alone.
        if i < 3 || i + 1 == calls.len() as u32 {
            for (found, expected) in results.drain(..) {
                trial::close(&format!("a result until call {i}"), &found, &expected, dtype)?;
            }
        }
    }
    Ok(())
}

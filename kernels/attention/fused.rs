//! Attention by the project's GPU kernels. Rows of prompts, longer than a verify row, are left to
//! MLX's own attention once their keys are in place.

use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::ops::sigmoid;
use mlx_rs::{Array, Dtype};

use super::plain::PlainAttention;
use super::{AttentionRow, AttentionShape, KvPool, trial};
use crate::error::Result;
use crate::gpu::attention::{Batch, FusedAttention, ROW_MAX, SPAN, Sizes, TOKENS_MAX};
use crate::gpu::gpu;
use crate::place::Place;

/// The kernels of a layer.
#[derive(Debug)]
pub(super) struct Fused {
    kernels: FusedAttention,
    shape: AttentionShape,
}

impl Fused {
    /// `None` where the kernels do not serve.
    pub(super) fn load(
        place: Place,
        norms: &[Vec<f32>; 2],
        rotation: (&[f32], f32),
        shape: AttentionShape,
    ) -> Result<Option<Self>> {
        let (gpu, dtype) = (gpu(), place.dtype());
        let sizes = shape.sizes(2 * rotation.0.len());
        if !sizes.fit() || !gpu.serves(dtype) {
            return Ok(None);
        }
        let (heads, kv) = (shape.query_heads, shape.kv_heads);
        let name = format!("ragged_attention, {heads} and {kv} heads of {}", shape.head_dim);
        if !gpu.passed(&name, dtype, || trial::run(shape, rotation, place)) {
            return Ok(None);
        }
        Self::untried(place, norms, rotation, shape).map(Some)
    }

    /// Without a trial.
    pub(super) fn untried(
        place: Place,
        [q_gain, k_gain]: &[Vec<f32>; 2],
        rotation: (&[f32], f32),
        shape: AttentionShape,
    ) -> Result<Self> {
        let sizes = shape.sizes(2 * rotation.0.len());
        let gains = [q_gain.as_slice(), k_gain];
        let kernels = FusedAttention::new(&gpu(), sizes, gains, rotation, place.dtype())?;
        Ok(Self { kernels, shape })
    }

    /// As `PlainAttention::attend`.
    pub(super) fn attend(
        &self,
        plain: &PlainAttention,
        proj: &Array,
        rows: &[AttentionRow],
        pool: &mut KvPool,
    ) -> Result<Array> {
        let (m, s) = (proj.dim(0), &self.shape);
        let (q, batch) = self.append(proj, rows, pool, false)?;
        let short = |row: &&AttentionRow| row.len <= ROW_MAX;
        let pools = [&pool.keys, &pool.values];
        if rows.iter().all(|row| short(&row)) {
            return self.kernels.attend((&q, proj), &batch, pools);
        }
        // MLX's own operations read the pages next, and know nothing of the writing: which pages,
        // they learn after it.
        let written = zero_of(&q)?;
        let fused = match rows.iter().find(short) {
            Some(_) => Some(self.kernels.attend((&q, proj), &batch, pools)?),
            None => None,
        };
        let (nq, d) = (s.query_heads as i32, s.head_dim as i32);
        let mut parts = Vec::with_capacity(rows.len());
        for row in rows {
            let (a, b) = (row.start as i32, (row.start + row.len) as i32);
            parts.push(match &fused {
                Some(y) if short(&row) => y.try_index(a..b)?,
                _ => {
                    let pages = plain.pages(row).iter().map(|&page| page as i32).collect();
                    let count = plain.pages(row).len() as i32;
                    let pages = gpu().numbers(pages)?.try_index(..count)?.add(&written)?;
                    let q = q.try_index(a..b)?.transpose_axes(&[1, 0, 2])?;
                    let y = plain.attend_row(&q, row, (pool, &pages))?;
                    let heads = proj.try_index((a..b, ..2 * nq * d))?;
                    let gate = heads.reshape(&[b - a, nq, 2, d])?.try_index((.., .., 1))?;
                    y.multiply(sigmoid(gate)?.reshape(&[b - a, nq * d])?)?
                }
            });
        }
        let y = plain.flat(&parts, rows, m)?;
        // Who writes into the pages next, does so after they were read.
        pool.last = Some(zero_of(&y)?);
        Ok(y)
    }

    /// Keys and values of `proj` into their pages; q of its tokens, and what the call was about.
    pub(super) fn append(
        &self,
        proj: &Array,
        rows: &[AttentionRow],
        pool: &mut KvPool,
        kv_only: bool,
    ) -> Result<(Array, Batch)> {
        let batch = self.describe(rows, proj.dim(0) as usize)?;
        let last = pool.last.take().unwrap_or_else(|| Array::from_int(0));
        let pools = [&pool.keys, &pool.values, &last];
        let q = self.kernels.append(proj, &batch, pools, kv_only)?;
        pool.last = Some(q.clone());
        Ok((q, batch))
    }

    /// Rows as the kernels read them.
    fn describe(&self, rows: &[AttentionRow], m: usize) -> Result<Batch> {
        let (numbers, rows, longest) = described(rows, m, self.shape.page_tokens);
        // Powers of two: the graph of a cycle has then the form of the last one's, mostly.
        let spans = longest.div_ceil(SPAN).next_power_of_two();
        Ok(Batch { meta: gpu().numbers(numbers)?, rows, spans })
    }
}

/// Rows as the kernels read them, in how many parts, and the most keys that one attends to. A row
/// of more queries than a block takes is told in parts, whose pages are the same.
fn described(rows: &[AttentionRow], m: usize, page_tokens: usize) -> (Vec<i32>, usize, usize) {
    let mut numbers = Vec::new();
    let (mut tokens, mut pages) = (vec![-1; 2 * m], Vec::new());
    let mut longest = 1;
    for row in rows {
        let end = row.position + row.len;
        let is_short = row.len <= ROW_MAX;
        let part = if is_short { TOKENS_MAX } else { row.len };
        for from in (0..row.len.max(1)).step_by(part) {
            let len = part.min(row.len - from);
            let told = [row.start + from, len, row.position + from, pages.len()];
            numbers.extend(told.map(|n| n as i32));
        }
        pages.extend(row.pages[..end.div_ceil(page_tokens)].iter().map(|&p| p as i32));
        for i in 0..row.len {
            let (at, position) = (2 * (row.start + i), row.position + i);
            tokens[at] = position as i32;
            tokens[at + 1] = row.pages[position / page_tokens] as i32;
        }
        if is_short {
            longest = longest.max(end);
        }
    }
    let parts = numbers.len() / 4;
    numbers.append(&mut tokens);
    numbers.append(&mut pages);
    (numbers, parts, longest)
}

/// A zero that is there once `array` is: i32 [1].
fn zero_of(array: &Array) -> Result<Array> {
    let first = array.reshape(&[-1])?.try_index(..1)?;
    Ok(first.as_dtype(Dtype::Int32)?.multiply(Array::from_int(0))?)
}

impl AttentionShape {
    fn sizes(&self, rotary: usize) -> Sizes {
        Sizes {
            query_heads: self.query_heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            page_tokens: self.page_tokens,
            rotary,
            first_key: self.first_key,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(start: usize, len: usize, position: usize, pages: &[u32]) -> AttentionRow {
        AttentionRow { start, len, position, pages: pages.into() }
    }

    #[test]
    fn a_row_of_eight_is_told_in_parts_that_share_its_pages() {
        let rows = [row(0, 8, 30, &[7, 3]), row(8, 1, 4, &[5]), row(9, 20, 0, &[9])];
        let (numbers, parts, longest) = described(&rows, 29, 32);
        assert_eq!((parts, longest), (4, 38));
        assert_eq!(numbers[..8], [0, 5, 30, 0, 5, 3, 35, 0]);
        assert_eq!(numbers[8..16], [8, 1, 4, 2, 9, 20, 0, 3]);
        assert_eq!(numbers[16..22], [30, 7, 31, 7, 32, 3]);
        assert_eq!(numbers[16 + 58..], [7, 3, 5, 9]);
    }

    #[test]
    fn sixty_four_rows_of_long_texts_are_told_whole() {
        let pages: Vec<u32> = (0..64 * 300).rev().collect();
        let rows: Vec<AttentionRow> =
            (0..64).map(|r| row(5 * r, 5, 9500, &pages[300 * r..][..300])).collect();
        let (numbers, parts, longest) = described(&rows, 320, 32);
        assert_eq!((parts, longest), (64, 9505));
        let (told, listed) = numbers.split_at(64 * 4 + 2 * 320);
        assert_eq!(listed.len(), 64 * 298, "pages up to the last new token");
        for (r, row) in rows.iter().enumerate() {
            let [start, len, position, offset] = [0, 1, 2, 3].map(|i| told[4 * r + i] as usize);
            assert_eq!((start, len, position), (row.start, 5, 9500));
            let own: Vec<u32> = listed[offset..][..298].iter().map(|&p| p as u32).collect();
            assert_eq!(own, row.pages[..298]);
            let at = 64 * 4 + 2 * (5 * r + 4);
            assert_eq!(told[at..][..2], [9504, row.pages[297] as i32]);
        }
    }
}

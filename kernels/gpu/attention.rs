//! `ragged_attention`: gated attention over paged keys and values, pages written in place.

use std::rc::Rc;

use mlx_rs::{Array, Dtype};

use super::Gpu;
use super::device::{Kernel, Launch, Source};
use crate::error::Result;

const CUDA: &str = concat!(include_str!("scalar.cu"), include_str!("ragged_attention.cu"));
const METAL: &str = include_str!("ragged_attention.metal");
const APPEND: Source = Source {
    name: "append",
    cuda: CUDA,
    metal: METAL,
    inputs: &["proj", "q_gain", "k_gain", "inv_freq", "meta", "keys", "values", "after"],
    output: "q",
};
const ATTEND: Source = Source {
    name: "attend",
    cuda: CUDA,
    metal: METAL,
    inputs: &["q", "keys", "values", "meta"],
    output: "parts",
};
const COMBINE: Source = Source {
    name: "combine",
    cuda: CUDA,
    metal: METAL,
    inputs: &["parts", "proj", "meta"],
    output: "y",
};
/// Keys that one block attends to: fixed, so that sums have one order.
pub const SPAN: usize = 64;
/// Most tokens whose queries a block takes.
pub const TOKENS_MAX: usize = 5;
/// Most tokens of a row that the kernels attend for, in as many parts as that takes.
pub const ROW_MAX: usize = 8;

/// Sizes of a layer.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Nq.
    pub query_heads: usize,
    /// Nkv.
    pub kv_heads: usize,
    /// D.
    pub head_dim: usize,
    /// Positions of a page.
    pub page_tokens: usize,
    /// Dimensions that are rotated.
    pub rotary: usize,
    /// Index of the first key.
    pub first_key: usize,
}

impl Sizes {
    /// Whether the kernels know them.
    #[must_use]
    pub fn fit(&self) -> bool {
        let each = self.head_dim / 32;
        let divided = self.head_dim.is_multiple_of(64) && self.rotary.is_multiple_of(2 * each);
        let grouped = self.query_heads.is_multiple_of(self.kv_heads);
        // A lane's partner of the rotation is found by flipping one bit of its number.
        divided && grouped && self.rotary > 0 && (self.rotary / 2 / each.max(1)).is_power_of_two()
    }
}

/// What a call is about, on the device.
#[derive(Debug)]
pub struct Batch {
    /// As the source says.
    pub meta: Array,
    /// Rows, or parts of them, that it tells of.
    pub rows: usize,
    /// Spans of the longest row.
    pub spans: usize,
}

/// A layer's kernels and numbers.
#[derive(Debug)]
pub struct FusedAttention {
    sizes: Sizes,
    dtype: Dtype,
    eps: f32,
    append: Rc<Kernel>,
    attend: Rc<Kernel>,
    combine: Rc<Kernel>,
    q_gain: Array,
    k_gain: Array,
    inv_freq: Array,
}

impl FusedAttention {
    /// Prepares a layer.
    ///
    /// # Errors
    /// When a kernel does not compile.
    pub fn new(
        gpu: &Gpu,
        sizes: Sizes,
        [q_gain, k_gain]: [&[f32]; 2],
        (inv_freq, eps): (&[f32], f32),
        dtype: Dtype,
    ) -> Result<Self> {
        let part = |part: usize, source: &Source| {
            let numbers = [
                ("NQ", sizes.query_heads),
                ("NKV", sizes.kv_heads),
                ("P", sizes.page_tokens),
                ("E", sizes.head_dim / 32),
                ("ROTARY", sizes.rotary),
                ("T", TOKENS_MAX),
                ("PART", part),
            ];
            let numbers = numbers.map(|(name, value)| (name, value.to_string()));
            let kind = [("TYPE", super::scalar(dtype))];
            let settings: Vec<(&str, String)> = kind.into_iter().chain(numbers).collect();
            gpu.kernel(source, &settings)
        };
        let floats = |values: &[f32]| Array::from_slice(values, &[values.len() as i32]);
        Ok(Self {
            sizes,
            dtype,
            eps,
            append: part(1, &APPEND)?,
            attend: part(2, &ATTEND)?,
            combine: part(3, &COMBINE)?,
            q_gain: floats(q_gain).as_dtype(dtype)?,
            k_gain: floats(k_gain).as_dtype(dtype)?,
            inv_freq: floats(inv_freq),
        })
    }

    /// Writes keys and values of `proj [M, q and gate | k | v]`, or `[M, k | v]` with `kv_only`,
    /// into their pages, before the result is read; the result is q `[M, Nq, D]`, normalised and
    /// rotated (arbitrary with `kv_only`); `after` is the result of the call before.
    ///
    /// # Errors
    /// When MLX refuses.
    pub fn append(
        &self,
        proj: &Array,
        batch: &Batch,
        [keys, values, after]: [&Array; 3],
        kv_only: bool,
    ) -> Result<Array> {
        let (s, m) = (&self.sizes, proj.dim(0));
        let heads = 2 * s.kv_heads + if kv_only { 0 } else { s.query_heads };
        let eps = self.eps.to_bits() as i32;
        let launch = Launch {
            scalars: &[m, batch.rows as i32, eps, i32::from(kv_only)],
            blocks: (m as usize * heads).div_ceil(4),
            threads: 128,
            shared_bytes: 0,
        };
        let shape =
            if kv_only { vec![1] } else { vec![m, s.query_heads as i32, s.head_dim as i32] };
        let gains = [&self.q_gain, &self.k_gain, &self.inv_freq];
        let inputs = [proj, gains[0], gains[1], gains[2], &batch.meta, keys, values, after];
        // SAFETY: arrays have the sizes that the source names; pages are the batch's own.
        let [q] = unsafe { self.append.call(&inputs, [(&shape, self.dtype)], launch) }?;
        Ok(q)
    }

    /// `q` of [`Self::append`] against its rows' keys, times the gates in `proj`: `[M, Nq·D]`.
    ///
    /// # Errors
    /// When MLX refuses.
    pub fn attend(
        &self,
        (q, proj): (&Array, &Array),
        batch: &Batch,
        [keys, values]: [&Array; 2],
    ) -> Result<Array> {
        let (s, m) = (&self.sizes, proj.dim(0));
        let (spans, rows) = (batch.spans, batch.rows);
        let scalars = [m, rows as i32, spans as i32, s.first_key as i32];
        let blocks = rows * s.kv_heads * spans;
        let launch = Launch { scalars: &scalars, blocks, threads: 256, shared_bytes: 0 };
        let shape = [m, s.query_heads as i32, spans as i32, s.head_dim as i32 + 2];
        let inputs = [q, keys, values, &batch.meta];
        // SAFETY: as above; `combine` reads of `parts` what `attend` wrote.
        let [parts] = unsafe { self.attend.call(&inputs, [(&shape, Dtype::Float32)], launch) }?;
        let blocks = (m as usize * s.query_heads).div_ceil(4);
        let launch = Launch { scalars: &scalars, blocks, threads: 128, shared_bytes: 0 };
        let shape = [m, (s.query_heads * s.head_dim) as i32];
        let inputs = [&parts, proj, &batch.meta];
        // SAFETY: as above.
        let [y] = unsafe { self.combine.call(&inputs, [(&shape, self.dtype)], launch) }?;
        Ok(y)
    }
}

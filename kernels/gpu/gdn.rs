//! `gdn_verify`: Gated DeltaNet between its projections in one launch, state in place.

use std::rc::Rc;

use mlx_rs::{Array, Dtype};

use super::Gpu;
use super::device::{Kernel, Launch, Source};
use crate::error::Result;

const SOURCE: Source = Source {
    name: "gdn_verify",
    cuda: concat!(
        include_str!("scalar.cu"),
        include_str!("gdn_sizes.cu"),
        include_str!("gdn_verify.cu")
    ),
    metal: concat!(include_str!("gdn_verify.metal"), include_str!("gdn_chunked.metal")),
    inputs: &["proj", "taps", "decay", "dt_bias", "gain", "rows", "state", "window", "after"],
    output: "y",
};
/// The same for calls with long prompts.
const CHUNKED: Source = Source {
    name: "gdn_chunked",
    cuda: concat!(
        include_str!("scalar.cu"),
        include_str!("gdn_sizes.cu"),
        include_str!("gdn_chunked.cu"),
        include_str!("gdn_verify.cu")
    ),
    ..SOURCE
};
/// Tokens from which on a prompt is long, as the source has it.
pub const LONG: usize = 64;
/// `ChunkRoom` of the source, in floats.
const CHUNK_ROOM: usize = 128 * 132 + 64 * 132 + 2 * 32 * 136 + 2 * 32 * 36 + 2 * 32;
/// The only width of a head that the kernel knows.
pub const HEAD_DIM: usize = 128;
/// Numbers that tell a row.
pub const ROW_INTS: usize = 6;

/// A layer's numbers between its projections, on the device.
#[derive(Debug)]
pub struct FusedGdn {
    kernel: Rc<Kernel>,
    /// For calls with long prompts, where it serves.
    chunked: Option<Rc<Kernel>>,
    value_heads: usize,
    dtype: Dtype,
    eps: f32,
    parameters: [Array; 4],
}

/// What a layer is made of.
#[derive(Clone, Copy, Debug)]
pub struct GdnParameters<'a> {
    /// Hk.
    pub key_heads: usize,
    /// Hv.
    pub value_heads: usize,
    /// Tokens of a tape.
    pub verify_max: usize,
    /// Taps of the convolution, [C, 4].
    pub conv: &'a [f32],
    /// [Hv].
    pub a_log: &'a [f32],
    /// [Hv].
    pub dt_bias: &'a [f32],
    /// [Dv].
    pub gain: &'a [f32],
    /// Of the norm after the recurrence.
    pub eps: f32,
}

impl FusedGdn {
    /// Prepares a layer; without `chunks` long prompts go token by token.
    ///
    /// # Errors
    /// When the kernel does not compile.
    pub fn new(gpu: &Gpu, p: &GdnParameters<'_>, dtype: Dtype, chunks: bool) -> Result<Self> {
        let settings = [
            ("TYPE", super::scalar(dtype)),
            ("HK", p.key_heads.to_string()),
            ("HV", p.value_heads.to_string()),
            ("T", p.verify_max.to_string()),
        ];
        let channels = p.conv.len() / 4;
        let taps: Vec<f32> =
            (0..4).flat_map(|j| (0..channels).map(move |c| p.conv[4 * c + j])).collect();
        let decay: Vec<f32> = p.a_log.iter().map(|a| -a.exp()).collect();
        let floats = |values: &[f32]| Array::from_slice(values, &[values.len() as i32]);
        let parameters =
            [floats(&taps), floats(&decay), floats(p.dt_bias), floats(p.gain).as_dtype(dtype)?];
        let kernel = |source: &Source, chunked: bool| {
            let chunked = ("CHUNKED", i32::from(chunked).to_string());
            gpu.kernel(source, &[&settings[..], &[chunked]].concat())
        };
        Ok(Self {
            kernel: kernel(&SOURCE, false)?,
            chunked: chunks.then(|| kernel(&CHUNKED, true)).transpose()?,
            value_heads: p.value_heads,
            dtype,
            eps: p.eps,
            parameters,
        })
    }

    /// `proj [M, q|k|v|z|b|a]` → `[M, Hv·Dv]`; `state` and `window` are written in place, before
    /// the result is read; `after` is the result of the call before. `meta` holds [`ROW_INTS`]
    /// numbers a row; `long` says that a prompt of at least [`LONG`] tokens is among them.
    ///
    /// # Errors
    /// When MLX refuses.
    pub fn mix(
        &self,
        proj: &Array,
        (meta, rows, long): (&Array, usize, bool),
        [state, window, after]: [&Array; 3],
    ) -> Result<Array> {
        let [taps, decay, dt_bias, gain] = &self.parameters;
        let chunked = self.chunked.as_ref().filter(|_| long);
        let launch = Launch {
            scalars: &[self.eps.to_bits() as i32],
            blocks: rows * self.value_heads,
            threads: 4 * HEAD_DIM,
            shared_bytes: chunked.map_or(0, |_| 4 * CHUNK_ROOM),
        };
        let kernel = chunked.unwrap_or(&self.kernel);
        let shape = [proj.dim(0), (self.value_heads * HEAD_DIM) as i32];
        let inputs = [proj, taps, decay, dt_bias, gain, meta, state, window, after];
        // SAFETY: arrays have the sizes that the source names; the pool's owner keeps the order.
        let [y] = unsafe { kernel.call(&inputs, [(&shape, self.dtype)], launch) }?;
        Ok(y)
    }
}

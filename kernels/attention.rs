//! Gated attention over a ragged batch with a paged KV cache. Every row has its own length; no row
//! pays for another's.

use std::sync::Arc;

use mlx_rs::{Array, Dtype};

use crate::checkpoint::{AttentionWeights, ModelConfig};
use crate::error::Result;
use crate::linear::Matrix;
use crate::norm::Norm;
use crate::place::Place;
#[cfg(target_os = "linux")]
use crate::pool::in_place;
#[cfg(target_os = "linux")]
use crate::{
    cpu,
    host::{self, Input, Output, OutputSpec},
    scratch,
};

mod fused;
mod plain;
mod trial;

/// What one row does in a call: tokens `start..start + len` of the flattened batch stand at
/// absolute indices `position..position + len` of its cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttentionRow {
    /// First token in the flattened batch.
    pub start: usize,
    /// Tokens.
    pub len: usize,
    /// Index of the first token in the row's cache; also its rotary position.
    pub position: usize,
    /// Pages that cover the row up to its last new token.
    pub pages: Arc<[u32]>,
}

/// Shapes of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Nq.
    pub query_heads: usize,
    /// Nkv, a divisor of Nq.
    pub kv_heads: usize,
    /// D.
    pub head_dim: usize,
    /// Positions of a page.
    pub page_tokens: usize,
    /// First index of the cache that holds a key: 1 for the MTP head, whose entry i belongs to
    /// token i and the hidden state before it.
    pub first_key: usize,
}

/// One block's weights: `x + o(attention(rms(x)))`.
#[derive(Debug)]
pub struct Attention {
    shape: AttentionShape,
    place: Place,
    core: Core,
}

#[derive(Debug)]
enum Core {
    #[cfg(target_os = "linux")]
    Host(Arc<HostAttention>),
    Mlx(Box<MlxAttention>),
}

#[derive(Debug)]
struct MlxAttention {
    norm: Norm,
    /// `q and gate, interleaved by head | k | v`.
    qkv: Matrix,
    /// `k | v` alone, to fill a cache that nobody attends to yet.
    kv: Option<Matrix>,
    output: Matrix,
    mixer: plain::PlainAttention,
    fused: Option<fused::Fused>,
}

#[cfg(target_os = "linux")]
#[derive(Debug)]
struct HostAttention {
    gain: Vec<f32>,
    eps: f32,
    first_key: usize,
    qkv: cpu::Weight,
    kv: Option<cpu::Weight>,
    output: cpu::Weight,
    mixer: cpu::Attention,
}

/// One layer's pages. Handles are replaced by every call: no other may be kept.
#[derive(Debug)]
pub struct KvPool {
    /// [pages, Nkv, page, D], after norm and rotation.
    keys: Array,
    /// [pages, Nkv, page, D].
    values: Array,
    /// The result of the last fused call: whoever has it, has the pool's changes.
    last: Option<Array>,
}

impl Attention {
    /// Prepares a block for a place; `gain` [H] is the effective one of the norm before it, and
    /// `head` is true for the MTP head's layer.
    ///
    /// # Errors
    /// When weights cannot be prepared.
    pub fn load(
        place: Place,
        gain: &[f32],
        w: &AttentionWeights,
        config: &ModelConfig,
        (page_tokens, head): (usize, bool),
    ) -> Result<Self> {
        let a = &config.attention;
        let shape = AttentionShape {
            query_heads: a.heads,
            kv_heads: a.kv_heads,
            head_dim: a.head_dim,
            page_tokens,
            first_key: usize::from(head),
        };
        let eps = config.norm_eps;
        let inv_freq = config.rope.frequencies();
        // YaRN lengthens what is rotated: the gains before the rotation take that over.
        let lengthened = |gain: &[f32]| -> Vec<f32> {
            let factor = |i| if i < config.rope.dims { config.rope.magnitude() } else { 1.0 };
            gain.iter().enumerate().map(|(i, g)| g * factor(i)).collect()
        };
        let norms = [lengthened(&w.q_norm), lengthened(&w.k_norm)];
        let (qkv, kv) = ([&w.q, &w.k, &w.v], [&w.k, &w.v]);
        let core = match place {
            #[cfg(target_os = "linux")]
            Place::Host => {
                let [q_gain, k_gain] = &norms;
                let params = cpu::AttentionParams { q_gain, k_gain, inv_freq: &inv_freq, eps };
                let kv = head.then(|| crate::linear::host_matrix(&kv));
                Core::Host(Arc::new(HostAttention {
                    gain: gain.to_vec(),
                    eps,
                    first_key: shape.first_key,
                    qkv: crate::linear::host_matrix(&qkv)?,
                    kv: kv.transpose()?,
                    output: crate::linear::host_matrix(&[&w.o])?,
                    mixer: cpu::Attention::new(shape.host(), params)?,
                }))
            }
            Place::Mlx(_) => Core::Mlx(Box::new(MlxAttention {
                norm: Norm::load(place, gain, eps)?,
                qkv: Matrix::load(place, &qkv)?,
                kv: head.then(|| Matrix::load(place, &kv)).transpose()?,
                output: Matrix::load(place, &[&w.o])?,
                fused: fused::Fused::load(place, &norms, (&inv_freq, eps), shape)?,
                mixer: plain::PlainAttention::load(place, norms, (&inv_freq, eps), shape)?,
            })),
        };
        Ok(Self { shape, place, core })
    }

    /// An empty cache of `pages` pages. Nothing is read from it that was not written to it.
    ///
    /// # Errors
    /// When MLX cannot allocate.
    pub fn pool(&self, pages: usize) -> Result<KvPool> {
        let s = &self.shape;
        let shape = [pages, s.kv_heads, s.page_tokens, s.head_dim].map(|n| n as i32);
        let empty = || match self.place {
            #[cfg(target_os = "linux")]
            Place::Host => crate::pool::untouched(&shape),
            Place::Mlx(dtype) => Ok(mlx_rs::ops::zeros_dtype(&shape, dtype)?),
        };
        Ok(KvPool { keys: empty()?, values: empty()?, last: None })
    }

    /// `[M, H]` → `[M, H]`, the residual included.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn apply(&self, x: &Array, rows: &[AttentionRow], pool: &mut KvPool) -> Result<Array> {
        match &self.core {
            #[cfg(target_os = "linux")]
            Core::Host(layer) => apply_on_host(layer, x, rows, pool),
            Core::Mlx(layer) => {
                let proj = layer.qkv.apply(&layer.norm.apply(x)?)?;
                let y = match &layer.fused {
                    Some(fused) => fused.attend(&layer.mixer, &proj, rows, pool)?,
                    None => layer.mixer.attend(&proj, rows, pool)?,
                };
                layer.output.apply_add(&y, x)
            }
        }
    }

    /// Appends keys and values of `x [M, H]`, and nothing else. Only for the MTP head's layer.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn append(&self, x: &Array, rows: &[AttentionRow], pool: &mut KvPool) -> Result<()> {
        match &self.core {
            #[cfg(target_os = "linux")]
            Core::Host(layer) => append_on_host(layer, x, rows, pool),
            Core::Mlx(layer) => {
                let Some(kv) = &layer.kv else { return Ok(()) };
                let proj = kv.apply(&layer.norm.apply(x)?)?;
                match &layer.fused {
                    Some(fused) => fused.append(&proj, rows, pool, true).map(drop),
                    None => layer.mixer.append(&proj, rows, pool),
                }
            }
        }
    }
}

#[cfg(target_os = "linux")]
fn apply_on_host(
    layer: &Arc<HostAttention>,
    x: &Array,
    rows: &[AttentionRow],
    pool: &mut KvPool,
) -> Result<Array> {
    let (layer, rows, m) = (Arc::clone(layer), rows.to_vec(), x.dim(0) as usize);
    let outputs = [
        OutputSpec::new(x.shape(), Dtype::Float32),
        in_place(&pool.keys, 1),
        in_place(&pool.values, 2),
    ];
    let f = move |i: &[Input<'_>], o: &mut [Output<'_>]| {
        let [out, keys, values] = o else { return Ok(()) };
        let rows = host_rows(&rows, layer.first_key);
        let pools = cpu::KvPools { keys: keys.as_mut_slice()?, values: values.as_mut_slice()? };
        layer.apply(m, i[0].as_slice()?, &rows, pools, out.as_mut_slice()?);
        Ok(())
    };
    let inputs = [x, &pool.keys, &pool.values];
    let [out, keys, values] = host::call(&inputs, outputs, f)?;
    *pool = KvPool { keys, values, last: None };
    Ok(out)
}

#[cfg(target_os = "linux")]
fn append_on_host(
    layer: &Arc<HostAttention>,
    x: &Array,
    rows: &[AttentionRow],
    pool: &mut KvPool,
) -> Result<()> {
    let (layer, rows, m) = (Arc::clone(layer), rows.to_vec(), x.dim(0) as usize);
    let outputs = [in_place(&pool.keys, 1), in_place(&pool.values, 2)];
    let f = move |i: &[Input<'_>], o: &mut [Output<'_>]| {
        let [keys, values] = o else { return Ok(()) };
        let rows = host_rows(&rows, layer.first_key);
        let pools = cpu::KvPools { keys: keys.as_mut_slice()?, values: values.as_mut_slice()? };
        layer.append(m, i[0].as_slice()?, &rows, pools);
        Ok(())
    };
    let [keys, values] = host::call(&[x, &pool.keys, &pool.values], outputs, f)?;
    *pool = KvPool { keys, values, last: None };
    Ok(())
}

#[cfg(target_os = "linux")]
impl HostAttention {
    fn apply(
        &self,
        m: usize,
        x: &[f32],
        rows: &[cpu::AttentionRow<'_>],
        pools: cpu::KvPools<'_>,
        out: &mut [f32],
    ) {
        let (wide, width) = (self.qkv.rows(), self.output.cols());
        scratch::with([x.len(), m * wide, m * width], |[n, proj, y]| {
            cpu::rms_norm(x, &self.gain, self.eps, n);
            cpu::linear(n, &self.qkv, proj);
            cpu::attention(&self.mixer, proj, rows, pools, y);
            cpu::linear_add(y, &self.output, x, out);
        });
    }

    fn append(&self, m: usize, x: &[f32], rows: &[cpu::AttentionRow<'_>], pools: cpu::KvPools<'_>) {
        let Some(kv) = &self.kv else { return };
        scratch::with([x.len(), m * kv.rows(), 0], |[n, proj, _]| {
            cpu::rms_norm(x, &self.gain, self.eps, n);
            cpu::linear(n, kv, proj);
            cpu::append_kv(&self.mixer, proj, kv.rows(), rows, pools);
        });
    }
}

#[cfg(target_os = "linux")]
fn host_rows(rows: &[AttentionRow], first_key: usize) -> Vec<cpu::AttentionRow<'_>> {
    rows.iter()
        .map(|r| cpu::AttentionRow {
            start: r.start,
            len: r.len,
            position: r.position,
            pages: &r.pages,
            first_key,
        })
        .collect()
}

impl AttentionShape {
    #[cfg(target_os = "linux")]
    fn host(&self) -> cpu::AttentionDims {
        cpu::AttentionDims {
            query_heads: self.query_heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            page_tokens: self.page_tokens,
        }
    }
}

impl KvPool {
    /// Arrays to evaluate so that no graph outlives its cycle.
    pub(crate) fn arrays(&self) -> impl Iterator<Item = &Array> {
        [&self.keys, &self.values].into_iter().chain(&self.last)
    }

    /// Pages there is room for.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.keys.dim(0) as usize
    }

    /// Makes room for `pages` pages.
    ///
    /// # Errors
    /// When MLX cannot allocate.
    pub fn grow(&mut self, pages: usize) -> Result<()> {
        crate::place::eval(&self.last)?;
        crate::pool::grow(&mut self.keys, pages)?;
        crate::pool::grow(&mut self.values, pages)
    }

    /// Shape and type of a page of keys, or of values.
    pub(crate) fn page(&self) -> (Vec<i32>, Dtype) {
        (self.keys.shape()[1..].to_vec(), self.keys.dtype())
    }

    /// Copies of the keys (side 0) or of the values (side 1) of these pages.
    ///
    /// # Errors
    /// When MLX fails.
    pub(crate) fn gather(&self, pages: &[i32], side: usize) -> Result<Array> {
        crate::place::eval(&self.last)?;
        let pages = Array::from_slice(pages, &[pages.len() as i32]);
        Ok([&self.keys, &self.values][side].take_axis(&pages, 0)?)
    }

    /// Writes the pages from `first` on of keys (side 0) or values (side 1) into the pages `run`.
    ///
    /// # Errors
    /// When MLX fails.
    pub(crate) fn put(
        &mut self,
        side: usize,
        first: usize,
        run: std::ops::Range<usize>,
        values: &Array,
    ) -> Result<()> {
        crate::place::eval(&self.last)?;
        crate::pool::put([&mut self.keys, &mut self.values][side], run, first, values)
    }

    /// Copies one page over another.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn copy(&mut self, from: usize, to: usize) -> Result<()> {
        // MLX knows nothing of what a fused kernel writes in place.
        crate::place::eval(&self.last)?;
        crate::pool::copy(&mut self.keys, from, to)?;
        crate::pool::copy(&mut self.values, from, to)
    }
}

//! Gated attention over a ragged batch with a paged KV cache. Every row has its own length; no row
//! pays for another's.

use std::sync::Arc;

use mlx_rs::{Array, Dtype};

use crate::checkpoint::{AttentionWeights, ModelConfig};
use crate::error::Result;
use crate::linear::Matrix;
use crate::place::Place;
#[cfg(target_os = "linux")]
use crate::pool::in_place;
#[cfg(target_os = "linux")]
use crate::{
    cpu,
    host::{self, Input, Output, OutputSpec},
};

mod plain;

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

/// One layer's weights.
#[derive(Debug)]
pub struct Attention {
    shape: AttentionShape,
    place: Place,
    /// `q and gate, interleaved by head | k | v`.
    qkv: Matrix,
    /// `k | v` alone, to fill a cache that nobody attends to yet.
    kv: Option<Matrix>,
    output: Matrix,
    core: Core,
}

#[derive(Debug)]
enum Core {
    #[cfg(target_os = "linux")]
    Host(Arc<cpu::Attention>),
    Mlx(plain::PlainAttention),
}

/// One layer's pages. Handles are replaced by every call: no other may be kept.
#[derive(Debug)]
pub struct KvPool {
    /// [pages, Nkv, page, D], after norm and rotation.
    keys: Array,
    /// [pages, Nkv, page, D].
    values: Array,
}

impl Attention {
    /// Prepares a layer for a place. `head` is true for the MTP head's layer.
    ///
    /// # Errors
    /// When weights cannot be prepared.
    pub fn load(
        place: Place,
        w: &AttentionWeights,
        config: &ModelConfig,
        page_tokens: usize,
        head: bool,
    ) -> Result<Self> {
        let a = &config.attention;
        let shape = AttentionShape {
            query_heads: a.heads,
            kv_heads: a.kv_heads,
            head_dim: a.head_dim,
            page_tokens,
            first_key: usize::from(head),
        };
        let inv_freq = config.rope.frequencies();
        // YaRN lengthens what is rotated: the gains before the rotation take that over.
        let lengthened = |gain: &[f32]| -> Vec<f32> {
            let factor = |i| if i < config.rope.dims { config.rope.magnitude() } else { 1.0 };
            gain.iter().enumerate().map(|(i, g)| g * factor(i)).collect()
        };
        let (q_gain, k_gain) = (lengthened(&w.q_norm), lengthened(&w.k_norm));
        let core = match place {
            #[cfg(target_os = "linux")]
            Place::Host => {
                let params = cpu::AttentionParams {
                    q_gain: &q_gain,
                    k_gain: &k_gain,
                    inv_freq: &inv_freq,
                    eps: config.norm_eps,
                };
                Core::Host(Arc::new(cpu::Attention::new(shape.host(), params)?))
            }
            Place::Mlx(_) => {
                let norms = [q_gain, k_gain];
                Core::Mlx(plain::PlainAttention::load(place, norms, config, shape, &inv_freq)?)
            }
        };
        let kv = head.then(|| Matrix::load(place, &[&w.k, &w.v])).transpose()?;
        let qkv = Matrix::load(place, &[&w.q, &w.k, &w.v])?;
        Ok(Self { shape, place, qkv, kv, output: Matrix::load(place, &[&w.o])?, core })
    }

    /// An empty cache of `pages` pages.
    ///
    /// # Errors
    /// When MLX cannot allocate.
    pub fn pool(&self, pages: usize) -> Result<KvPool> {
        let s = &self.shape;
        let shape = [pages, s.kv_heads, s.page_tokens, s.head_dim].map(|n| n as i32);
        let zeros = || mlx_rs::ops::zeros_dtype(&shape, self.place.dtype());
        Ok(KvPool { keys: zeros()?, values: zeros()? })
    }

    /// `x [M, H]` normalised → mixer output added to `residual [M, H]`.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn apply(
        &self,
        x: &Array,
        residual: &Array,
        rows: &[AttentionRow],
        pool: &mut KvPool,
    ) -> Result<Array> {
        let proj = self.qkv.apply(x)?;
        let y = match &self.core {
            #[cfg(target_os = "linux")]
            Core::Host(layer) => self.attend_on_host(layer, &proj, rows, pool)?,
            Core::Mlx(plain) => plain.attend(&proj, rows, pool)?,
        };
        self.output.apply_add(&y, residual)
    }

    /// Appends keys and values of `x [M, H]` normalised, and nothing else. Only for the MTP head's
    /// layer.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn append(&self, x: &Array, rows: &[AttentionRow], pool: &mut KvPool) -> Result<()> {
        let Some(kv) = &self.kv else { return Ok(()) };
        let proj = kv.apply(x)?;
        match &self.core {
            #[cfg(target_os = "linux")]
            Core::Host(layer) => self.append_on_host(layer, &proj, rows, pool),
            Core::Mlx(plain) => plain.append(&proj, rows, pool),
        }
    }
}

#[cfg(target_os = "linux")]
impl Attention {
    fn attend_on_host(
        &self,
        layer: &Arc<cpu::Attention>,
        proj: &Array,
        rows: &[AttentionRow],
        pool: &mut KvPool,
    ) -> Result<Array> {
        let (layer, rows) = (Arc::clone(layer), rows.to_vec());
        let first_key = self.shape.first_key;
        let width = (self.shape.query_heads * self.shape.head_dim) as i32;
        let shape = [proj.dim(0), width];
        let outputs = [
            OutputSpec::new(&shape, Dtype::Float32),
            in_place(&pool.keys, 1),
            in_place(&pool.values, 2),
        ];
        let f = move |i: &[Input<'_>], o: &mut [Output<'_>]| {
            let [out, keys, values] = o else { return Ok(()) };
            let rows = host_rows(&rows, first_key);
            let pools = cpu::KvPools { keys: keys.as_mut_slice()?, values: values.as_mut_slice()? };
            cpu::attention(&layer, i[0].as_slice()?, &rows, pools, out.as_mut_slice()?);
            Ok(())
        };
        let inputs = [proj, &pool.keys, &pool.values];
        let [out, keys, values] = host::call(&inputs, outputs, f)?;
        *pool = KvPool { keys, values };
        Ok(out)
    }

    fn append_on_host(
        &self,
        layer: &Arc<cpu::Attention>,
        kv: &Array,
        rows: &[AttentionRow],
        pool: &mut KvPool,
    ) -> Result<()> {
        let (layer, rows) = (Arc::clone(layer), rows.to_vec());
        let first_key = self.shape.first_key;
        let stride = 2 * self.shape.kv_heads * self.shape.head_dim;
        let outputs = [in_place(&pool.keys, 1), in_place(&pool.values, 2)];
        let f = move |i: &[Input<'_>], o: &mut [Output<'_>]| {
            let [keys, values] = o else { return Ok(()) };
            let rows = host_rows(&rows, first_key);
            let pools = cpu::KvPools { keys: keys.as_mut_slice()?, values: values.as_mut_slice()? };
            cpu::append_kv(&layer, i[0].as_slice()?, stride, &rows, pools);
            Ok(())
        };
        let [keys, values] = host::call(&[kv, &pool.keys, &pool.values], outputs, f)?;
        *pool = KvPool { keys, values };
        Ok(())
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
    pub fn arrays(&self) -> impl Iterator<Item = &Array> {
        [&self.keys, &self.values].into_iter()
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
        crate::pool::grow(&mut self.keys, pages)?;
        crate::pool::grow(&mut self.values, pages)
    }

    /// Copies one page over another.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn copy(&mut self, from: usize, to: usize) -> Result<()> {
        crate::pool::copy(&mut self.keys, from, to)?;
        crate::pool::copy(&mut self.values, from, to)
    }
}

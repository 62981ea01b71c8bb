//! Gated DeltaNet over a ragged batch, with rollback for free: a verify cycle leaves the committed
//! state where it was and puts its tokens on a tape; the next call replays what was accepted before
//! it goes on. One read and one write of the state a cycle, whatever was accepted.
//!
//! Maths: Yang et al. 2024 (Gated Delta Networks), in the form of Qwen3.5's linear attention.

use mlx_rs::{Array, Dtype};

use crate::checkpoint::{GdnWeights, ModelConfig};
use crate::error::{Error, Result};
use crate::gpu::gdn::{FusedGdn, GdnParameters, HEAD_DIM, LONG};
use crate::gpu::gpu;
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
#[cfg(target_os = "linux")]
use std::sync::Arc;

mod plain;
mod trial;

/// What one row does in a call: `keep` tokens of its tape are folded into the committed state, then
/// tokens `start..start + len` of the flattened batch are processed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GdnRow {
    /// The slot that holds its state.
    pub slot: usize,
    /// First token in the flattened batch.
    pub start: usize,
    /// Tokens; 0 only folds.
    pub len: usize,
    /// Tape entries that were accepted.
    pub keep: usize,
    /// Prefill: the tokens stand at once and the tape is empty afterwards.
    pub commit: bool,
    /// After so many of its tokens the state is copied to the spare slot; on the host only.
    pub mark: Option<usize>,
}

/// Shapes of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GdnShape {
    /// Hk.
    pub key_heads: usize,
    /// Hv, a multiple of Hk.
    pub value_heads: usize,
    /// Dk.
    pub key_dim: usize,
    /// Dv.
    pub value_dim: usize,
    /// T: most tokens of a verify cycle.
    pub verify_max: usize,
}

impl GdnShape {
    /// C: channels of the convolution, `q | k | v`.
    #[must_use]
    pub fn channels(&self) -> usize {
        2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim
    }

    fn of(config: &ModelConfig, verify_max: usize) -> Self {
        let g = &config.gdn;
        let (key_heads, value_heads) = (g.key_heads, g.value_heads);
        Self { key_heads, value_heads, key_dim: g.key_dim, value_dim: g.value_dim, verify_max }
    }
}

/// One block's weights: `x + out(gdn(rms(x)))`.
#[derive(Debug)]
pub struct Gdn {
    shape: GdnShape,
    place: Place,
    hidden: usize,
    core: Core,
}

#[derive(Debug)]
enum Core {
    #[cfg(target_os = "linux")]
    Host(Arc<HostGdn>),
    Mlx(Box<MlxGdn>),
}

#[derive(Debug)]
struct MlxGdn {
    norm: Norm,
    /// `qkv | z | b | a`.
    input: Matrix,
    output: Matrix,
    mixer: Mixer,
}

#[derive(Debug)]
enum Mixer {
    Plain(plain::PlainGdn),
    Fused(FusedGdn),
}

#[cfg(target_os = "linux")]
#[derive(Debug)]
struct HostGdn {
    gain: Vec<f32>,
    eps: f32,
    input: cpu::Weight,
    output: cpu::Weight,
    mixer: cpu::Gdn,
}

/// One layer's state of all slots. Handles are replaced by every call: no other may be kept.
#[derive(Debug)]
pub struct GdnPool {
    /// [slots, Hv, Dv, Dk] fp32, as of the last commit.
    state: Array,
    /// Inputs of the convolution, [slots, 3 + T, C]: three before the tape, then the tape's.
    window: Array,
    /// What a replay needs; laid out by the path.
    tape: Vec<Array>,
    /// With the fused kernel: windows have two sides by turns, [slots · 2, 3 + T, C + 2·Hv].
    fused: Option<Sides>,
}

/// What the fused kernel leaves behind.
#[derive(Debug)]
struct Sides {
    /// The side of each slot's window that is good.
    good: Vec<i32>,
    /// The result of the last call: whoever has it, has the pool's changes.
    last: Array,
}

/// A slot's committed state, parked.
#[derive(Clone, Debug)]
pub struct GdnSnapshot {
    /// [Hv, Dv, Dk].
    pub state: Array,
    /// [3, C].
    pub window: Array,
}

impl Gdn {
    /// Prepares a block for a place; `gain` [H] is the effective one of the norm before it.
    ///
    /// # Errors
    /// When weights cannot be prepared.
    pub fn load(
        place: Place,
        gain: &[f32],
        w: &GdnWeights,
        config: &ModelConfig,
        verify_max: usize,
    ) -> Result<Self> {
        let shape = GdnShape::of(config, verify_max);
        let eps = config.norm_eps;
        let inputs = [&w.in_qkv, &w.in_z, &w.in_b, &w.in_a];
        let parameters = GdnParameters {
            key_heads: shape.key_heads,
            value_heads: shape.value_heads,
            verify_max,
            conv: &w.conv,
            a_log: &w.a_log,
            dt_bias: &w.dt_bias,
            gain: &w.norm,
            eps,
        };
        let core = match place {
            #[cfg(target_os = "linux")]
            Place::Host => {
                let params = cpu::GdnParams {
                    conv: &w.conv,
                    a_log: &w.a_log,
                    dt_bias: &w.dt_bias,
                    gain: &w.norm,
                    eps,
                };
                Core::Host(Arc::new(HostGdn {
                    gain: gain.to_vec(),
                    eps,
                    input: crate::linear::host_matrix(&inputs)?,
                    output: crate::linear::host_matrix(&[&w.out])?,
                    mixer: cpu::Gdn::new(shape.host(), params)?,
                }))
            }
            Place::Mlx(dtype) => Core::Mlx(Box::new(MlxGdn {
                norm: Norm::load(place, gain, eps)?,
                input: Matrix::load(place, &inputs)?,
                output: Matrix::load(place, &[&w.out])?,
                mixer: Mixer::load(&parameters, shape, dtype)?,
            })),
        };
        Ok(Self { shape, place, hidden: config.hidden, core })
    }

    /// State of `slots` sequences, all empty.
    ///
    /// # Errors
    /// When MLX cannot allocate.
    pub fn pool(&self, slots: usize) -> Result<GdnPool> {
        let s = &self.shape;
        let zeros = |shape: &[usize]| -> Result<Array> {
            let shape: Vec<i32> = shape.iter().map(|&n| n as i32).collect();
            Ok(mlx_rs::ops::zeros_dtype(&shape, Dtype::Float32)?)
        };
        let mut window = [slots, 3 + s.verify_max, s.channels()];
        let mut fused = None;
        let tape = match &self.core {
            #[cfg(target_os = "linux")]
            Core::Host(_) => vec![zeros(&[slots, s.host().tape_len()])?],
            Core::Mlx(gdn) if matches!(gdn.mixer, Mixer::Fused(_)) => {
                window = [2 * slots, 3 + s.verify_max, s.channels() + 2 * s.value_heads];
                fused = Some(Sides { good: vec![0; slots], last: Array::from_int(0) });
                vec![]
            }
            Core::Mlx(_) => vec![
                zeros(&[slots, s.verify_max, s.value_heads, s.key_dim])?,
                zeros(&[slots, s.verify_max, s.value_heads, s.value_dim])?,
                zeros(&[slots, s.verify_max, s.value_heads])?,
                zeros(&[slots, s.verify_max, s.value_heads])?,
            ],
        };
        let state = zeros(&[slots, s.value_heads, s.value_dim, s.key_dim])?;
        let window = zeros(&window)?.as_dtype(self.place.dtype())?;
        Ok(GdnPool { state, window, tape, fused })
    }

    /// `[M, H]` → `[M, H]`, the residual included. Slots of a call differ.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn apply(&self, x: &Array, rows: &[GdnRow], pool: &mut GdnPool) -> Result<Array> {
        match &self.core {
            #[cfg(target_os = "linux")]
            Core::Host(gdn) => apply_on_host(gdn, x, rows, pool),
            Core::Mlx(gdn) => {
                let proj = gdn.input.apply(&gdn.norm.apply(x)?)?;
                gdn.output.apply_add(&gdn.mixer.mix(&proj, rows, pool)?, x)
            }
        }
    }

    /// Folds the first `keep` tape entries of a slot into its committed state.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn fold(&self, slot: usize, keep: usize, pool: &mut GdnPool) -> Result<()> {
        let nothing = mlx_rs::ops::zeros_dtype(&[1, self.hidden as i32], self.place.dtype())?;
        let row = GdnRow { slot, start: 0, len: 0, keep, commit: true, mark: None };
        self.apply(&nothing, &[row], pool).map(drop)
    }
}

impl GdnShape {
    #[cfg(target_os = "linux")]
    fn host(&self) -> cpu::GdnDims {
        cpu::GdnDims {
            key_heads: self.key_heads,
            value_heads: self.value_heads,
            key_dim: self.key_dim,
            value_dim: self.value_dim,
            verify_max: self.verify_max,
        }
    }
}

#[cfg(target_os = "linux")]
fn apply_on_host(
    gdn: &Arc<HostGdn>,
    x: &Array,
    rows: &[GdnRow],
    pool: &mut GdnPool,
) -> Result<Array> {
    let (gdn, m) = (Arc::clone(gdn), x.dim(0) as usize);
    let rows: Vec<cpu::GdnRow> = rows.iter().map(|row| row.host(pool.spare())).collect();
    let outputs = [
        OutputSpec::new(x.shape(), Dtype::Float32),
        in_place(&pool.state, 1),
        in_place(&pool.window, 2),
        in_place(&pool.tape[0], 3),
    ];
    let f = move |i: &[Input<'_>], o: &mut [Output<'_>]| {
        let [out, state, window, tape] = o else { return Ok(()) };
        let pools = cpu::GdnPools {
            state: state.as_mut_slice()?,
            window: window.as_mut_slice()?,
            tape: tape.as_mut_slice()?,
        };
        gdn.apply(m, i[0].as_slice()?, &rows, pools, out.as_mut_slice()?);
        Ok(())
    };
    let inputs = [x, &pool.state, &pool.window, &pool.tape[0]];
    let [out, state, window, tape] = host::call(&inputs, outputs, f)?;
    *pool = GdnPool { state, window, tape: vec![tape], fused: None };
    Ok(out)
}

#[cfg(target_os = "linux")]
impl HostGdn {
    fn apply(
        &self,
        m: usize,
        x: &[f32],
        rows: &[cpu::GdnRow],
        pools: cpu::GdnPools<'_>,
        out: &mut [f32],
    ) {
        let (wide, width) = (self.input.rows(), self.output.cols());
        scratch::with([x.len(), m * wide, m * width], |[n, proj, y]| {
            if rows.iter().all(|row| row.len == 0) {
                // Only tapes are folded: there is nothing to project.
                cpu::gated_delta(&self.mixer, proj, rows, pools, y);
                return out.fill(0.0);
            }
            cpu::rms_norm(x, &self.gain, self.eps, n);
            cpu::linear(n, &self.input, proj);
            cpu::gated_delta(&self.mixer, proj, rows, pools, y);
            cpu::linear_add(y, &self.output, x, out);
        });
    }
}

#[cfg(target_os = "linux")]
impl GdnRow {
    fn host(&self, spare: usize) -> cpu::GdnRow {
        let Self { slot, start, len, keep, commit, mark } = *self;
        let mark = mark.map(|len| (len, spare));
        cpu::GdnRow { slot, start, len, keep, commit, mark }
    }
}

impl Mixer {
    fn load(p: &GdnParameters<'_>, shape: GdnShape, dtype: Dtype) -> Result<Self> {
        let gpu = gpu();
        let known = shape.key_dim == HEAD_DIM && shape.value_dim == HEAD_DIM;
        let heads = format!("{} and {} heads", shape.key_heads, shape.value_heads);
        let passed = |name: &str, chunks: bool| {
            gpu.passed(&format!("{name}, {heads}"), dtype, || trial::run(shape, dtype, chunks))
        };
        if known && gpu.serves(dtype) && passed("gdn_verify", false) {
            let chunks = passed("gdn_chunked", true);
            return Ok(Self::Fused(FusedGdn::new(&gpu, p, dtype, chunks)?));
        }
        Ok(Self::Plain(plain::PlainGdn::load(p, shape, dtype)?))
    }

    fn mix(&self, proj: &Array, rows: &[GdnRow], pool: &mut GdnPool) -> Result<Array> {
        match (self, &mut pool.fused) {
            (Self::Fused(kernel), Some(sides)) => {
                let arrays = [&pool.state, &pool.window, &sides.last];
                let long = rows.iter().any(|row| row.commit && row.keep + row.len >= LONG);
                let y = kernel.mix(proj, (&sides.describe(rows)?, rows.len(), long), arrays)?;
                sides.turn(rows);
                sides.last = y.clone();
                Ok(y)
            }
            (Self::Plain(plain), _) => plain.mix(proj, rows, pool),
            (Self::Fused(_), None) => Err(Error::Plan("a pool of another path".into())),
        }
    }
}

impl Sides {
    /// Rows as the kernel reads them.
    fn describe(&self, rows: &[GdnRow]) -> Result<Array> {
        let numbers = rows.iter().flat_map(|r| {
            let numbers = [r.slot, r.start, r.len, r.keep, usize::from(r.commit)];
            numbers.map(|n| n as i32).into_iter().chain([self.good[r.slot]])
        });
        gpu().numbers(numbers.collect())
    }

    fn turn(&mut self, rows: &[GdnRow]) {
        for row in rows {
            self.good[row.slot] = 1 - self.good[row.slot];
        }
    }
}

impl GdnPool {
    /// Arrays to evaluate so that no graph outlives its cycle.
    pub(crate) fn arrays(&self) -> impl Iterator<Item = &Array> {
        let last = self.fused.iter().map(|f| &f.last);
        [&self.state, &self.window].into_iter().chain(&self.tape).chain(last)
    }

    /// Shapes and types of a slot's state and window, once parked.
    pub(crate) fn shapes(&self) -> [(Vec<i32>, Dtype); 2] {
        let mut window = self.window.shape()[1..].to_vec();
        window[0] = 3;
        let state = self.state.shape()[1..].to_vec();
        [(state, self.state.dtype()), (window, self.window.dtype())]
    }

    /// Where a slot's window is.
    fn window_row(&self, slot: usize) -> usize {
        self.fused.as_ref().map_or(slot, |f| 2 * slot + f.good[slot] as usize)
    }

    /// The slot that no sequence has: the last.
    #[must_use]
    pub fn spare(&self) -> usize {
        self.state.dim(0) as usize - 1
    }

    /// Copies a slot's committed state out; its tape must be folded.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn save(&self, slot: usize) -> Result<GdnSnapshot> {
        if let Some(sides) = &self.fused {
            // MLX knows nothing of what the kernel writes in place.
            crate::place::eval([&sides.last])?;
        }
        let at = Array::from_int(slot as i32);
        let row = Array::from_int(self.window_row(slot) as i32);
        let history = Array::from_slice(&[0, 1, 2], &[3]);
        // Gathers copy: a view would keep the whole pool alive and see it change.
        let state = self.state.take_axis(&at, 0)?;
        let window = self.window.take_axis(&row, 0)?.take_axis(&history, 0)?;
        Ok(GdnSnapshot { state, window })
    }

    /// Makes a slot's committed state `snapshot`, or empty.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn restore(&mut self, slot: usize, snapshot: Option<&GdnSnapshot>) -> Result<()> {
        let zero = |a: &Array, rows: i32| -> Result<Array> {
            let mut shape = a.shape()[1..].to_vec();
            if rows > 0 {
                shape[0] = rows;
            }
            Ok(mlx_rs::ops::zeros_dtype(&shape, a.dtype())?)
        };
        let (state, window) = match snapshot {
            Some(s) => (s.state.clone(), s.window.clone()),
            None => (zero(&self.state, 0)?, zero(&self.window, 3)?),
        };
        crate::pool::write(&mut self.state, slot, &state)?;
        let row = self.window_row(slot);
        crate::pool::write(&mut self.window, row, &window)
    }
}

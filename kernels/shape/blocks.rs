//! Times of single blocks, and of a copy beside which they stand.

use std::sync::Arc;
use std::time::Instant;

use mlx_rs::{Array, Dtype, random};

use super::Noise;
use crate::attention::{Attention, AttentionRow, KvPool};
use crate::checkpoint::{FeedForward, LayerKind, Mixer, ModelConfig};
use crate::error::Result;
use crate::ffn::Ffn;
use crate::gdn::{Gdn, GdnPool, GdnRow};
use crate::linear::Matrix;
use crate::place::{Place, eval};

/// Blocks of a kind whose weights no cache holds together.
const BLOCKS: usize = 6;
/// Times that each of them runs in a chain.
const REPEATS: usize = 4;
/// Pages of a row: of its keys attention sees [`POSITION`].
const PAGES: u32 = 40;
const POSITION: usize = 1000;

/// What one block took.
#[derive(Clone, Debug)]
pub struct BlockTime {
    /// The block.
    pub name: &'static str,
    /// Rows of tokens that went through it.
    pub tokens: usize,
    /// Microseconds of the host to build its graph.
    pub built_us: f64,
    /// Microseconds to evaluate it.
    pub evaluated_us: f64,
}

/// Bytes read and written each second by a copy of 1 GiB, or of 64 MiB without a GPU.
///
/// # Errors
/// When MLX fails.
pub fn bandwidth(place: Place) -> Result<f64> {
    let floats = if matches!(place, Place::Mlx(_)) { 1 << 28 } else { 1 << 24 };
    let a = mlx_rs::ops::zeros_dtype(&[floats], Dtype::Float32)?;
    eval([&a])?;
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let start = Instant::now();
        let b = a.add(Array::from_f32(1.0))?;
        eval([&b])?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(2.0 * 4.0 * f64::from(floats) / best)
}

/// Times single blocks of a shape at verify rows of one and four tokens.
///
/// # Errors
/// When MLX fails.
pub fn blocks(noise: &Noise, config: &ModelConfig, place: Place) -> Result<Vec<BlockTime>> {
    let mut set = Set::load(noise, config, place)?;
    let mut times = Vec::new();
    for (rows, len) in [(1, 1), (1, 4), (8, 1), (8, 4), (16, 4)] {
        let tokens = rows * len;
        let shape = [tokens as i32, config.hidden as i32];
        let x = random::normal::<f32>(&shape, None, None, None)?.as_dtype(place.dtype())?;
        eval([&x])?;
        let mut add = |name, (built_us, evaluated_us)| {
            times.push(BlockTime { name, tokens, built_us, evaluated_us });
        };
        add("up and down", chain(&x, |i, y| set.down[i].apply(&set.up[i].apply(y)?))?);
        add("feed-forward", chain(&x, |i, y| set.ffn[i].apply(y))?);
        if rows <= 8 {
            add("gated delta net", set.gdn(&x, (rows, len))?);
            add("attention at 1000", set.attention(&x, (rows, len))?);
        }
    }
    Ok(times)
}

struct Set {
    up: Vec<Matrix>,
    down: Vec<Matrix>,
    ffn: Vec<Ffn>,
    gdn: Vec<Gdn>,
    states: Vec<GdnPool>,
    attention: Vec<Attention>,
    caches: Vec<KvPool>,
}

impl Set {
    fn load(noise: &Noise, c: &ModelConfig, place: Place) -> Result<Self> {
        let gain = vec![1.0; c.hidden];
        let (mut gdn, mut ffn, mut attention) = (Vec::new(), Vec::new(), Vec::new());
        let (mut up, mut down) = (Vec::new(), Vec::new());
        for _ in 0..BLOCKS {
            let layer = noise.layer(c, LayerKind::Gdn);
            if let Mixer::Gdn(w) = &layer.mixer {
                gdn.push(Gdn::load(place, &gain, w, c, 5)?);
            }
            if let Mixer::Attention(w) = noise.layer(c, LayerKind::Attention).mixer {
                attention.push(Attention::load(place, &gain, &w, c, (32, false))?);
            }
            ffn.push(Ffn::load(place, &gain, &layer.mlp, c)?);
            if let FeedForward::Dense(w) = &layer.mlp {
                up.push(Matrix::load(place, &[&w.up])?);
                down.push(Matrix::load(place, &[&w.down])?);
            }
        }
        let states = gdn.iter().map(|g| g.pool(8)).collect::<Result<_>>()?;
        let caches = attention.iter().map(|a| a.pool(8 * PAGES as usize)).collect::<Result<_>>()?;
        Ok(Self { up, down, ffn, gdn, states, attention, caches })
    }

    fn gdn(&mut self, x: &Array, (rows, len): (usize, usize)) -> Result<(f64, f64)> {
        let mut calls = 0;
        chain(x, |i, y| {
            // Each replays all that it wrote down the time before.
            let keep = if calls < BLOCKS { 0 } else { len };
            let row = |r| GdnRow { slot: r, start: r * len, len, keep, commit: false, mark: None };
            calls += 1;
            self.gdn[i].apply(y, &(0..rows).map(row).collect::<Vec<_>>(), &mut self.states[i])
        })
    }

    fn attention(&mut self, x: &Array, (rows, len): (usize, usize)) -> Result<(f64, f64)> {
        let row = |r: usize| AttentionRow {
            start: r * len,
            len,
            position: POSITION,
            pages: (r as u32 * PAGES..(r as u32 + 1) * PAGES).collect::<Arc<[u32]>>(),
        };
        let all: Vec<AttentionRow> = (0..rows).map(row).collect();
        chain(x, |i, y| self.attention[i].apply(y, &all, &mut self.caches[i]))
    }
}

/// Microseconds of `f`, one of a chain over all blocks: to build its graph, and to evaluate it.
fn chain(x: &Array, mut f: impl FnMut(usize, &Array) -> Result<Array>) -> Result<(f64, f64)> {
    let mut best = (f64::INFINITY, f64::INFINITY);
    for _ in 0..5 {
        let start = Instant::now();
        let mut y = x.clone();
        for i in 0..REPEATS * BLOCKS {
            y = f(i % BLOCKS, &y)?;
        }
        let built = start.elapsed().as_secs_f64();
        eval([&y])?;
        let all = start.elapsed().as_secs_f64();
        best = (best.0.min(built), best.1.min(all - built));
    }
    let each = 1e6 / (REPEATS * BLOCKS) as f64;
    Ok((best.0 * each, best.1 * each))
}

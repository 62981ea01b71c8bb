//! What is timed, and how.

#![allow(clippy::print_stdout)]

use mtplx_kernels::cpu::{
    Affine, Attention, AttentionDims, AttentionParams, AttentionRow, Expert, Experts, Gdn, GdnDims,
    GdnParams, GdnPools, GdnRow, KvPools, Pool, Weight, attention, gated_delta, linear,
    mix_experts, rms_norm, silu_mul,
};
use std::time::Instant;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Times the kernels of the `chosen` kind, or of all kinds.
pub(crate) fn run(chosen: Option<&str>) -> Result<()> {
    let wanted = |name: &str| chosen.is_none_or(|chosen| chosen == name);
    println!("{} threads", rayon::current_num_threads());
    if wanted("linear") {
        time_linear()?;
    }
    if wanted("experts") {
        time_experts()?;
    }
    if wanted("gdn") {
        time_gdn()?;
    }
    if wanted("attention") {
        time_attention()?;
    }
    if wanted("other") {
        time_other();
    }
    Ok(())
}

/// The shortest run of `body` in seconds, of as many as fit into a quarter of a second.
fn shortest(mut body: impl FnMut()) -> f64 {
    let begin = Instant::now();
    let mut best = f64::INFINITY;
    let mut runs = 0;
    while runs < 5 || begin.elapsed().as_secs_f64() < 0.25 {
        let start = Instant::now();
        body();
        best = best.min(start.elapsed().as_secs_f64());
        runs += 1;
    }
    best
}

fn values(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(747_796_405).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

// === linear ===

fn quantised(bits: u32, rows: usize, cols: usize) -> Result<Weight> {
    let group = 64;
    let words: Vec<u32> = values(rows * cols * bits as usize / 32, 7)
        .iter()
        .map(|x| x.to_bits().wrapping_mul(2_654_435_761))
        .collect();
    let scales = values(rows * cols / group, 8);
    let biases = values(rows * cols / group, 9);
    let codes = Affine { bits, group, words: &words, scales: &scales, biases: &biases };
    Ok(Weight::affine(codes, rows, cols)?)
}

fn weight(format: &str, rows: usize, cols: usize) -> Result<Weight> {
    let dense = || values(rows * cols, 3);
    Ok(match format {
        "f32" => Weight::f32(&dense(), rows, cols)?,
        "bf16" => {
            let halves: Vec<u16> = dense().iter().map(|x| (x.to_bits() >> 16) as u16).collect();
            Weight::bf16(&halves, rows, cols)?
        }
        "f16" => {
            let halves: Vec<u16> = dense().iter().map(|x| (x.to_bits() >> 19) as u16).collect();
            Weight::f16(&halves, rows, cols)?
        }
        other => quantised(other[1..].parse()?, rows, cols)?,
    })
}

fn time_linear() -> Result<()> {
    println!("linear: microseconds (GB/s of weights, GFLOP/s)");
    for (rows, cols) in [(1024, 512), (2048, 512), (8192, 512), (8192, 2048)] {
        for format in ["q8", "q4", "q6", "q3", "bf16", "f16", "f32"] {
            let w = weight(format, rows, cols)?;
            print!("{rows:>5}x{cols} {format:>4}");
            for m in [1, 2, 4, 8, 32, 256] {
                let x = values(m * cols, 1);
                let mut out = vec![0.0; m * rows];
                let seconds = shortest(|| linear(&x, &w, &mut out));
                let rate = w.bytes() as f64 / seconds / 1e9;
                let flops = 2.0 * (m * rows * cols) as f64 / seconds / 1e9;
                print!(" | M{m} {:.1} ({rate:.0}, {flops:.0})", seconds * 1e6);
            }
            println!();
        }
    }
    Ok(())
}

// === experts ===

/// A layer of 35B-A3B's shape: 256 experts, eight for each token and the shared one. Of one token
/// nine are read; a dense layer of their size, beside it, is what they should cost.
fn time_experts() -> Result<()> {
    let (hidden, width, experts, per_token) = (2048, 512, 256, 8);
    let expert = |n: usize| -> Result<Expert> {
        let gate_up = quantised(4, 2 * n * width, hidden)?;
        Ok(Expert { gate_up, down: quantised(4, hidden, n * width)? })
    };
    let routed = (0..experts).map(|_| expert(1)).collect::<Result<_>>()?;
    let moe = Experts::new(routed, expert(1)?, per_token, true)?;
    let dense = expert(per_token + 1)?;
    println!("{experts} experts, q4, {} MB: microseconds (dense)", moe.bytes() / 1_000_000);
    for m in [1, 2, 4, 8, 32, 256] {
        let (x, scores) = (values(m * hidden, 1), values(m * (experts + 1), 2));
        let mut out = vec![0.0; m * hidden];
        let routed = shortest(|| mix_experts(&x, &scores, &moe, &x, &mut out));
        let wide = (per_token + 1) * width;
        let (mut gate_up, mut gated) = (vec![0.0; m * 2 * wide], vec![0.0; m * wide]);
        let whole = shortest(|| {
            linear(&x, &dense.gate_up, &mut gate_up);
            silu_mul(&gate_up, wide, &mut gated);
            linear(&gated, &dense.down, &mut out);
        });
        println!("M{m}: {:.0} ({:.0})", routed * 1e6, whole * 1e6);
    }
    Ok(())
}

// === gated DeltaNet ===

fn time_gdn() -> Result<()> {
    let dims =
        GdnDims { key_heads: 2, value_heads: 4, key_dim: 128, value_dim: 128, verify_max: 8 };
    println!("gated DeltaNet, {dims:?}: microseconds (per token)");
    let (conv, gain) = (values(dims.channels() * 4, 1), values(dims.value_dim, 2));
    let (a_log, dt_bias) = (values(4, 3), values(4, 4));
    let params =
        GdnParams { conv: &conv, a_log: &a_log, dt_bias: &dt_bias, gain: &gain, eps: 1e-6 };
    let layer = Gdn::new(dims, params)?;
    let slots = 8;
    let mut state = Pool::zeros(slots * dims.state_len());
    let mut window = Pool::zeros(slots * dims.window_len());
    let mut tape = Pool::zeros(slots * dims.tape_len());
    for (rows, len, keep, commit) in [
        (1, 1, 1, false),
        (1, 4, 2, false),
        (1, 4, 4, false),
        (4, 4, 2, false),
        (8, 4, 2, false),
        (1, 64, 0, true),
        (1, 256, 0, true),
    ] {
        let tokens = rows * len;
        let proj = values(tokens * dims.projection(), 5);
        let mut out = vec![0.0; tokens * dims.value_heads * dims.value_dim];
        let rows: Vec<GdnRow> = (0..rows)
            .map(|slot| GdnRow { slot, start: slot * len, len, keep, commit, mark: None })
            .collect();
        let seconds = shortest(|| {
            let pools = GdnPools { state: &mut state, window: &mut window, tape: &mut tape };
            gated_delta(&layer, &proj, &rows, pools, &mut out);
        });
        let kind = if commit { "commit" } else { "verify" };
        let per_token = seconds * 1e6 / tokens as f64;
        let count = rows.len();
        println!("{count} x {kind} {len}, keep {keep}: {:.1} ({per_token:.2})", seconds * 1e6);
    }
    Ok(())
}

// === attention ===

fn time_attention() -> Result<()> {
    let dims = AttentionDims { query_heads: 4, kv_heads: 2, head_dim: 128, page_tokens: 32 };
    println!("attention, {dims:?}: microseconds (per token, GFLOP/s)");
    let gain = values(dims.head_dim, 1);
    let inv_freq = values(16, 2);
    let params = AttentionParams { q_gain: &gain, k_gain: &gain, inv_freq: &inv_freq, eps: 1e-6 };
    let layer = Attention::new(dims, params)?;
    for (rows, len, context) in [
        (1, 1, 128),
        (1, 4, 128),
        (1, 1, 1000),
        (1, 4, 1000),
        (4, 4, 1000),
        (8, 4, 1000),
        (1, 1, 4000),
        (1, 4, 4000),
        (1, 256, 256),
        (1, 256, 4000),
    ] {
        let each = context / dims.page_tokens + 1;
        let mut keys = Pool::zeros(rows * each * dims.page_len());
        let mut cached = Pool::zeros(rows * each * dims.page_len());
        let pages: Vec<u32> = (0..(rows * each) as u32).collect();
        let position = context - len;
        let rows: Vec<AttentionRow<'_>> = pages
            .chunks(each)
            .enumerate()
            .map(|(i, pages)| AttentionRow { start: i * len, len, position, pages, first_key: 0 })
            .collect();
        let tokens = rows.len() * len;
        let proj = values(tokens * dims.projection(), 5);
        let mut out = vec![0.0; tokens * dims.query_heads * dims.head_dim];
        let seconds = shortest(|| {
            let pools = KvPools { keys: &mut keys, values: &mut cached };
            attention(&layer, &proj, &rows, pools, &mut out);
        });
        let pairs = tokens * dims.query_heads * (position + len / 2);
        let flops = 4.0 * (pairs * dims.head_dim) as f64 / seconds / 1e9;
        let per_token = seconds * 1e6 / tokens as f64;
        let count = rows.len();
        println!(
            "{count} x {len} tokens at {context}: {:.1} ({per_token:.2}, {flops:.0})",
            seconds * 1e6
        );
    }
    Ok(())
}

// === the rest ===

fn time_other() {
    for (rows, width) in [(1, 512), (4, 512), (256, 512)] {
        let (x, gain) = (values(rows * width, 1), values(width, 2));
        let mut out = vec![0.0; rows * width];
        let norm = shortest(|| rms_norm(&x, &gain, 1e-6, &mut out));
        let gate_up = values(rows * 2 * width, 3);
        let gate = shortest(|| silu_mul(&gate_up, width, &mut out));
        let (norm, gate) = (norm * 1e6, gate * 1e6);
        println!("{rows} x {width}: rms_norm {norm:.2}, silu_mul {gate:.2} microseconds");
    }
}

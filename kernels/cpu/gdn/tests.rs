use super::super::testing::{
    Random, assert_close, assert_same, assert_same_on_all_tiers, on_all_tiers,
};
use super::*;

const EPS: f32 = 1e-6;

/// A layer with its parameters in view of the reference.
struct Sample {
    layer: Gdn,
    conv: Vec<f32>,
    a_log: Vec<f32>,
    dt_bias: Vec<f32>,
    gain: Vec<f32>,
}

impl Sample {
    fn random(random: &mut Random) -> Self {
        let key_heads = random.pick(&[1, 2, 3]);
        let dims = GdnDims {
            key_heads,
            value_heads: key_heads * random.pick(&[1, 2, 3]),
            key_dim: random.pick(&[16, 32, 48, 128]),
            value_dim: random.pick(&[16, 32, 80]),
            verify_max: random.pick(&[1, 2, 3, 5]),
        };
        Self::of(dims, random)
    }

    fn of(dims: GdnDims, random: &mut Random) -> Self {
        let conv = random.values(dims.channels() * TAPS);
        let a_log = random.values(dims.value_heads);
        let dt_bias = random.values(dims.value_heads);
        let gain = random.values(dims.value_dim);
        let params =
            GdnParams { conv: &conv, a_log: &a_log, dt_bias: &dt_bias, gain: &gain, eps: EPS };
        Self { layer: Gdn::new(dims, params).unwrap(), conv, a_log, dt_bias, gain }
    }

    /// The outputs of a sequence from its beginning, as written in the design, in f64.
    fn reference(&self, proj: &[f32]) -> Vec<f64> {
        let dims = self.layer.dims;
        let (keys, shared) = (dims.keys(), dims.value_heads / dims.key_heads);
        let tokens: Vec<&[f32]> = proj.chunks(dims.projection()).collect();
        let mut out = vec![];
        let mut states = vec![vec![0.0f64; dims.value_dim * dims.key_dim]; dims.value_heads];
        for t in 0..tokens.len() {
            let convolved: Vec<f64> = (0..dims.channels())
                .map(|c| {
                    let input = |tap: usize| {
                        (t + tap).checked_sub(HISTORY).map_or(0.0, |t| f64::from(tokens[t][c]))
                    };
                    let taps = (0..TAPS).map(|j| f64::from(self.conv[c * TAPS + j]) * input(j));
                    silu(taps.sum())
                })
                .collect();
            let rest: Vec<f64> = tokens[t][dims.channels()..].iter().map(|&x| x.into()).collect();
            for (h, state) in states.iter_mut().enumerate() {
                let at = h / shared * dims.key_dim;
                let scale = (dims.key_dim as f64).powf(-0.5);
                let q = unit(&convolved[at..][..dims.key_dim], scale);
                let k = unit(&convolved[keys + at..][..dims.key_dim], 1.0);
                let v = &convolved[2 * keys + h * dims.value_dim..][..dims.value_dim];
                let beta = 1.0 / (1.0 + (-rest[dims.values() + h]).exp());
                let a = rest[dims.values() + dims.value_heads + h] + f64::from(self.dt_bias[h]);
                let g = (-f64::from(self.a_log[h]).exp() * (1.0 + a.exp()).ln()).exp();
                let mut o = vec![];
                for (row, v) in state.chunks_mut(dims.key_dim).zip(v) {
                    row.iter_mut().for_each(|s| *s *= g);
                    let d = beta * (v - dot(row, &k));
                    row.iter_mut().zip(&k).for_each(|(s, k)| *s += d * k);
                    o.push(dot(row, &q));
                }
                let mean = dot(&o, &o) / o.len() as f64;
                let z = &rest[h * dims.value_dim..];
                out.extend(o.iter().zip(&self.gain).zip(z).map(|((o, &gain), &z)| {
                    o / (mean + f64::from(EPS)).sqrt() * f64::from(gain) * silu(z)
                }));
            }
        }
        out
    }
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn unit(x: &[f64], scale: f64) -> Vec<f64> {
    let norm = (dot(x, x) + 1e-6).sqrt();
    x.iter().map(|x| x / norm * scale).collect()
}

/// Pools of a few slots, full of rubbish except where a sequence was begun.
struct Memory {
    state: Vec<f32>,
    window: Vec<f32>,
    tape: Vec<f32>,
}

impl Memory {
    fn new(dims: &GdnDims, slots: usize) -> Self {
        let rubbish = |len: usize| vec![f32::NAN; len * slots];
        Self {
            state: rubbish(dims.state_len()),
            window: rubbish(dims.window_len()),
            tape: rubbish(dims.tape_len()),
        }
    }

    fn begin(&mut self, dims: &GdnDims, slot: usize) {
        self.state[slot * dims.state_len()..][..dims.state_len()].fill(0.0);
        self.window[slot * dims.window_len()..][..HISTORY * dims.channels()].fill(0.0);
    }

    fn run(&mut self, layer: &Gdn, proj: &[f32], rows: &[GdnRow]) -> Vec<f32> {
        let dims = layer.dims;
        let mut out = vec![f32::NAN; proj.len() / dims.projection() * dims.values()];
        let Self { state, window, tape } = self;
        gated_delta(layer, proj, rows, GdnPools { state, window, tape }, &mut out);
        out
    }

    fn state(&self, dims: &GdnDims, slot: usize) -> &[f32] {
        &self.state[slot * dims.state_len()..][..dims.state_len()]
    }

    fn history(&self, dims: &GdnDims, slot: usize) -> &[f32] {
        &self.window[slot * dims.window_len()..][..HISTORY * dims.channels()]
    }
}

fn commit(slot: usize, start: usize, len: usize) -> GdnRow {
    GdnRow { slot, start, len, keep: 0, commit: true, mark: None }
}

fn tokens(random: &mut Random, dims: &GdnDims, count: usize) -> Vec<f32> {
    random.values(count * dims.projection()).iter().map(|x| x * 3.0).collect()
}

#[test]
fn outputs_are_right() {
    on_all_tiers(|| {
        let mut random = Random::new(40);
        for _ in 0..12 {
            let sample = Sample::random(&mut random);
            let dims = sample.layer.dims;
            let proj = tokens(&mut random, &dims, 40);
            let mut memory = Memory::new(&dims, 1);
            memory.begin(&dims, 0);
            let out = memory.run(&sample.layer, &proj, &[commit(0, 0, 40)]);
            assert_close(&out, &sample.reference(&proj), 2e-5, &format!("{dims:?}"));
        }
    });
}

#[test]
fn tiers_agree() {
    let mut random = Random::new(41);
    for _ in 0..12 {
        let sample = Sample::random(&mut random);
        let dims = sample.layer.dims;
        let proj = tokens(&mut random, &dims, 9);
        let verify = GdnRow { commit: false, ..commit(0, 8, 1) };
        let run = || {
            let mut memory = Memory::new(&dims, 1);
            memory.begin(&dims, 0);
            let mut out = memory.run(&sample.layer, &proj, &[commit(0, 0, 8)]);
            out.truncate(8 * dims.values());
            out.extend(&memory.run(&sample.layer, &proj, &[verify])[8 * dims.values()..]);
            out.extend(memory.state(&dims, 0));
            out
        };
        assert_same_on_all_tiers(run, &format!("{dims:?}"));
    }
}

#[test]
fn what_is_set_aside_on_the_way_is_the_state_of_a_shorter_call_and_changes_nothing_else() {
    on_all_tiers(|| {
        let mut random = Random::new(42);
        for len in 1..12 {
            let sample = Sample::random(&mut random);
            let dims = sample.layer.dims;
            let proj = tokens(&mut random, &dims, 12);
            // After four tokens of its own, two of them kept from a verify.
            let run = |last: GdnRow| {
                let mut memory = Memory::new(&dims, 3);
                memory.begin(&dims, 1);
                let verify = GdnRow { commit: false, ..commit(1, 2, dims.verify_max.min(2)) };
                memory.run(&sample.layer, &proj, &[commit(1, 0, 2)]);
                memory.run(&sample.layer, &proj, &[verify]);
                let out = memory.run(&sample.layer, &proj, &[last]);
                (memory, out)
            };
            let last = GdnRow { keep: 1, ..commit(1, 0, 12) };
            let (plain, out) = run(last);
            let (short, _) = run(GdnRow { len, ..last });
            let (marked, same) = run(GdnRow { mark: Some((len, 2)), ..last });
            assert_eq!(same, out);
            assert_eq!(marked.state(&dims, 1), plain.state(&dims, 1));
            assert_eq!(marked.history(&dims, 1), plain.history(&dims, 1));
            assert_eq!(marked.state(&dims, 2), short.state(&dims, 1), "after {len}");
            assert_eq!(marked.history(&dims, 2), short.history(&dims, 1), "after {len}");
        }
    });
}

/// A sequence decoded one committed token at a time: what every other way must equal.
struct Oracle {
    proj: Vec<f32>,
    outs: Vec<Vec<f32>>,
    /// State and convolution history before each token, and at the end.
    memories: Vec<(Vec<f32>, Vec<f32>)>,
}

impl Oracle {
    fn new(random: &mut Random, layer: &Gdn, count: usize) -> Self {
        let dims = layer.dims;
        let proj = tokens(random, &dims, count);
        let mut memory = Memory::new(&dims, 1);
        memory.begin(&dims, 0);
        let snapshot =
            |memory: &Memory| (memory.state(&dims, 0).to_vec(), memory.history(&dims, 0).to_vec());
        let mut memories = vec![snapshot(&memory)];
        let mut outs = vec![];
        for token in proj.chunks(dims.projection()) {
            outs.push(memory.run(layer, token, &[commit(0, 0, 1)]));
            memories.push(snapshot(&memory));
        }
        Self { proj, outs, memories }
    }
}

/// A sequence being decoded by steps of any kind.
struct Running {
    oracle: Oracle,
    slot: usize,
    /// Tokens in the state.
    done: usize,
    /// Right tokens at the front of the last verify.
    right: usize,
}

/// Many sequences advance together by random steps: prompts in chunks, verifies of right and
/// then wrong tokens, folds. Each output, state and history equals the oracle's to the bit.
fn live(random: &mut Random, sample: &Sample, sequences: usize, steps: usize) {
    let (layer, dims) = (&sample.layer, sample.layer.dims);
    let slots = random.order(sequences + 2);
    let mut memory = Memory::new(&dims, sequences + 2);
    let mut running: Vec<Running> = (0..sequences)
        .map(|i| {
            let slot = slots[i] as usize;
            memory.begin(&dims, slot);
            Running { oracle: Oracle::new(random, layer, 40), slot, done: 0, right: 0 }
        })
        .collect();
    for _ in 0..steps {
        let (mut proj, mut rows, mut checks) = (vec![], vec![], vec![]);
        for i in random.order(sequences).into_iter().take(1 + random.below(sequences)) {
            let sequence = &mut running[i as usize];
            let keep = if sequence.right == 0 { 0 } else { 1 + random.below(sequence.right) };
            sequence.done += keep;
            let left = 40 - sequence.done;
            let commit = random.below(3) == 0;
            let most = if commit { 12 } else { dims.verify_max };
            let len = random.below(most + 1).min(left);
            let right = if commit { len } else { random.below(len + 1) };
            let start = proj.len() / dims.projection();
            let from = sequence.done * dims.projection();
            proj.extend(&sequence.oracle.proj[from..][..right * dims.projection()]);
            proj.extend(tokens(random, &dims, len - right));
            let (slot, mark) = (sequence.slot, None);
            rows.push(GdnRow { slot, start, len, keep, commit, mark });
            checks.push((i as usize, start, sequence.done, right));
            sequence.right = if commit { 0 } else { right };
            sequence.done += if commit { len } else { 0 };
            // Now and then tokens of nobody.
            let padding = random.below(2);
            proj.extend(tokens(random, &dims, padding));
        }
        let out = memory.run(layer, &proj, &rows);
        for (i, start, position, right) in checks {
            let sequence = &running[i];
            for t in 0..right {
                let out = &out[(start + t) * dims.values()..][..dims.values()];
                assert_same(out, &sequence.oracle.outs[position + t], "output");
            }
            let (state, history) = &sequence.oracle.memories[sequence.done];
            assert_same(memory.state(&dims, sequence.slot), state, "state");
            assert_same(memory.history(&dims, sequence.slot), history, "history");
        }
    }
}

#[test]
fn every_way_of_decoding_is_one() {
    on_all_tiers(|| {
        let mut random = Random::new(42);
        for sequences in [1, 2, 5] {
            for _ in 0..3 {
                let sample = Sample::random(&mut random);
                live(&mut random, &sample, sequences, 12);
            }
        }
    });
}

#[test]
fn threads_change_nothing() {
    let mut random = Random::new(43);
    let dims =
        GdnDims { key_heads: 2, value_heads: 4, key_dim: 128, value_dim: 128, verify_max: 4 };
    let sample = Sample::of(dims, &mut random);
    let proj = tokens(&mut random, &dims, 60);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut memory = Memory::new(&dims, 2);
        memory.begin(&dims, 0);
        memory.begin(&dims, 1);
        let rows = [commit(1, 0, 56), GdnRow { commit: false, ..commit(0, 56, 4) }];
        let out = pool.install(|| memory.run(&sample.layer, &proj, &rows));
        [out, memory.state, memory.tape[..dims.tape_len()].to_vec()].concat()
    };
    let expected = run(1);
    for threads in [2, 3, 7] {
        assert_same(&run(threads), &expected, "threads");
    }
}

#[test]
fn wrong_shapes_are_refused() {
    let dims = GdnDims { key_heads: 2, value_heads: 4, key_dim: 16, value_dim: 16, verify_max: 2 };
    let make = |dims: GdnDims, conv: usize| {
        let conv = vec![0.0; conv];
        let (a_log, dt_bias, gain) = (&[0.0; 4], &[0.0; 4], &[0.0; 16]);
        Gdn::new(dims, GdnParams { conv: &conv, a_log, dt_bias, gain, eps: EPS }).is_ok()
    };
    assert!(make(dims, 128 * 4));
    assert!(!make(dims, 128 * 3));
    assert!(!make(GdnDims { key_heads: 3, ..dims }, 160 * 4));
    assert!(!make(GdnDims { key_dim: 24, ..dims }, 160 * 4));
}

#[test]
#[should_panic(expected = "slot taken twice")]
fn rows_of_one_slot_panic() {
    let mut random = Random::new(44);
    let sample = Sample::random(&mut random);
    let dims = sample.layer.dims;
    let proj = tokens(&mut random, &dims, 2);
    Memory::new(&dims, 1).run(&sample.layer, &proj, &[commit(0, 0, 1), commit(0, 1, 1)]);
}

use super::super::testing::{
    Random, assert_close, assert_same, assert_same_on_all_tiers, on_all_tiers,
};
use super::*;

const EPS: f32 = 1e-6;

/// A layer with its parameters in view of the reference.
struct Sample {
    layer: Attention,
    q_gain: Vec<f32>,
    k_gain: Vec<f32>,
    inv_freq: Vec<f32>,
}

fn dims(query_heads: usize, kv_heads: usize, head_dim: usize) -> AttentionDims {
    AttentionDims { query_heads, kv_heads, head_dim, page_tokens: 16 }
}

impl Sample {
    fn random(random: &mut Random) -> Self {
        let kv_heads = random.pick(&[1, 2, 3]);
        let group = random.pick(&[1, 2, 3, 4, 6]);
        let head_dim = random.pick(&[16, 48, 64, 80, 112, 128, 256]);
        Self::of(dims(kv_heads * group, kv_heads, head_dim), random)
    }

    fn of(dims: AttentionDims, random: &mut Random) -> Self {
        let q_gain: Vec<f32> = random.values(dims.head_dim).iter().map(|g| g + 2.0).collect();
        let k_gain: Vec<f32> = random.values(dims.head_dim).iter().map(|g| g + 2.0).collect();
        let half = dims.head_dim / 8;
        let inv_freq: Vec<f32> =
            (0..half).map(|i| 1e4f32.powf(-(i as f32) / half as f32)).collect();
        let layer = Self::layer(dims, &q_gain, &k_gain, &inv_freq);
        Self { layer, q_gain, k_gain, inv_freq }
    }

    fn layer(dims: AttentionDims, q: &[f32], k: &[f32], inv_freq: &[f32]) -> Attention {
        let params = AttentionParams { q_gain: q, k_gain: k, inv_freq, eps: EPS };
        Attention::new(dims, params).unwrap()
    }

    /// The same layer over pages of another size.
    fn with_pages(&self, page_tokens: usize) -> Attention {
        let dims = AttentionDims { page_tokens, ..self.layer.dims };
        Self::layer(dims, &self.q_gain, &self.k_gain, &self.inv_freq)
    }

    fn head(&self, x: &[f32], gain: &[f32], position: usize) -> Vec<f64> {
        let x: Vec<f64> = x.iter().map(|&x| x.into()).collect();
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (mean + f64::from(EPS)).sqrt();
        let mut y: Vec<f64> = x.iter().zip(gain).map(|(x, &g)| x * scale * f64::from(g)).collect();
        let half = self.inv_freq.len();
        for (i, freq) in self.inv_freq.iter().enumerate() {
            let (sin, cos) = f64::from(position as f32 * freq).sin_cos();
            (y[i], y[i + half]) = (y[i] * cos - y[i + half] * sin, y[i + half] * cos + y[i] * sin);
        }
        y
    }

    /// The outputs of a sequence from its beginning, as written in the design, in f64.
    fn reference(&self, proj: &[f32], first_key: usize) -> Vec<f64> {
        let dims = self.layer.dims;
        let dim = dims.head_dim;
        let tokens: Vec<&[f32]> = proj.chunks(dims.projection()).collect();
        let mut out = vec![];
        for (t, token) in tokens.iter().enumerate() {
            for h in 0..dims.query_heads {
                let q = self.head(&token[2 * h * dim..][..dim], &self.q_gain, first_key + t);
                let at = 2 * dims.queries() + h / dims.group() * dim;
                let scores: Vec<f64> = (0..=t)
                    .map(|j| {
                        let k = self.head(&tokens[j][at..][..dim], &self.k_gain, first_key + j);
                        let product: f64 = q.iter().zip(&k).map(|(q, k)| q * k).sum();
                        product / (dim as f64).sqrt()
                    })
                    .collect();
                let largest = scores.iter().fold(f64::MIN, |a, &b| a.max(b));
                let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
                let total: f64 = weights.iter().sum();
                for d in 0..dim {
                    let v = |j: usize| f64::from(tokens[j][at + dims.kv_heads * dim + d]);
                    let mean: f64 = weights.iter().enumerate().map(|(j, w)| w * v(j)).sum();
                    let gate = f64::from(token[(2 * h + 1) * dim + d]);
                    out.push(mean / total / (1.0 + (-gate).exp()));
                }
            }
        }
        out
    }
}

/// Pools full of rubbish.
struct Memory {
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Memory {
    fn new(dims: &AttentionDims, pages: usize) -> Self {
        let rubbish = vec![f32::NAN; pages * dims.page_len()];
        Self { keys: rubbish.clone(), values: rubbish }
    }

    fn pools(&mut self) -> KvPools<'_> {
        KvPools { keys: &mut self.keys, values: &mut self.values }
    }

    fn run(&mut self, layer: &Attention, proj: &[f32], rows: &[AttentionRow<'_>]) -> Vec<f32> {
        let dims = layer.dims;
        let mut out = vec![f32::NAN; proj.len() / dims.projection() * dims.queries()];
        attention(layer, proj, rows, self.pools(), &mut out);
        out
    }
}

fn pages_for(dims: &AttentionDims, tokens: usize) -> usize {
    tokens.div_ceil(dims.page_tokens)
}

/// A whole sequence in one call.
fn whole(layer: &Attention, proj: &[f32], first_key: usize) -> Vec<f32> {
    let len = proj.len() / layer.dims.projection();
    let count = pages_for(&layer.dims, first_key + len);
    let pages: Vec<u32> = (0..count as u32).collect();
    let row = AttentionRow { start: 0, len, position: first_key, pages: &pages, first_key };
    Memory::new(&layer.dims, count).run(layer, proj, &[row])
}

#[test]
fn outputs_are_right() {
    on_all_tiers(|| {
        let mut random = Random::new(50);
        for (tokens, first_key) in [(1, 0), (5, 1), (31, 0), (40, 1), (75, 0), (100, 3)] {
            let sample = Sample::random(&mut random);
            let proj = random.values(tokens * sample.layer.dims.projection());
            let out = whole(&sample.layer, &proj, first_key);
            let expected = sample.reference(&proj, first_key);
            assert_close(&out, &expected, 3e-6, &format!("{:?}", sample.layer.dims));
        }
    });
}

#[test]
fn tiers_agree() {
    let mut random = Random::new(51);
    for tokens in [1, 5, 33, 70] {
        let sample = Sample::random(&mut random);
        let proj = random.values(tokens * sample.layer.dims.projection());
        let what = format!("{:?}", sample.layer.dims);
        assert_same_on_all_tiers(|| whole(&sample.layer, &proj, 0), &what);
    }
}

/// A sequence decoded one token at a time: what every other way must equal.
struct Oracle {
    proj: Vec<f32>,
    outs: Vec<Vec<f32>>,
}

impl Oracle {
    fn new(random: &mut Random, layer: &Attention, tokens: usize, first_key: usize) -> Self {
        let dims = layer.dims;
        let proj = random.values(tokens * dims.projection());
        let count = pages_for(&dims, tokens + first_key);
        let pages: Vec<u32> = (0..count as u32).collect();
        let mut memory = Memory::new(&dims, count);
        let outs = proj.chunks(dims.projection()).enumerate().map(|(t, token)| {
            let position = first_key + t;
            let row = AttentionRow { start: 0, len: 1, position, pages: &pages, first_key };
            memory.run(layer, token, &[row])
        });
        let outs = outs.collect();
        Self { proj, outs }
    }
}

const TOKENS: usize = 90;

/// Many sequences advance together by random steps over pages of any size in any order: chunks
/// of right tokens, then wrong ones that are overwritten later. Outputs equal the oracle's.
fn live(random: &mut Random, sample: &Sample, sequences: usize) {
    let layer = sample.with_pages(random.pick(&[1, 5, 16, 32, 64]));
    let dims = layer.dims;
    let each = pages_for(&dims, TOKENS + 1);
    let all_pages = random.order(sequences * each + 3);
    let mut memory = Memory::new(&dims, sequences * each + 3);
    let oracles: Vec<(Oracle, usize)> = (0..sequences)
        .map(|_| {
            let first_key = random.below(2);
            (Oracle::new(random, &sample.layer, TOKENS, first_key), first_key)
        })
        .collect();
    let mut done = vec![0; sequences];
    while done.iter().any(|&done| done < TOKENS) {
        let (mut proj, mut rows, mut checks) = (vec![], vec![], vec![]);
        for i in random.order(sequences).into_iter().take(1 + random.below(sequences)) {
            let i = i as usize;
            let (oracle, first_key) = &oracles[i];
            let most = random.pick(&[1, 5, 40]);
            let len = random.below(most + 1).min(TOKENS - done[i]);
            let right = random.below(len + 1).max(len.min(1));
            let start = proj.len() / dims.projection();
            let from = done[i] * dims.projection();
            proj.extend(&oracle.proj[from..][..right * dims.projection()]);
            proj.extend(random.values((len - right) * dims.projection()));
            let pages = &all_pages[i * each..][..each];
            let (position, first_key) = (first_key + done[i], *first_key);
            rows.push(AttentionRow { start, len, position, pages, first_key });
            checks.push((i, start, done[i], right));
            done[i] += right;
            // Now and then tokens of nobody.
            let padding = random.below(2);
            proj.extend(random.values(padding * dims.projection()));
        }
        let out = memory.run(&layer, &proj, &rows);
        for (i, start, position, right) in checks {
            for t in 0..right {
                let out = &out[(start + t) * dims.queries()..][..dims.queries()];
                assert_same(out, &oracles[i].0.outs[position + t], "output");
            }
        }
    }
}

#[test]
fn every_way_of_decoding_is_one() {
    on_all_tiers(|| {
        let mut random = Random::new(52);
        for sequences in [1, 2, 4] {
            for _ in 0..2 {
                let sample = Sample::random(&mut random);
                live(&mut random, &sample, sequences);
            }
        }
    });
}

#[test]
fn sequences_can_share_their_beginning() {
    let mut random = Random::new(53);
    let sample = Sample::of(dims(4, 2, 64), &mut random);
    let (layer, width) = (&sample.layer, sample.layer.dims.projection());
    let proj = random.values(36 * width);
    let expected = whole(layer, &proj, 0);
    let mut memory = Memory::new(&layer.dims, 4);
    let prefix = AttentionRow { start: 0, len: 32, position: 0, pages: &[2, 0], first_key: 0 };
    memory.run(layer, &proj, &[prefix]);
    let row = |start, pages| AttentionRow { start, len: 4, position: 32, pages, first_key: 0 };
    let twice = [&proj[32 * width..], &proj[32 * width..]].concat();
    let out = memory.run(layer, &twice, &[row(4, &[2, 0, 1]), row(0, &[2, 0, 3])]);
    let last = &expected[32 * layer.dims.queries()..];
    assert_same(&out, &[last, last].concat(), "two ends of one beginning");
}

#[test]
fn appending_alone_writes_the_same() {
    let mut random = Random::new(54);
    for _ in 0..5 {
        let sample = Sample::random(&mut random);
        let (layer, dims) = (&sample.layer, sample.layer.dims);
        let proj = random.values(20 * dims.projection());
        let row = AttentionRow { start: 0, len: 20, position: 3, pages: &[1, 0], first_key: 3 };
        let rows = [AttentionRow { len: 7, ..row }, AttentionRow { start: 7, len: 0, ..row }];
        let mut expected = Memory::new(&dims, 2);
        expected.run(layer, &proj, &rows);
        let mut fused = Memory::new(&dims, 2);
        let kv = &proj[2 * dims.queries()..];
        append_kv(layer, kv, dims.projection(), &rows, fused.pools());
        assert_same(&fused.keys, &expected.keys, "keys");
        assert_same(&fused.values, &expected.values, "values");
        let separate: Vec<f32> = proj
            .chunks(dims.projection())
            .flat_map(|token| &token[2 * dims.queries()..])
            .copied()
            .collect();
        let mut alone = Memory::new(&dims, 2);
        append_kv(layer, &separate, separate.len() / 20, &rows, alone.pools());
        assert_same(&alone.keys, &expected.keys, "keys");
        assert_same(&alone.values, &expected.values, "values");
    }
}

#[test]
fn threads_change_nothing() {
    let mut random = Random::new(55);
    let sample = Sample::of(dims(8, 2, 64), &mut random);
    let proj = random.values(300 * sample.layer.dims.projection());
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| whole(&sample.layer, &proj, 1))
    };
    let expected = run(1);
    for threads in [2, 3, 16] {
        assert_same(&run(threads), &expected, "threads");
    }
}

#[test]
fn wrong_shapes_are_refused() {
    let make = |dims: AttentionDims, freqs: usize| {
        let gain = vec![1.0; 64];
        let inv_freq = vec![1.0; freqs];
        let params =
            AttentionParams { q_gain: &gain, k_gain: &gain, inv_freq: &inv_freq, eps: EPS };
        Attention::new(dims, params).is_ok()
    };
    assert!(make(dims(4, 2, 64), 8));
    assert!(!make(dims(4, 3, 64), 8));
    assert!(!make(dims(4, 2, 128), 8));
    assert!(!make(dims(4, 2, 72), 8));
    assert!(!make(dims(4, 2, 64), 33));
}

#[test]
#[should_panic(expected = "page written twice")]
fn rows_that_write_one_page_panic() {
    let mut random = Random::new(56);
    let sample = Sample::of(dims(2, 1, 16), &mut random);
    let proj = random.values(2 * sample.layer.dims.projection());
    let row = |start| AttentionRow { start, len: 1, position: start, pages: &[0], first_key: 0 };
    Memory::new(&sample.layer.dims, 1).run(&sample.layer, &proj, &[row(0), row(1)]);
}

//! `accept`: the acceptance law within the graph, so that a cycle returns a handful of integers to
//! the host: how many drafts of each sequence stand, and the token after them.

use mlx_rs::error::Exception;
use mlx_rs::{Array, Dtype};
use mtplx_core::Token;
use mtplx_core::accept::{Rule, draft, verdict};
use mtplx_core::random::Purpose;
use mtplx_core::sample::{Dist, NotFinite, Sampling, Seen};

use super::device::{Launch, Source};
use super::draw::{self, Drawn};
use super::top::KEPT;
use super::{Gpu, trial};
use crate::error::Result;

/// Most drafts of a sequence.
pub const DRAFTS_MAX: usize = 4;
/// Numbers that say what is to be decided about a sequence, and what was.
const SEQUENCE: usize = 4 + 2 * DRAFTS_MAX;
const VERDICT: usize = 4 + DRAFTS_MAX;

const SOURCE: Source = Source {
    name: "accept",
    cuda: include_str!("accept.cu"),
    metal: include_str!("accept.metal"),
    inputs: &[
        "found",
        "drawn",
        "settings",
        "sequences",
        "found_0",
        "drawn_0",
        "found_1",
        "drawn_1",
        "found_2",
        "drawn_2",
        "found_3",
        "drawn_3",
    ],
    output: "out",
};

/// A draft that is to be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judged {
    /// Drawn from this row of the head's pass.
    Drawn(usize),
    /// This token, which was certain.
    Known(Token),
}

/// What is to be decided about one sequence.
#[derive(Clone, Debug)]
pub struct Case<'a> {
    /// How its tokens are chosen.
    pub sampling: &'a Sampling,
    /// Of the first draft, or of the token drawn where there is none.
    pub position: u64,
    /// The first of its rows among the trunk's: one more than there are drafts.
    pub first: usize,
    /// At most [`DRAFTS_MAX`].
    pub drafts: Vec<Judged>,
    /// How many of them stand whatever they are, for benches.
    pub forced: Option<usize>,
}

/// What was decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    /// All drafts.
    pub drafts: Vec<Token>,
    /// How many of them stand.
    pub accepted: usize,
    /// The token after those.
    pub next: Token,
}

/// Verdicts on their way.
#[derive(Debug)]
pub struct Verdicts {
    out: Array,
    /// Drafts of each sequence.
    depths: Vec<usize>,
}

impl Case<'_> {
    /// As the kernel reads it.
    #[must_use]
    pub fn numbers(&self) -> [i32; SEQUENCE] {
        let mut numbers = [0; SEQUENCE];
        numbers[0] = self.first as i32;
        numbers[1] = self.drafts.len() as i32;
        numbers[2] = self.forced.map_or(-1, |n| n as i32);
        let Sampling { seed, .. } = *self.sampling;
        for (i, &judged) in self.drafts.iter().enumerate() {
            numbers[4 + i] = match judged {
                Judged::Drawn(row) => row as i32,
                Judged::Known(token) => -1 - token as i32,
            };
            let u = draw::unit(seed, self.position + i as u64, Purpose::Accept);
            numbers[4 + DRAFTS_MAX + i] = u.to_bits().cast_signed();
        }
        numbers
    }
}

/// Whether the kernel serves logits of this type here; it is tried once.
pub fn serves(gpu: &Gpu, dtype: Dtype) -> bool {
    draw::serves(gpu, dtype) && gpu.passed("accept", || run(gpu, dtype))
}

/// Adds the verdicts on `cases` to the graph: `trunk` has draws from the target's rows, `head`
/// those from the head's at each depth.
///
/// # Errors
/// When MLX refuses.
pub fn add(gpu: &Gpu, trunk: &Drawn, head: &[&Drawn], cases: &[Case<'_>]) -> Result<Verdicts> {
    let kernel = gpu.kernel(&SOURCE, &[("K", KEPT.to_string())])?;
    let numbers: Vec<i32> = cases.iter().flat_map(Case::numbers).collect();
    let sequences = gpu.numbers(numbers)?;
    // Depths that nobody reached are anything.
    let heads: [&Drawn; DRAFTS_MAX] = std::array::from_fn(|d| *head.get(d).unwrap_or(&trunk));
    let mut inputs = vec![&trunk.found, &trunk.out, &trunk.settings, &sequences];
    inputs.extend(heads.iter().flat_map(|drawn| [&drawn.found, &drawn.out]));
    let mut scalars = vec![trunk.rows as i32];
    scalars.extend(heads.iter().map(|drawn| drawn.rows as i32));
    let launch = Launch { scalars: &scalars, blocks: cases.len(), threads: KEPT, shared_bytes: 0 };
    let shape = [(cases.len() * VERDICT) as i32];
    // SAFETY: cases name rows of these draws alone; each block writes its verdict, whole.
    let [out] = unsafe { kernel.call(&inputs, [(&shape, Dtype::Int32)], launch) }?;
    Ok(Verdicts { out, depths: cases.iter().map(|case| case.drafts.len()).collect() })
}

impl Verdicts {
    /// What must be evaluated before [`Self::read`].
    #[must_use]
    pub fn array(&self) -> &Array {
        &self.out
    }

    /// The verdicts; `None` where the host has to look at a row itself.
    #[must_use]
    pub fn read(&self) -> Option<Vec<Decided>> {
        let verdicts = self.out.as_slice::<i32>().chunks(VERDICT);
        verdicts.zip(&self.depths).map(|(numbers, &depth)| decided(numbers, depth)).collect()
    }
}

/// What the kernel wrote of a sequence with so many drafts; `None` where the host has to look.
#[must_use]
pub fn decided(numbers: &[i32], depth: usize) -> Option<Decided> {
    let &[0, accepted, next, ref drafts @ ..] = numbers else { return None };
    let drafts = drafts[..depth].iter().map(|&token| token as Token).collect();
    Some(Decided { drafts, accepted: accepted as usize, next: next as Token })
}

/// What the core decides, of logits on the host: `p` and `q` are a sequence's rows.
///
/// # Errors
/// [`NotFinite`] where a row has logits that are no numbers.
pub fn by_core(
    s: &Sampling,
    position: u64,
    p: &[&[f32]],
    q: &[&[f32]],
) -> std::result::Result<Decided, NotFinite> {
    let dist = |logits: &[f32]| Dist::from_logits(logits, s, &Seen::default(), &[]);
    let q: Vec<Dist> =
        q.iter().map(|logits| dist(logits)).collect::<std::result::Result<_, _>>()?;
    let drafts: Vec<Token> =
        (position..).zip(&q).map(|(position, q)| draft(s.rule, s.seed, position, q)).collect();
    let verdict = verdict(s.rule, s.seed, position, (&drafts, &q), |i| dist(p[i]))?;
    Ok(Decided { drafts, accepted: verdict.accepted, next: verdict.next })
}

/// Decides beside the core.
fn run(gpu: &Gpu, dtype: Dtype) -> Result<()> {
    let plain = Sampling { top_k: 64, seed: 5, ..Sampling::default() };
    let few = Sampling { temperature: 0.7, top_k: 20, top_p: 0.9, ..plain.clone() };
    let shared = Sampling { rule: Rule::Coupled, ..few.clone() };
    let kinds = [Sampling::greedy(), plain, few, shared];
    let (count, depth, vocab) = (16, 3, 4096);
    let of = |i: usize| (&kinds[i % kinds.len()], 100 + i as u64);
    // Logits of the head are those of the trunk, disturbed.
    let rows = (count * (depth + 1)) as i32;
    let noise = trial::noise(&[rows, vocab], 21, Dtype::Float32)?;
    let p = noise.square()?.multiply(&noise)?.multiply(Array::from_f32(20.0))?;
    let apart = trial::noise(&[rows, vocab], 22, Dtype::Float32)?;
    let q = p.add(apart.multiply(Array::from_f32(0.3))?)?;
    let (p, q) = (p.as_dtype(dtype)?, q.as_dtype(dtype)?);
    let settings = |rows: &[(usize, usize)], purpose| -> Vec<_> {
        let of_row =
            |&(i, d): &(usize, usize)| draw::settings(of(i).0, of(i).1 + d as u64, purpose);
        rows.iter().map(of_row).collect()
    };
    let every: Vec<_> = (0..count).flat_map(|i| (0..=depth).map(move |d| (i, d))).collect();
    let trunk = draw::add(gpu, &p, &settings(&every, Purpose::Draw))?;
    let mut head = Vec::new();
    for d in 0..depth {
        let at: Vec<_> = (0..count).map(|i| (i, d)).collect();
        let index: Vec<i32> = at.iter().map(|(i, d)| (i * (depth + 1) + d) as i32).collect();
        let logits = crate::model::take_rows(&q, &index)?;
        head.push(draw::add(gpu, &logits, &settings(&at, Purpose::Draft))?);
    }
    let case = |i: usize| {
        let drafts = vec![Judged::Drawn(i); depth];
        let (sampling, position) = of(i);
        Case { sampling, position, first: i * (depth + 1), drafts, forced: None }
    };
    let cases: Vec<Case<'_>> = (0..count).map(case).collect();
    let verdicts = add(gpu, &trunk, &head.iter().collect::<Vec<_>>(), &cases)?;
    let (p, q) = (p.as_dtype(Dtype::Float32)?, q.as_dtype(Dtype::Float32)?);
    crate::place::eval([&p, &q, verdicts.array()])?;
    let off = |what: &str| Err(Exception::custom(format!("accept is off: {what}")).into());
    let Some(decided) = verdicts.read() else { return off("nothing was decided") };
    let (p, q) = (p.as_slice::<f32>(), q.as_slice::<f32>());
    let mut other = 0;
    for (i, decided) in decided.iter().enumerate() {
        let p: Vec<&[f32]> = p.chunks(vocab as usize).skip(i * (depth + 1)).collect();
        let q: Vec<&[f32]> = q.chunks(vocab as usize).skip(i * (depth + 1)).collect();
        let want = by_core(of(i).0, of(i).1, &p[..=depth], &q[..depth]);
        other += usize::from(want.as_ref() != Ok(decided));
    }
    // A number close to an edge may fall on the other side of it.
    if other > 1 {
        return off("other tokens");
    }
    Ok(())
}

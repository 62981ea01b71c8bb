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
    draw::serves(gpu, dtype) && gpu.passed("accept", dtype, || run(gpu, dtype))
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

/// Decides beside the core.
fn run(gpu: &Gpu, dtype: Dtype) -> Result<()> {
    let trial = Trial::new(dtype);
    let settings = |rows: &[(usize, usize)], purpose| -> Vec<_> {
        let of_row = |&(i, d): &(usize, usize)| {
            draw::settings(trial.kind(i), Trial::position(i) + d as u64, purpose)
        };
        rows.iter().map(of_row).collect()
    };
    let every: Vec<_> =
        (0..Trial::COUNT).flat_map(|i| (0..=Trial::depth(i)).map(move |d| (i, d))).collect();
    let p = trial.array(&trial.p, every.len())?;
    let q = trial.array(&trial.q, every.len())?;
    let trunk = draw::add(gpu, &p, &settings(&every, Purpose::Draw))?;
    let (mut head, mut cases) = (Vec::new(), Vec::new());
    let mut drafts = vec![Vec::new(); Trial::COUNT];
    for d in 0..DRAFTS_MAX {
        let mut at = Vec::new();
        for (i, drafts) in drafts.iter_mut().enumerate().filter(|&(i, _)| d < Trial::depth(i)) {
            drafts.push(match trial.known(i, d) {
                Some(token) => Judged::Known(token),
                None => {
                    at.push((i, d));
                    Judged::Drawn(at.len() - 1)
                }
            });
        }
        let index: Vec<i32> = at.iter().map(|&(i, d)| (Trial::first(i) + d) as i32).collect();
        let logits = crate::model::take_rows(&q, &index)?;
        head.push(draw::add(gpu, &logits, &settings(&at, Purpose::Draft))?);
    }
    for (i, drafts) in drafts.into_iter().enumerate() {
        let (sampling, position, first) = (trial.kind(i), Trial::position(i), Trial::first(i));
        cases.push(Case { sampling, position, first, drafts, forced: None });
    }
    let verdicts = add(gpu, &trunk, &head.iter().collect::<Vec<_>>(), &cases)?;
    crate::place::eval([verdicts.array()])?;
    let off = |what: &str| Err(Exception::custom(format!("accept is off: {what}")).into());
    let mut other = 0;
    for (i, numbers) in verdicts.out.as_slice::<i32>().chunks(VERDICT).enumerate() {
        match (decided(numbers, Trial::depth(i)), trial.expected(i)) {
            (Some(_), Err(NotFinite)) => return off("what is no number was not told"),
            (None, Ok(_)) => return off("nothing was decided"),
            (Some(decided), Ok(want)) => other += usize::from(decided != want),
            (None, Err(NotFinite)) => {}
        }
    }
    // A number close to an edge may fall on the other side of it.
    if other > 1 {
        return off("other tokens");
    }
    Ok(())
}

/// Sequences of every depth and kind, with drafts that were drawn and drafts that were certain, and
/// two rows that hold what is no number.
#[derive(Debug)]
struct Trial {
    kinds: [Sampling; 4],
    dtype: Dtype,
    /// Bits of logits of all rows: the trunk's, and the head's, which are those, disturbed.
    p: Vec<u16>,
    q: Vec<u16>,
}

impl Trial {
    const COUNT: usize = 20;
    const VOCAB: usize = 4096;
    /// Sequences whose first row is broken.
    const BROKEN: [usize; 2] = [5, 8];

    fn new(dtype: Dtype) -> Self {
        let plain = Sampling { top_k: 64, seed: 5, ..Sampling::default() };
        let few = Sampling { temperature: 0.7, top_k: 20, top_p: 0.9, ..plain.clone() };
        let shared = Sampling { rule: Rule::Coupled, ..few.clone() };
        let numbers = Self::first(Self::COUNT) * Self::VOCAB;
        let noise = trial::floats(numbers, 21, (0.0, 1.0));
        let mut p: Vec<f32> = noise.iter().map(|v| 20.0 * v * v * v).collect();
        let apart = trial::floats(numbers, 22, (0.0, 0.3));
        let q: Vec<f32> = p.iter().zip(&apart).map(|(p, apart)| p + apart).collect();
        for i in Self::BROKEN {
            p[Self::first(i) * Self::VOCAB + 77] = -f32::NAN;
        }
        let [p, q] = [p, q].map(|logits| trial::narrowed(&logits, dtype));
        Self { kinds: [Sampling::greedy(), plain, few, shared], dtype, p, q }
    }

    fn depth(i: usize) -> usize {
        i % (DRAFTS_MAX + 1)
    }

    fn first(i: usize) -> usize {
        (0..i).map(|i| Self::depth(i) + 1).sum()
    }

    fn position(i: usize) -> u64 {
        100 + i as u64
    }

    fn kind(&self, i: usize) -> &Sampling {
        &self.kinds[i / 2 % self.kinds.len()]
    }

    fn array(&self, bits: &[u16], rows: usize) -> Result<Array> {
        trial::of_bits(bits, &[rows as i32, Self::VOCAB as i32], self.dtype)
    }

    fn row(&self, bits: &[u16], row: usize) -> Vec<f32> {
        trial::widened(&bits[row * Self::VOCAB..][..Self::VOCAB], self.dtype)
    }

    /// A draft that is certain: the likeliest token, mostly.
    fn known(&self, i: usize, d: usize) -> Option<Token> {
        let likeliest = || {
            let row = self.row(&self.q, Self::first(i) + d);
            let most = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]));
            most.map_or(0, |at| at as Token)
        };
        (i % 3 == 2).then(|| if d == 2 { 3 } else { likeliest() })
    }

    /// What the core decides.
    fn expected(&self, i: usize) -> std::result::Result<Decided, NotFinite> {
        let (s, position, first) = (self.kind(i), Self::position(i), Self::first(i));
        let dist = |bits: &[u16], d: usize| {
            Dist::from_logits(&self.row(bits, first + d), s, &Seen::default(), &[])
        };
        let (mut drafts, mut q) = (Vec::new(), Vec::new());
        for d in 0..Self::depth(i) {
            let own = match self.known(i, d) {
                Some(token) => Dist::one_hot(token),
                None => dist(&self.q, d)?,
            };
            drafts.push(draft(s.rule, s.seed, position + d as u64, &own));
            q.push(own);
        }
        let verdict = verdict(s.rule, s.seed, position, (&drafts, &q), |d| dist(&self.p, d))?;
        Ok(Decided { drafts, accepted: verdict.accepted, next: verdict.next })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_meets_every_depth_and_outcome() {
        let trial = Trial::new(Dtype::Bfloat16);
        let all: Vec<_> = (0..Trial::COUNT).map(|i| trial.expected(i)).collect();
        let broken: Vec<usize> = (0..Trial::COUNT).filter(|&i| all[i].is_err()).collect();
        assert_eq!(broken, Trial::BROKEN);
        let decided: Vec<&Decided> = all.iter().flatten().collect();
        for depth in 0..=DRAFTS_MAX {
            assert!(decided.iter().any(|d| d.drafts.len() == depth));
            assert!(decided.iter().any(|d| d.accepted == depth), "{depth} were never accepted");
        }
        assert!(decided.iter().filter(|d| d.accepted < d.drafts.len()).count() > 3);
    }
}

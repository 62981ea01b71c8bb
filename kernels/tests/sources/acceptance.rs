//! `draw` and `accept` in both languages against the core's own acceptance law.

use std::io::Write as _;
use std::process::{Command, Stdio};

use mtplx_core::Token;
use mtplx_core::accept::{Rule, draft, draw, verdict};
use mtplx_core::random::Purpose;
use mtplx_core::sample::{Dist, Sampling, Seen};
use mtplx_kernels::gpu::accept::{Case, DRAFTS_MAX, Decided, Judged, decided};
use mtplx_kernels::gpu::draw::settings;
use mtplx_kernels::gpu::top::KEPT;

const SEQUENCES: usize = 400;
const VOCAB: usize = 300;

/// Numbers without a pattern.
struct Noise(u32);

impl Noise {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 ^ self.0 >> 15) % bound
    }

    /// Logits with a few that stand out, in steps, so that some are equal; or near `others`.
    fn logits(&mut self, others: Option<&[f32]>) -> Vec<f32> {
        let steps = |n: u32| f64::from(n) / 400.0 - 1.0;
        (0..VOCAB)
            .map(|i| match others {
                None => ((steps(self.below(800)).powi(3) * 48.0).round() / 4.0) as f32,
                Some(others) => others[i] + ((steps(self.below(800)) * 4.0).round() / 4.0) as f32,
            })
            .collect()
    }
}

/// What `top` finds in them.
fn found(logits: &[f32]) -> Vec<i32> {
    let mut ids: Vec<i32> = (0..VOCAB as i32).collect();
    // What is no number comes first.
    let key = |id: i32| Some(logits[id as usize]).filter(|v| !v.is_nan()).unwrap_or(f32::NAN);
    ids.sort_by(|&a, &b| key(b).total_cmp(&key(a)).then(a.cmp(&b)));
    ids.truncate(KEPT);
    ids.sort_unstable();
    let bits = ids.iter().map(|&id| logits[id as usize].to_bits().cast_signed());
    [KEPT as i32].into_iter().chain(ids.iter().copied()).chain(bits).collect()
}

/// Rows on their way to a draw.
#[derive(Default)]
struct Rows {
    count: usize,
    found: Vec<i32>,
    settings: Vec<i32>,
}

impl Rows {
    fn add(&mut self, logits: &[f32], s: &Sampling, position: u64, purpose: Purpose) -> usize {
        self.found.extend(found(logits));
        self.settings.extend(settings(s, position, purpose));
        self.count += 1;
        self.count - 1
    }
}

fn kinds() -> Vec<Sampling> {
    let plain = Sampling { top_k: 64, ..Sampling::default() };
    let few = Sampling { temperature: 0.7, top_k: 20, top_p: 0.9, ..plain.clone() };
    let floor = Sampling { temperature: 1.3, top_k: 40, min_p: 0.05, ..plain.clone() };
    let shared = Sampling { rule: Rule::Coupled, ..few.clone() };
    vec![Sampling::greedy(), plain, few, floor, shared]
}

/// All that a run of the kernels is given, and what the core says of it.
struct Scene {
    sequences: Vec<i32>,
    depths: Vec<usize>,
    trunk: Rows,
    head: [Rows; DRAFTS_MAX],
    expected: Vec<Option<Decided>>,
}

impl Scene {
    fn new() -> Self {
        let mut noise = Noise(5);
        let (sequences, depths, expected) = (Vec::new(), Vec::new(), Vec::new());
        let mut scene =
            Self { sequences, depths, trunk: Rows::default(), head: Default::default(), expected };
        for (i, kind) in kinds().iter().cycle().take(SEQUENCES).enumerate() {
            let s = Sampling { seed: u64::from(noise.below(1 << 30)) << 20, ..kind.clone() };
            scene.add(i, &s, &mut noise);
        }
        scene
    }

    fn add(&mut self, i: usize, s: &Sampling, noise: &mut Noise) {
        let (depth, position) = (i / 3 % (DRAFTS_MAX + 1), 1000 + i as u64);
        let is_certain = i.is_multiple_of(7);
        let forced = i.is_multiple_of(11).then(|| noise.below(depth as u32 + 1) as usize);
        let dist = |logits: &[f32]| Dist::from_logits(logits, s, &Seen::default(), &[]).unwrap();
        let mut p: Vec<Vec<f32>> = (0..=depth).map(|_| noise.logits(None)).collect();
        let (mut drafts, mut judged, mut q) = (Vec::new(), Vec::new(), Vec::new());
        for (d, p) in p.iter().take(depth).enumerate() {
            let at = position + d as u64;
            let logits = noise.logits(Some(p));
            let own = dist(&logits);
            let token: Token = draft(s.rule, s.seed, at, &own);
            drafts.push(token);
            if is_certain {
                judged.push(Judged::Known(token));
                q.push(Dist::one_hot(token));
            } else {
                judged.push(Judged::Drawn(self.head[d].add(&logits, s, at, Purpose::Draft)));
                q.push(own);
            }
        }
        // Now and then the last row is nonsense: the host is asked, if it is reached.
        let is_broken = i.is_multiple_of(13);
        if is_broken {
            p[depth][7] = if i.is_multiple_of(2) { f32::NAN } else { -f32::NAN };
        }
        let rows: Vec<usize> = (0..=depth)
            .map(|d| self.trunk.add(&p[d], s, position + d as u64, Purpose::Draw))
            .collect();
        let case = Case { sampling: s, position, first: rows[0], drafts: judged, forced };
        self.sequences.extend(case.numbers());
        self.depths.push(depth);
        let mut is_reached = false;
        let verdict = match forced {
            Some(accepted) => {
                is_reached = accepted == depth;
                let next = match is_broken && is_reached {
                    true => 0,
                    false => draw(s.rule, s.seed, position + accepted as u64, &dist(&p[accepted])),
                };
                (accepted, next)
            }
            None => {
                let verdict = verdict(s.rule, s.seed, position, (&drafts, &q), |d| {
                    is_reached |= d == depth;
                    Ok(if is_broken && d == depth { Dist::one_hot(0) } else { dist(&p[d]) })
                });
                verdict.map(|v| (v.accepted, v.next)).unwrap()
            }
        };
        let (accepted, next) = verdict;
        let known = !(is_broken && is_reached);
        self.expected.push(known.then_some(Decided { drafts, accepted, next }));
    }

    /// As `accept.cpp` reads it.
    fn ints(&self) -> Vec<i32> {
        let rows = [&self.trunk].into_iter().chain(&self.head);
        let sizes = rows.clone().map(|rows| rows.count as i32);
        let rows = rows.flat_map(|rows| rows.found.iter().chain(&rows.settings).copied());
        let count = [self.depths.len() as i32];
        count.into_iter().chain(sizes).chain(self.sequences.iter().copied()).chain(rows).collect()
    }
}

#[test]
fn verdicts_are_those_of_the_core() {
    let scene = Scene::new();
    let given: Vec<u8> = scene.ints().iter().flat_map(|int| int.to_le_bytes()).collect();
    for options in [&[][..], &["-DMETAL"]] {
        let (_folder, program) = super::build("accept", options);
        let mut child =
            Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(&given).unwrap();
        drop(stdin);
        let told = child.wait_with_output().unwrap();
        assert!(told.status.success(), "{options:?}");
        let ints: Vec<i32> =
            told.stdout.chunks(4).map(|int| i32::from_le_bytes(int.try_into().unwrap())).collect();
        let drafts: usize = scene.head.iter().map(|rows| rows.count).sum();
        let verdicts = ints[drafts..].chunks(ints[drafts..].len() / SEQUENCES);
        let (mut other, mut kept, mut open) = (0, 0, 0);
        for ((numbers, &depth), expected) in verdicts.zip(&scene.depths).zip(&scene.expected) {
            let decided = decided(numbers, depth);
            other += usize::from(decided != *expected);
            kept += decided.as_ref().map_or(0, |d| d.accepted);
            open += usize::from(decided.is_none());
        }
        // A number as near to an edge as fp32 is to fp64 may fall on the other side of it.
        assert!(other <= 1, "{options:?}: {other} of {SEQUENCES} are others");
        assert!(kept > SEQUENCES / 2 && open > 5, "{kept} kept, {open} open: too few to tell");
    }
}

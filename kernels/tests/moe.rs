//! Mixtures of experts, against logits that mlx-lm computed from the same small random checkpoints
//! in fp32 (tests/golden/moe/make.py makes both), and against themselves: drafts and company change
//! no text.

use mlx_rs::{Array, Dtype};
use mtplx_core::Token;
use mtplx_core::accept::Rule;
use mtplx_core::sample::{Sampling, argmax};
use mtplx_kernels::model::take_rows;
use mtplx_kernels::place::Place;

use crate::golden::{Bench, check, places};
use crate::house::{House, engine, folder};

/// Published and converted forms of Qwen3.5's mixtures and of Qwen3-Next.
const NAMES: [&str; 4] = ["moe-raw", "moe-q4", "next-raw", "next-q8"];

fn path(name: &str) -> String {
    format!("tests/golden/moe/{name}")
}

fn data() -> Vec<u8> {
    std::fs::read(folder("tests/golden/moe/golden.safetensors")).unwrap()
}

struct Golden {
    ids: Vec<Token>,
    /// By position.
    logits: Vec<f32>,
    /// Of the head, by pair.
    drafts: Vec<f32>,
}

impl Golden {
    fn of(name: &str) -> Self {
        let data = data();
        let floats = |key: &str| crate::golden::floats(&data, &format!("{name}.{key}")).1;
        Self {
            ids: crate::golden::ids(&data, &format!("{name}.ids")),
            logits: floats("logits"),
            drafts: floats("mtp_logits"),
        }
    }
}

fn check_all(what: &str, got: &[f32], want: &[f32], positions: usize) {
    check(what, got, want);
    let vocab = want.len() / positions;
    for (i, (got, want)) in got.chunks(vocab).zip(want.chunks(vocab)).enumerate() {
        assert_eq!(argmax(got).unwrap(), argmax(want).unwrap(), "{what}: top-1 at {i}");
    }
}

#[test]
fn mixtures_equal_the_reference_at_every_position() {
    for place in places() {
        for name in NAMES {
            let Golden { ids, logits, drafts } = Golden::of(name);
            let (p, what) = (ids.len(), |part: &str| format!("{place:?} {name} {part}"));
            let mut b = Bench::new(&path(name), place);
            let hidden = b.model.trunk(&ids[..].into(), &[Bench::row(p, 0)], &mut b.pools).unwrap();
            check_all(&what("at once"), &b.logits(&hidden), &logits, p);
            let pairs = take_rows(&hidden, &(0..p as i32 - 1).collect::<Vec<_>>()).unwrap();
            let rows = [Bench::row(p - 1, 1)];
            let m = b.model.draft(&pairs, &ids[1..].into(), &rows, &mut b.pools).unwrap();
            check_all(&what("head"), &b.logits(&m), &drafts, p - 1);
        }
    }
}

/// Short calls take another way through MLX than long ones.
#[test]
fn mixtures_equal_the_reference_token_by_token() {
    for place in places() {
        for name in NAMES {
            let Golden { ids, logits, .. } = Golden::of(name);
            let mut b = Bench::new(&path(name), place);
            let mut got = Vec::new();
            for (i, id) in ids.iter().enumerate() {
                let hidden =
                    b.model.trunk(&[*id][..].into(), &[Bench::row(1, i)], &mut b.pools).unwrap();
                got.extend(b.logits(&hidden));
            }
            check_all(&format!("{place:?} {name} one by one"), &got, &logits, ids.len());
        }
    }
}

/// Quantised experts only: MLX multiplies dense ones on the CPU in fp32 alone.
#[test]
fn half_precision_stays_near_the_reference() {
    for name in ["moe-q4", "next-q8"] {
        let Golden { ids, logits, .. } = Golden::of(name);
        let mut b = Bench::new(&path(name), Place::Mlx(Dtype::Bfloat16));
        let rows = [Bench::row(ids.len(), 0)];
        let hidden = b.model.trunk(&ids[..].into(), &rows, &mut b.pools).unwrap();
        assert_eq!(hidden.dtype(), Dtype::Bfloat16);
        let got = b.model.logits(&hidden).unwrap().as_dtype(Dtype::Float32).unwrap();
        got.eval().unwrap();
        let correlation = correlation(got.as_slice(), &logits);
        println!("{name} in bf16: correlation {correlation:.4}");
        assert!(correlation > 0.99, "{name}: {correlation}");
    }
}

fn correlation(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn prompts(name: &str, n: usize) -> Vec<Vec<Token>> {
    let ids = Golden::of(name).ids;
    (0..n).map(|i| ids[i..3 + (i * 11) % 30 + i].to_vec()).collect()
}

fn sampled(seed: u64) -> Sampling {
    Sampling { temperature: 0.9, top_k: 20, seed, rule: Rule::Coupled, ..Sampling::default() }
}

#[test]
fn drafts_and_company_leave_the_text_of_a_mixture_alone() {
    for name in NAMES {
        let mut house = House::new(engine(&path(name), None, 8));
        let prompts = prompts(name, 8);
        let sampling = |i: usize| match i % 2 {
            0 => Sampling::greedy(),
            _ => sampled(i as u64),
        };
        let alone: Vec<Vec<Token>> = (0..)
            .zip(&prompts)
            .map(|(i, prompt)| house.alone(prompt, sampling(i), 40, 0).tokens)
            .collect();
        for depth in 1..=4 {
            for (i, prompt) in prompts.iter().enumerate() {
                let told = house.alone(prompt, sampling(i), 40, depth);
                assert_eq!(told.tokens, alone[i], "{name} K={depth} alone, prompt {i}");
            }
            let ask = |(i, prompt): (usize, &Vec<Token>)| house.ask(prompt, sampling(i), 40, false);
            let ids: Vec<_> = prompts.iter().enumerate().map(ask).collect();
            house.run(depth);
            for (i, id) in ids.into_iter().enumerate() {
                assert_eq!(house.told(id).tokens, alone[i], "{name} K={depth} of 8, prompt {i}");
            }
        }
        let positions = house.reports.iter().flat_map(|report| &report.positions);
        let (tried, accepted) =
            positions.fold((0, 0), |(tried, accepted), p| (tried + p.tried, accepted + p.accepted));
        println!("{name}: {accepted} of {tried} drafts accepted");
        assert!(accepted > 100 && tried > accepted + 100, "{name}: both verdicts were met");
    }
}

#[test]
fn greedy_text_is_the_same_on_both_paths() {
    for name in NAMES {
        let prompt = &prompts(name, 3)[2];
        let tell = |place, depth| {
            let mut house = House::new(engine(&path(name), Some(place), 2));
            house.alone(prompt, Sampling::greedy(), 12, depth).tokens
        };
        let texts: Vec<_> = places().into_iter().map(|place| tell(place, 2)).collect();
        assert!(texts.iter().all(|text| *text == texts[0]), "{name}: {texts:?}");
    }
}

#[test]
fn results_of_a_mixture_do_not_depend_on_the_rows_beside() {
    let Golden { ids, .. } = Golden::of("moe-q4");
    let run = |take: usize| -> Vec<f32> {
        let mut b = Bench::new(&path("moe-q4"), crate::house::exact_place());
        let hidden =
            b.model.trunk(&ids[..take].into(), &[Bench::row(take, 0)], &mut b.pools).unwrap();
        let first: Array = take_rows(&hidden, &[0, 1, 2]).unwrap();
        b.logits(&first)
    };
    if cfg!(target_os = "linux") {
        assert_eq!(run(ids.len()), run(3));
    }
}

//! Against logits and hidden states that mlx-lm 0.32.2 computed from the same bf16 checkpoint in
//! fp32 (config/models/tiny-q8 and tests/golden are described in tests/golden/README.md).

use std::sync::Arc;

use mlx_rs::{Array, Dtype};
use mtplx_core::Token;
use mtplx_core::sample::{Sampling, argmax};
use mtplx_kernels::model::{FeedRow, Model, Pools, take_rows};
use mtplx_kernels::place::Place;
use safetensors::SafeTensors;

use crate::house::{BF16, House, Q8, checkpoint, engine, folder};

/// Largest absolute difference allowed where logits are about 10 to 40.
const TOLERANCE: f32 = 1e-3;
const PAGE: usize = 32;

pub struct Case {
    pub name: String,
    pub ids: Vec<Token>,
    next_token: Token,
    drafts: Vec<Token>,
    greedy: [Vec<Token>; 2],
}

fn data() -> Vec<u8> {
    std::fs::read(folder("tests/golden/golden.safetensors")).unwrap()
}

pub fn floats(data: &[u8], name: &str) -> (Vec<usize>, Vec<f32>) {
    let tensors = SafeTensors::deserialize(data).unwrap();
    let t = tensors.tensor(name).unwrap();
    let values = t.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
    (t.shape().to_vec(), values.collect())
}

pub fn ids(data: &[u8], name: &str) -> Vec<Token> {
    let tensors = SafeTensors::deserialize(data).unwrap();
    let t = tensors.tensor(name).unwrap();
    t.data()
        .chunks_exact(2)
        .map(|b| Token::from(u16::from_le_bytes(b.try_into().unwrap())))
        .collect()
}

pub fn cases() -> Vec<Case> {
    let text = std::fs::read_to_string(folder("tests/golden/golden.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let data = data();
    let list = |v: &serde_json::Value| -> Vec<Token> {
        v.as_array().unwrap().iter().map(|t| t.as_u64().unwrap() as Token).collect()
    };
    let cases = json["cases"].as_array().unwrap().iter();
    cases
        .map(|c| {
            let name = c["name"].as_str().unwrap().to_owned();
            Case {
                ids: ids(&data, &format!("{name}.ids")),
                next_token: c["next_token"].as_u64().unwrap() as Token,
                drafts: list(&c["draft_tokens"]),
                greedy: [list(&c["greedy_64"]), list(&c["greedy_64_q8"])],
                name,
            }
        })
        .collect()
}

pub fn places() -> Vec<Place> {
    vec![
        #[cfg(target_os = "linux")]
        Place::Host,
        Place::Mlx(Dtype::Float32),
    ]
}

pub struct Bench {
    pub model: Model,
    pub pools: Pools,
}

impl Bench {
    pub fn new(path: &str, place: Place) -> Self {
        let model = Model::load(place, &checkpoint(path), PAGE, 5).unwrap();
        let pools = model.pools(2, 16).unwrap();
        Self { model, pools }
    }

    pub fn row(len: usize, position: usize) -> FeedRow {
        let pages: Arc<[u32]> = (2..14).rev().collect();
        FeedRow { slot: 1, start: 0, len, position, keep: 0, commit: true, mark: None, pages }
    }

    pub fn logits(&self, hidden: &Array) -> Vec<f32> {
        let logits = self.model.logits(hidden).unwrap();
        logits.eval().unwrap();
        logits.as_slice().to_vec()
    }
}

pub fn check(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}");
    let worst = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    println!("{what}: max abs difference {worst:.1e}");
    assert!(worst <= TOLERANCE, "{what}: {worst}");
}

#[test]
fn trunk_and_head_equal_the_reference_in_fp32() {
    let data = data();
    for place in places() {
        for case in cases() {
            let name = &case.name;
            let what = |part: &str| format!("{place:?} {name} {part}");
            let mut b = Bench::new(BF16, place);
            let p = case.ids.len();
            let rows = [Bench::row(p, 0)];
            let hidden = b.model.trunk(&case.ids[..].into(), &rows, &mut b.pools).unwrap();
            let all = b.logits(&hidden);
            let vocab = all.len() / p;
            let (shape, top) = floats(&data, &format!("{name}.trunk_top_logits"));
            let top_ids = ids(&data, &format!("{name}.trunk_top_ids"));
            let got: Vec<f32> = top_ids
                .iter()
                .enumerate()
                .map(|(i, &id)| all[i / shape[1] * vocab + id as usize])
                .collect();
            check(&what("top 32 logits of every position"), &got, &top);
            for (i, row) in all.chunks(vocab).enumerate() {
                assert_eq!(argmax(row).unwrap(), top_ids[i * shape[1]], "top-1 at {i}");
            }
            let last = take_rows(&hidden, &[p as i32 - 1]).unwrap();
            let want = floats(&data, &format!("{name}.trunk_last_logits")).1;
            check(&what("last logits"), &all[(p - 1) * vocab..], &want);
            last.eval().unwrap();
            let want = floats(&data, &format!("{name}.trunk_last_hidden")).1;
            check(&what("last hidden"), last.as_slice(), &want);
            head(&mut b, &case, &hidden, &last, &data, &what);
        }
    }
}

/// The head with all prompt pairs in its cache, then two steps on its own output.
fn head(
    b: &mut Bench,
    case: &Case,
    hidden: &Array,
    last: &Array,
    data: &[u8],
    what: &dyn Fn(&str) -> String,
) {
    let p = case.ids.len();
    let pairs = take_rows(hidden, &(0..p as i32 - 1).collect::<Vec<_>>()).unwrap();
    let rows = [Bench::row(p - 1, 1)];
    b.model.remember(&pairs, &case.ids[1..].into(), &rows, &mut b.pools).unwrap();
    let (_, want_logits) = floats(data, &format!("{}.mtp_logits", case.name));
    let (_, want_hidden) = floats(data, &format!("{}.mtp_hidden", case.name));
    let mut before = last.clone();
    let mut token = case.next_token;
    for step in 0..3 {
        let rows = [Bench::row(1, p + step)];
        let m = b.model.draft(&before, &[token][..].into(), &rows, &mut b.pools).unwrap();
        let logits = b.logits(&m);
        let vocab = logits.len();
        m.eval().unwrap();
        let want = &want_hidden[step * 512..][..512];
        check(&what(&format!("head hidden {step}")), m.as_slice(), want);
        check(
            &what(&format!("head logits {step}")),
            &logits,
            &want_logits[step * vocab..][..vocab],
        );
        token = argmax(&logits).unwrap();
        assert_eq!(token, case.drafts[step]);
        before = m;
    }
}

#[test]
fn the_quantised_checkpoint_equals_its_reference() {
    let data = data();
    for place in places() {
        for case in cases() {
            let mut b = Bench::new(Q8, place);
            let p = case.ids.len();
            let rows = [Bench::row(p, 0)];
            let hidden = b.model.trunk(&case.ids[..].into(), &rows, &mut b.pools).unwrap();
            let last = take_rows(&hidden, &[p as i32 - 1]).unwrap();
            let logits = b.logits(&last);
            let ids = ids(&data, &format!("{}.q8_last_top_ids", case.name));
            let got: Vec<f32> = ids.iter().map(|&id| logits[id as usize]).collect();
            let want = floats(&data, &format!("{}.q8_last_top_logits", case.name)).1;
            check(&format!("{place:?} {} q8 last top 32", case.name), &got, &want);
            assert_eq!(argmax(&logits).unwrap(), ids[0]);
        }
    }
}

#[test]
fn greedy_text_equals_the_reference_at_every_depth() {
    for (path, index) in [(BF16, 0), (Q8, 1)] {
        for place in places() {
            let mut house = House::new(engine(path, Some(place), 2));
            // The plain path is slow on a CPU: fewer cases, depths and tokens tell the same.
            let plain = matches!(place, Place::Mlx(_));
            let (few, depths) = if plain { (2, 3..=3) } else { (4, 0..=4) };
            for case in cases().into_iter().take(few) {
                let depths = depths.clone();
                let want = &case.greedy[index][..if plain { 16 } else { 64 }];
                for depth in depths {
                    let told = house.alone(&case.ids, Sampling::greedy(), want.len(), depth);
                    assert_eq!(told.tokens, want, "{place:?} {path} {} K={depth}", case.name);
                }
            }
        }
    }
}

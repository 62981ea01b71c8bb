//! Parked states to the bit: whoever starts from one, of whatever kind, in whatever company, here
//! or in another engine, comes to the very state of a cold run. What is compared holds the hidden
//! state of the last token, from which the logits follow; and the largest 255 of these at every
//! token of the answers: their largest difference is 0.0.

use std::sync::Arc;

use mtplx_core::accept::Rule;
use mtplx_core::batch::{Deposit, Kind, Warm};
use mtplx_core::engine::{Engine, Parcel, Stretch};
use mtplx_core::image::{Image, Unfit};
use mtplx_core::logprobs::Logprobs;
use mtplx_core::prefix::Prefix;
use mtplx_core::request::{Drafts, Limits, Request, Sharing};
use mtplx_core::sample::Sampling;
use mtplx_core::{RequestId, SnapshotId, Tenant, Token};
use mtplx_kernels::MlxEngine;

use crate::house::{House, Q8, engine, prompts};

const NEW: usize = 21;

/// A prompt with its boundaries, whose states are this tenant's.
fn request(tenant: u64, prompt: &[Token], boundaries: &[usize]) -> Request {
    let root = boundaries.first().copied().unwrap_or(0);
    Request {
        id: RequestId(0),
        prompt: prompt.into(),
        sampling: Sampling {
            temperature: 0.7,
            seed: 5,
            rule: Rule::Coupled,
            logprobs: Some(u8::MAX),
            ..Sampling::default()
        },
        limits: Limits { new_tokens_max: NEW, stop_tokens: Arc::default() },
        draft_tokens: Drafts::Tuned,
        boundaries: boundaries.to_vec(),
        resumed: 0,
        sharing: Sharing { tenant: Tenant(tenant), root, background: false },
        standing: Default::default(),
    }
}

fn text(len: usize) -> Vec<Token> {
    prompts(60).concat().into_iter().take(len).collect()
}

/// The state of this tenant and kind that is the longest.
fn deposit(house: &House, tenant: u64, kind: Kind) -> Deposit {
    let own = house.deposits.iter().filter(|d| d.prefix.tenant == Tenant(tenant) && d.kind == kind);
    own.max_by_key(|d| d.prefix.tokens.len()).expect("there is one").clone()
}

fn image(house: &mut House, snapshot: SnapshotId) -> Image {
    while house.batch.parcel(snapshot).is_none() {
        house.step(2);
    }
    let parcel = house.batch.parcel(snapshot).unwrap();
    given(&mut house.engine, parcel, usize::MAX >> 1)
}

/// A state taken out in stretches of about so many bytes.
fn given(engine: &mut MlxEngine, at: Parcel<'_>, most: usize) -> Image {
    let mut image = Image::default();
    while !engine.export(at, &mut image, most).unwrap() {}
    image
}

/// Brings a state in, in stretches of about so many bytes.
fn taken(house: &mut House, at: SnapshotId, image: &Image, most: usize) -> Result<(), Unfit> {
    let parcel = house.batch.parcel(at).unwrap();
    let mut done = 0;
    while !house.engine.import(parcel, image, Stretch { done: &mut done, most })? {
        assert!(done > 0, "each call brings something");
    }
    house.batch.arrived(at);
    Ok(())
}

/// What a request came to.
#[derive(PartialEq)]
struct End {
    tokens: Vec<Token>,
    logits: Vec<Logprobs>,
    /// Its states at the ends of prompt and reply.
    images: [Image; 2],
}

/// The largest absolute difference of the logits of two answers, by which they became tokens.
fn difference(a: &End, b: &End) -> f32 {
    assert_eq!((a.logits.len(), b.logits.len()), (NEW, NEW));
    let of = |end: &End| -> Vec<(Token, f32)> {
        end.logits.iter().flat_map(|told| told.likeliest.clone()).collect()
    };
    let pairs = of(a).into_iter().zip(of(b));
    pairs.fold(0.0, |most, ((a, x), (b, y))| {
        assert_eq!(a, b, "the same tokens are the likeliest");
        f32::max(most, (x - y).abs())
    })
}

fn end(house: &mut House, tenant: u64, id: RequestId) -> End {
    house.run(3);
    let images = [Kind::Prompt, Kind::Reply].map(|kind| {
        let snapshot = deposit(house, tenant, kind).snapshot;
        image(house, snapshot)
    });
    let told = house.told(id).clone();
    End { tokens: told.tokens, logits: told.logprobs, images }
}

/// A first turn of tenant 1 that leaves a state of every kind, and a second turn after it.
fn two_turns(house: &mut House) -> (Vec<Token>, Vec<Deposit>) {
    let first = text(150);
    let id = house.admit(request(1, &first, &[70, 128]), None);
    house.run(3);
    let mut second = [first, house.told(id).tokens.clone()].concat();
    second.extend([17, 300, 5, 44]);
    let kinds = [Kind::Root, Kind::Boundary, Kind::Prompt, Kind::Reply];
    (second, kinds.map(|kind| deposit(house, 1, kind)).to_vec())
}

#[test]
fn from_every_kind_of_state_a_row_comes_to_the_state_of_a_cold_run_to_the_bit() {
    let mut house = House::new(engine(Q8, None, 4));
    let (second, deposits) = two_turns(&mut house);
    let cold = house.admit(request(2, &second, &[]), None);
    let cold = end(&mut house, 2, cold);
    for (tenant, deposit) in (3..).zip(deposits) {
        let len = deposit.prefix.tokens.len();
        // In company that is fed and decodes beside it.
        let other = house.ask(&text(90 + len), Sampling::greedy(), 30, false);
        house.step(2);
        let warm = Warm { snapshot: deposit.snapshot, len };
        let id = house.admit(request(tenant, &second, &[]), Some(warm));
        let warm = end(&mut house, tenant, id);
        assert_eq!(house.told(id).usage.cached, len, "{:?}", deposit.kind);
        assert_eq!(house.told(other).tokens.len(), 30);
        assert_eq!(difference(&warm, &cold), 0.0, "{:?}", deposit.kind);
        assert!(warm == cold, "{:?} leads elsewhere", deposit.kind);
    }
}

#[test]
fn a_state_that_was_let_go_and_comes_back_into_another_engine_is_the_same_to_the_bit() {
    let mut house = House::new(engine(Q8, None, 4));
    let (second, deposits) = two_turns(&mut house);
    let cold = house.admit(request(2, &second, &[]), None);
    let cold = end(&mut house, 2, cold);
    let images: Vec<Image> = deposits.iter().map(|d| image(&mut house, d.snapshot)).collect();
    let identity = house.engine.info().identity.clone();
    drop(house);
    let mut house = House::new(engine(Q8, None, 4));
    assert_eq!(house.engine.info().identity, identity);
    // Pages of another text lie where the states will.
    let other = house.ask(&text(300), Sampling::greedy(), 9, false);
    house.run(1);
    assert_eq!(house.told(other).tokens.len(), 9);
    for deposit in std::mem::take(&mut house.deposits) {
        house.batch.release(deposit.snapshot);
    }
    for (tenant, (deposit, image)) in (3..).zip(deposits.iter().zip(&images)) {
        let prefix = Prefix { tenant: Tenant(tenant), ..deposit.prefix.clone() };
        let len = prefix.tokens.len();
        let back = house.batch.import(prefix, deposit.kind).unwrap();
        // A page at a time, and all at once.
        taken(&mut house, back.snapshot, image, [1, 1 << 30][tenant as usize % 2]).unwrap();
        let id = house.admit(request(tenant, &second, &[]), None);
        let warm = end(&mut house, tenant, id);
        assert_eq!(house.told(id).usage.cached, len, "{:?}", deposit.kind);
        assert_eq!(difference(&warm, &cold), 0.0, "{:?}", deposit.kind);
        assert!(warm == cold, "{:?} leads elsewhere", deposit.kind);
        let parcel = house.batch.parcel(back.snapshot).unwrap();
        let again = given(&mut house.engine, parcel, [20_000, 1][tenant as usize % 2]);
        assert!(again == *image, "it stays as it was");
    }
}

#[test]
fn prompts_that_share_a_computation_come_to_the_states_of_cold_runs() {
    let mut house = House::new(engine(Q8, None, 4));
    let stem = text(140);
    let turns: Vec<Vec<Token>> =
        (0..4).map(|i| [&stem[..], &[30 + i, 31, 40 + i]].concat()).collect();
    let cold: Vec<_> = (10..)
        .zip(&turns)
        .map(|(tenant, turn)| {
            let id = house.admit(request(tenant, turn, &[]), None);
            end(&mut house, tenant, id)
        })
        .collect();
    let fed: usize = house.reports.iter().map(|r| r.prefilled).sum();
    let ids: Vec<RequestId> =
        turns.iter().map(|turn| house.admit(request(1, turn, &[140]), None)).collect();
    house.run(2);
    let fed = house.reports.iter().map(|r| r.prefilled).sum::<usize>() - fed;
    assert_eq!(fed, 140 + 4 * 3, "computed once");
    for ((id, turn), cold) in ids.into_iter().zip(&turns).zip(cold) {
        let told = house.told(id).tokens.clone();
        let prompt = house
            .deposits
            .iter()
            .find(|d| d.prefix.tokens[..] == turn[..] && d.prefix.tenant == Tenant(1));
        let snapshot = prompt.unwrap().snapshot;
        assert!((told, image(&mut house, snapshot)) == (cold.tokens, cold.images[0].clone()));
    }
}

#[test]
fn an_image_that_is_not_what_the_engine_would_give_is_refused() {
    let mut house = House::new(engine(Q8, None, 2));
    let (_, deposits) = two_turns(&mut house);
    let good = image(&mut house, deposits[2].snapshot);
    let wrong: [fn(&mut Image); 7] = [
        |i| i.parts.clear(),
        |i| i.parts.swap(0, 1),
        |i| drop(i.parts.pop()),
        |i| i.parts.push(i.parts[0].clone()),
        |i| i.parts[2].dtype = "f64".into(),
        |i| i.parts[0].shape[0] += 1,
        |i| i.parts[1].bytes.truncate(8),
    ];
    for (i, spoil) in wrong.into_iter().enumerate() {
        let mut image = good.clone();
        spoil(&mut image);
        let prefix = Prefix { tenant: Tenant(9), ..deposits[2].prefix.clone() };
        let back = house.batch.import(prefix, Kind::Prompt).unwrap().snapshot;
        assert!(taken(&mut house, back, &image, 1).is_err(), "{i}");
        house.batch.forget_import(back);
    }
    house.batch.check_integrity().unwrap();
}

use super::*;

fn dist(logits: &[f32], sampling: &Sampling) -> Dist {
    Dist::from_logits(logits, sampling, &Seen::default(), &[]).unwrap()
}

#[test]
fn greedy_takes_the_lowest_id_at_a_tie() {
    assert_eq!(dist(&[1.0, 3.0, 3.0], &Sampling::greedy()), Dist::one_hot(1));
}

#[test]
fn plain_sampling_is_the_softmax() {
    let d = dist(&[0.0, 1.0, 2.0], &Sampling::default());
    let z: f32 = 1.0 + 1.0_f32.exp() + 2.0_f32.exp();
    for (p, l) in d.probs().iter().zip([0.0_f32, 1.0, 2.0]) {
        assert!((p - l.exp() / z).abs() < 1e-6);
    }
}

#[test]
fn top_k_keeps_the_lowest_ids_at_a_tie() {
    let s = Sampling { top_k: 2, ..Sampling::default() };
    assert_eq!(dist(&[5.0, 1.0, 5.0, 5.0], &s).ids(), [0, 2]);
}

#[test]
fn top_k_of_many_is_what_sorting_gives() {
    let logits: Vec<f32> =
        (0..5000_u64).map(|i| (i.wrapping_mul(2_654_435_761) % 997) as f32 - 400.0).collect();
    for top_k in [1, 3, 20, 400, 4999] {
        let mut sorted: Vec<(Token, f32)> = (0..).zip(logits.iter().copied()).collect();
        sorted.sort_by(by_weight_then_id);
        sorted.truncate(top_k);
        sorted.sort_by_key(|&(id, _)| id);
        assert_eq!(candidates(&logits, top_k), sorted, "top {top_k}");
    }
    assert_eq!(argmax(&logits), Ok(sorted_first(&logits)));
    assert_eq!(argmax(&[-3.0, -1.0, -1.0, -2.0]), Ok(1));
    assert_eq!(argmax(&[-0.0, 0.0]), Ok(0), "zeros are equal");
}

fn sorted_first(logits: &[f32]) -> Token {
    let mut all: Vec<(Token, f32)> = (0..).zip(logits.iter().copied()).collect();
    all.sort_by(by_weight_then_id);
    all[0].0
}

#[test]
fn top_p_keeps_the_smallest_set_that_reaches_the_mass() {
    let logits = [0.5_f32.ln(), 0.3_f32.ln(), 0.15_f32.ln(), 0.05_f32.ln()];
    let at = |top_p| dist(&logits, &Sampling { top_p, ..Sampling::default() }).ids().len();
    assert_eq!((at(0.4), at(0.79), at(0.9), at(0.99), at(1.0)), (1, 2, 3, 4, 4));
}

#[test]
fn min_p_is_relative_to_the_likeliest() {
    let logits = [0.5_f32.ln(), 0.3_f32.ln(), 0.2_f32.ln()];
    let s = Sampling { min_p: 0.5, ..Sampling::default() };
    assert_eq!(dist(&logits, &s).ids(), [0, 1]);
}

#[test]
fn penalties_count_the_drafts_ahead() {
    let s = Sampling { frequency_penalty: 1.0, presence_penalty: 0.5, ..Sampling::greedy() };
    let mut seen = Seen::default();
    seen.add_prompt(&[0]);
    let next = |seen: &Seen, ahead: &[Token]| {
        Dist::from_logits(&[3.0, 2.0, 1.0], &s, seen, ahead).unwrap().ids()[0]
    };
    assert_eq!(next(&seen, &[]), 0, "the prompt is not penalised by presence or frequency");
    assert_eq!(next(&seen, &[0]), 1);
    seen.add_output(&[0]);
    assert_eq!(next(&seen, &[]), 1);
    assert_eq!(next(&seen, &[1]), 0, "1.5 off both: token 0 leads again");
    assert_eq!(next(&seen, &[0, 1]), 2);
}

#[test]
fn repetition_penalty_covers_prompt_and_output() {
    let s = Sampling { repetition_penalty: 2.0, ..Sampling::greedy() };
    let mut seen = Seen::default();
    seen.add_prompt(&[0]);
    let d = Dist::from_logits(&[3.0, 2.0, -1.0], &s, &seen, &[]).unwrap();
    assert_eq!(d.ids(), [1]);
}

#[test]
fn a_mask_is_a_row_without_the_other_tokens() {
    let logits = [3.0, 9.0, 2.0, f32::NAN, 2.0, 1.0];
    let mask: Mask = [0, 2, 4, 5, 77].into_iter().collect();
    for (temperature, top_k, top_p) in [(0.0, 0, 1.0), (1.0, 0, 1.0), (0.7, 2, 1.0), (1.0, 3, 0.8)]
    {
        let bias = Arc::new(BTreeMap::from([(5, 1.5), (1, 50.0)]));
        let s = Sampling { temperature, top_k, top_p, ..Sampling::default() };
        let s = Sampling { logit_bias: bias, presence_penalty: 0.5, ..s };
        let masked = Dist::masked(&logits, &s, (&Seen::default(), &[4]), Some(&mask)).unwrap();
        let plain = Sampling { temperature, top_k, top_p, ..Sampling::default() };
        let few = dist(&[3.0, 2.0, 1.5, 2.5], &plain);
        let ids: Vec<Token> = few.ids().iter().map(|&i| [0, 2, 4, 5][i as usize]).collect();
        assert_eq!((masked.ids(), masked.probs()), (ids.as_slice(), few.probs()));
    }
    let nothing: Mask = [77].into_iter().collect();
    let seen = Seen::default();
    let none = Dist::masked(&logits, &Sampling::greedy(), (&seen, &[]), Some(&nothing));
    assert_eq!(none, Err(NotFinite));
}

#[test]
fn no_temperature_breaks_a_row() {
    for temperature in [0.0, f32::MIN_POSITIVE, 1e-39, 1e-5, 1e-4, 1e-3, 2.0] {
        for (top_p, min_p) in [(1.0, 0.0), (0.95, 0.0), (0.5, 0.9)] {
            let s = Sampling { temperature, top_p, min_p, ..Sampling::default() };
            let d = dist(&[3.0, -70.0, 88.0, 2.0], &s);
            assert_eq!(d.quantile(0.5), 2, "{temperature} {top_p} {min_p}");
        }
    }
}

#[test]
fn a_broken_device_is_noticed() {
    let s = Sampling::greedy();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let d = Dist::from_logits(&[0.0, bad], &s, &Seen::default(), &[]);
        assert_eq!(d, Err(NotFinite));
    }
    assert_eq!(Dist::from_logits(&[], &s, &Seen::default(), &[]), Err(NotFinite));
}

#[test]
fn out_of_range_parameters_are_refused_by_name() {
    let bad = Sampling { temperature: f32::NAN, ..Sampling::default() };
    let Err(Refusal::Invalid { field, .. }) = bad.check(10) else { panic!("refused") };
    assert_eq!(field, "temperature");
    let bias = Arc::new(BTreeMap::from([(10, 1.0)]));
    let bad = Sampling { logit_bias: bias, ..Sampling::default() };
    assert!(bad.check(10).is_err());
    assert!(bad.check(11).is_ok());
}

//! The acceptance law against the distribution that it must leave untouched.

use super::*;

const VOCAB: usize = 10;

/// A toy distribution over ten tokens; `sharpness` and `phase` give unlike shapes.
fn toy(phase: u64, sharpness: f32, support: usize) -> Dist {
    let weight = |t: u32| (uniform(phase, u64::from(t), Purpose::Draw) as f32 * sharpness).exp();
    Dist::from_weights((0..VOCAB as u32).take(support).map(|t| (t, weight(t))).collect()).unwrap()
}

/// Pearson's statistic of observed counts against `p`.
fn chi_square(counts: &[u64; VOCAB], p: &Dist) -> f64 {
    let n: u64 = counts.iter().sum();
    (0..VOCAB as u32)
        .filter(|&t| p.prob(t) > 0.0)
        .map(|t| {
            let expected = f64::from(p.prob(t)) * n as f64;
            (counts[t as usize] as f64 - expected).powi(2) / expected
        })
        .sum()
}

#[test]
fn emitted_tokens_follow_the_target_whatever_the_draft() {
    // 99.99th percentile of chi-square with 9 degrees of freedom: 33.7.
    for rule in [Rule::Ratio, Rule::Coupled] {
        for (case, q) in [toy(1, 4.0, 10), toy(2, 0.1, 10), toy(3, 6.0, 4), Dist::one_hot(3)]
            .into_iter()
            .enumerate()
        {
            let rows = [toy(1, 4.0, 10), toy(5, 3.0, 10), toy(6, 5.0, 10)];
            let mut counts = [[0_u64; VOCAB]; 3];
            for seed in 0..200_000 {
                let drafts: Vec<Token> = (0..2).map(|i| draft(rule, seed, 7 + i, &q)).collect();
                let qs = [q.clone(), q.clone()];
                let v = verdict(rule, seed, 7, (&drafts, &qs), |i| Ok(rows[i].clone())).unwrap();
                // Positions after the verdict are not decided yet: only count decided ones.
                for (i, &d) in drafts[..v.accepted].iter().enumerate() {
                    counts[i][d as usize] += 1;
                }
                counts[v.accepted][v.next as usize] += 1;
            }
            for (i, (counts, p)) in counts.iter().zip(&rows).enumerate() {
                let chi = chi_square(counts, p);
                assert!(chi < 33.7, "{rule:?} case {case} position {i}: chi-square {chi}");
            }
        }
    }
}

#[test]
fn the_ratio_rule_accepts_as_often_as_the_overlap_allows() {
    let (p, q) = (toy(1, 3.0, 10), toy(2, 3.0, 10));
    let overlap: f32 = (0..VOCAB as u32).map(|t| p.prob(t).min(q.prob(t))).sum();
    let rate = |rule| {
        let n = 100_000;
        let accepted: usize = (0..n)
            .map(|seed| {
                let d = draft(rule, seed, 0, &q);
                let qs = std::slice::from_ref(&q);
                verdict(rule, seed, 0, (&[d], qs), |_| Ok(p.clone())).unwrap().accepted
            })
            .sum();
        accepted as f32 / n as f32
    };
    let (ratio, coupled) = (rate(Rule::Ratio), rate(Rule::Coupled));
    assert!((ratio - overlap).abs() < 0.01, "{ratio} of at most {overlap}");
    assert!(coupled < ratio && coupled > overlap / (2.0 - overlap) - 0.01, "{coupled}");
}

#[test]
fn a_perfect_draft_is_always_accepted() {
    let p = toy(4, 2.0, 10);
    for rule in [Rule::Ratio, Rule::Coupled] {
        for seed in 0..2_000 {
            let d = draft(rule, seed, 3, &p);
            let qs = std::slice::from_ref(&p);
            let v = verdict(rule, seed, 3, (&[d], qs), |_| Ok(p.clone())).unwrap();
            assert_eq!(v.accepted, 1);
        }
    }
}

#[test]
fn coupled_text_is_the_text_without_drafts() {
    let (p, q) = (toy(1, 3.0, 10), toy(9, 1.0, 10));
    for seed in 0..5_000 {
        let d = draft(Rule::Coupled, seed, 0, &q);
        let qs = std::slice::from_ref(&q);
        let v = verdict(Rule::Coupled, seed, 0, (&[d], qs), |_| Ok(p.clone())).unwrap();
        let first = if v.accepted == 1 { d } else { v.next };
        assert_eq!(first, draw(Rule::Coupled, seed, 0, &p));
        if v.accepted == 1 {
            assert_eq!(v.next, draw(Rule::Coupled, seed, 1, &p));
        }
    }
}

#[test]
fn greedy_accepts_equal_tokens_only() {
    let qs = [Dist::one_hot(2), Dist::one_hot(5)];
    let rows = [Dist::one_hot(2), Dist::one_hot(4), Dist::one_hot(9)];
    for rule in [Rule::Ratio, Rule::Coupled] {
        let v = verdict(rule, 1, 0, (&[2, 5], &qs), |i| Ok(rows[i].clone())).unwrap();
        assert_eq!(v, Verdict { accepted: 1, next: 4 });
    }
}

#[test]
fn rows_after_a_rejection_are_never_asked_for() {
    let qs = [Dist::one_hot(2), Dist::one_hot(5)];
    let v = verdict(Rule::Ratio, 1, 0, (&[2, 5], &qs), |i| {
        assert_eq!(i, 0);
        Ok(Dist::one_hot(7))
    });
    assert_eq!(v, Ok(Verdict { accepted: 0, next: 7 }));
}

#[test]
fn drafts_that_stand_before_nonsense_are_kept() {
    let sure = |token| Dist::from_weights(vec![(token, 1.0)]).unwrap();
    let (drafts, q) = ([4, 5], [sure(4), sure(5)]);
    for rule in [Rule::Ratio, Rule::Coupled] {
        for nonsense_at in 0..=2 {
            let p = |i: usize| if i < nonsense_at { Ok(sure(drafts[i])) } else { Err(NotFinite) };
            let told = verdict(rule, 7, 0, (&drafts, &q), p);
            let kept = told.map(|v| (drafts[..v.accepted].to_vec(), v.next));
            let wanted = [Err(NotFinite), Ok((vec![], 4)), Ok((vec![4], 5))];
            assert_eq!(kept, wanted[nonsense_at]);
        }
    }
}

//! Which experts a token goes to, and what each counts.

/// How a token's experts are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    /// E.
    pub(super) experts: usize,
    /// K of them for each token.
    pub(super) per_token: usize,
    /// Whether the weights of the K sum to one; else all E would.
    pub(super) renormalise: bool,
}

/// Experts and weights of every token, `[M, K + 1]` each, the likeliest first and the shared one,
/// number E, last. `scores [M, E + 1]` are the router's, then the shared gate's.
pub(super) fn route(scores: &[f32], choice: Choice) -> (Vec<u32>, Vec<f32>) {
    let Choice { experts, per_token, renormalise } = choice;
    let tokens = scores.len() / (experts + 1);
    let mut ids = Vec::with_capacity(tokens * (per_token + 1));
    let mut weights = Vec::with_capacity(ids.capacity());
    for scores in scores.chunks_exact(experts + 1) {
        let (routed, gate) = scores.split_at(experts);
        let first = ids.len();
        choose(routed, per_token, &mut ids);
        // All of them relative to the largest, which is among the chosen.
        let largest = routed[ids[first] as usize];
        let of = |score: f32| (score - largest).exp();
        let chosen = ids[first..].iter().map(|&id| of(routed[id as usize]));
        weights.extend(chosen);
        let sum: f32 = match renormalise {
            true => weights[first..].iter().sum(),
            false => routed.iter().map(|&score| of(score)).sum(),
        };
        weights[first..].iter_mut().for_each(|weight| *weight /= sum);
        ids.push(experts as u32);
        weights.push(1.0 / (1.0 + (-gate[0]).exp()));
    }
    (ids, weights)
}

/// Appends the indices of the `count` largest scores, in falling order; of equals the first one
/// comes first. Scores that are no numbers are as good as any: their token is lost in any case.
fn choose(scores: &[f32], count: usize, ids: &mut Vec<u32>) {
    let first = ids.len();
    for (id, score) in (0..).zip(scores) {
        let chosen = &ids[first..];
        if chosen.len() == count {
            let least = chosen.last().map_or(0.0, |&last| scores[last as usize]);
            if *score <= least || score.is_nan() {
                continue;
            }
            ids.pop();
        }
        let behind = ids[first..].iter().rev().take_while(|&&id| scores[id as usize] < *score);
        ids.insert(ids.len() - behind.count(), id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(scores: &[f32], count: usize) -> Vec<u32> {
        let mut ids = vec![7];
        choose(scores, count, &mut ids);
        ids.split_off(1)
    }

    #[test]
    fn the_largest_are_chosen_and_of_equals_the_first() {
        let scores = [1.0, 3.0, -2.0, 3.0, 2.0, 3.0];
        assert_eq!(chosen(&scores, 1), [1]);
        assert_eq!(chosen(&scores, 2), [1, 3]);
        assert_eq!(chosen(&scores, 4), [1, 3, 5, 4]);
        assert_eq!(chosen(&scores, 6), [1, 3, 5, 4, 0, 2]);
        for count in 1..=3 {
            assert_eq!(chosen(&[f32::NAN, 1.0, f32::NAN], count).len(), count);
        }
    }

    #[test]
    fn weights_are_those_of_a_softmax() {
        let choice = |renormalise| Choice { experts: 3, per_token: 2, renormalise };
        let scores = [0.0, 2.0_f32.ln(), 5.0_f32.ln(), 0.0];
        let (ids, weights) = route(&scores, choice(false));
        assert_eq!(ids, [2, 1, 3]);
        let near = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(near(&weights, &[5.0 / 8.0, 2.0 / 8.0, 0.5]), "{weights:?}");
        let (_, weights) = route(&scores, choice(true));
        assert!(near(&weights, &[5.0 / 7.0, 2.0 / 7.0, 0.5]), "{weights:?}");
    }
}

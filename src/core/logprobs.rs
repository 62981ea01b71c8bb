//! What the model itself thought of a token: the logarithm of its probability by the plain softmax
//! of the logits, before temperature, penalties, truncation or a grammar had their say.

use crate::Token;

/// Most alternatives that may be asked for.
pub const ALTERNATIVES_MAX: u8 = 20;

/// One token that was generated, among others that were likely.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// Of the token itself.
    pub chosen: f32,
    /// The likeliest tokens, likeliest first, the lowest ids first at a tie.
    pub likeliest: Vec<(Token, f32)>,
}

impl Logprobs {
    /// Of `token` in one row of `logits` [vocab], with `most` alternatives.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "logarithms of probabilities are fp32")]
    pub fn of(logits: &[f32], token: Token, most: u8) -> Self {
        let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|&logit| f64::from((logit - top).exp())).sum();
        let whole = f64::from(top) + sum.ln();
        let log = |logit: f32| (f64::from(logit) - whole) as f32;
        let likeliest = likeliest(logits, most.into());
        Self {
            chosen: logits.get(token as usize).map_or(f32::NEG_INFINITY, |&logit| log(logit)),
            likeliest: likeliest.into_iter().map(|(id, logit)| (id, log(logit))).collect(),
        }
    }
}

/// The largest logits, in order.
fn likeliest(logits: &[f32], most: usize) -> Vec<(Token, f32)> {
    let mut best: Vec<(Token, f32)> = Vec::with_capacity(most + 1);
    for (id, &logit) in (0..).zip(logits) {
        if best.len() == most && best.last().is_none_or(|&(_, last)| last >= logit) {
            continue;
        }
        let place = best.partition_point(|&(_, other)| other >= logit);
        best.insert(place, (id, logit));
        best.truncate(most);
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_the_logarithm_of_the_softmax() {
        let logits = [0.5_f32.ln() + 70.0, 0.2_f32.ln() + 70.0, 0.3_f32.ln() + 70.0];
        let told = Logprobs::of(&logits, 1, 2);
        assert!((told.chosen - 0.2_f32.ln()).abs() < 1e-5, "{told:?}");
        assert_eq!(told.likeliest.iter().map(|&(id, _)| id).collect::<Vec<_>>(), [0, 2]);
        for (&(_, log), p) in told.likeliest.iter().zip([0.5_f32, 0.3]) {
            assert!((log - p.ln()).abs() < 1e-5, "{told:?}");
        }
        assert!(Logprobs::of(&logits, 0, 0).likeliest.is_empty());
    }

    #[test]
    fn the_likeliest_are_what_sorting_gives() {
        let logits: Vec<f32> =
            (0..3000_u64).map(|i| (i.wrapping_mul(2_654_435_761) % 401) as f32 / 9.0).collect();
        let mut sorted: Vec<(Token, f32)> = (0..).zip(logits.iter().copied()).collect();
        sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        for most in [0, 1, 7, 20] {
            assert_eq!(likeliest(&logits, most), sorted[..most], "{most}");
        }
    }
}

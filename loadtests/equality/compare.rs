//! What two answers to one prompt have in common, and the report on all of them.

use std::fmt::Write;

use serde_json::{Value, json};

use super::case::Case;
use crate::client::Seen;
use crate::report::Report;

/// Differences that are told in full.
const TOLD: usize = 10;
/// Bytes shown around a difference.
const AROUND: usize = 20;

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    text: String,
    tokens: usize,
    finish: Option<String>,
    drafts: Option<usize>,
    cached: usize,
}

impl Answer {
    pub(super) fn new(seen: Seen, drafts: Option<usize>) -> Self {
        let Seen { text, tokens, finish, cached, .. } = seen;
        Self { text, tokens, finish, drafts, cached }
    }

    /// The byte at which another answer differs; the length of the shorter one if that is all of
    /// the other's beginning; `None` if they are the same.
    fn differs(&self, other: &Self) -> Option<usize> {
        let pairs = self.text.bytes().zip(other.text.bytes());
        let common = pairs.take_while(|(a, b)| a == b).count();
        let same = self.text == other.text;
        (!same || self.tokens != other.tokens || self.finish != other.finish).then_some(common)
    }

    fn around(&self, at: usize) -> String {
        let (from, to) = (at.saturating_sub(AROUND), (at + AROUND).min(self.text.len()));
        let bytes = self.text.as_bytes().get(from.min(to)..to).unwrap_or_default();
        String::from_utf8_lossy(bytes).into_owned()
    }
}

/// An answer that is not what the request alone says.
#[derive(Clone, Debug)]
struct Difference {
    prompt: usize,
    at: usize,
    expected: Answer,
    got: Answer,
}

/// All prompts in one company.
#[derive(Clone, Debug)]
pub(super) struct Company {
    temperature: f64,
    size: usize,
    equal: usize,
    /// Answers that began from a warm prefix.
    warm: usize,
    different: Vec<Difference>,
}

impl Company {
    pub(super) fn new(
        temperature: f64,
        size: usize,
        expected: &[Answer],
        answers: &[Answer],
    ) -> Self {
        let mut different = Vec::new();
        for (prompt, (expected, got)) in expected.iter().zip(answers).enumerate() {
            if let Some(at) = expected.differs(got) {
                let (expected, got) = (expected.clone(), got.clone());
                different.push(Difference { prompt, at, expected, got });
            }
        }
        let equal = expected.len() - different.len();
        let warm = answers.iter().filter(|answer| answer.cached > 0).count();
        Self { temperature, size, equal, warm, different }
    }
}

pub(super) fn report(found: &[Company], cases: &[Case]) -> Report {
    let held = found.iter().all(|company| company.different.is_empty());
    let mut text = String::from("   T  at once  equal  unequal  begun warm\n");
    for c in found {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{:>4} {:>8} {:>6} {:>8} {:>11}",
            c.temperature,
            c.size,
            c.equal,
            c.different.len(),
            c.warm
        );
    }
    let all = found.iter().flat_map(|c| c.different.iter().map(move |d| (c, d)));
    for (company, d) in all.clone().take(TOLD) {
        let _ = writeln!(
            text,
            "T={} {} at once, prompt {} ({:?}), drafts {:?}, {} warm: differs at byte {}: {:?} \
             ({} tokens, {:?}) became {:?} ({} tokens, {:?})",
            company.temperature,
            company.size,
            d.prompt,
            cases[d.prompt].kind,
            d.got.drafts,
            d.got.cached,
            d.at,
            d.expected.around(d.at),
            d.expected.tokens,
            d.expected.finish,
            d.got.around(d.at),
            d.got.tokens,
            d.got.finish,
        );
    }
    text += "Compared with a lone answer without drafts: text to the byte, number of tokens, \
             reason of the end.\n";
    text += if held { "met: all texts are the same\n" } else { "NOT MET\n" };
    let difference = |(company, d): (&Company, &Difference)| {
        json!({"temperature": company.temperature, "at_once": company.size, "prompt": d.prompt,
            "drafts": d.got.drafts, "cached": d.got.cached, "at_byte": d.at,
            "expected": d.expected.text, "got": d.got.text,
            "expected_tokens": d.expected.tokens, "got_tokens": d.got.tokens})
    };
    let company = |c: &Company| {
        json!({"temperature": c.temperature, "at_once": c.size, "equal": c.equal,
            "unequal": c.different.len(), "warm": c.warm})
    };
    let companies: Vec<Value> = found.iter().map(company).collect();
    let differences: Vec<Value> = all.map(difference).collect();
    let json = json!({"scenario": "equality", "prompts": cases.len(), "companies": companies,
        "differences": differences, "met": held});
    Report { text, json, held }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(text: &str, tokens: usize) -> Answer {
        let finish = Some("length".into());
        Answer { text: text.into(), tokens, finish, drafts: None, cached: 0 }
    }

    #[test]
    fn the_first_different_byte_is_found() {
        let differs = |a: &str, b: &str| answer(a, 3).differs(&answer(b, 3));
        assert_eq!(differs("abc", "abc"), None);
        assert_eq!(differs("abc", "abd"), Some(2));
        assert_eq!(differs("abc", "ab"), Some(2));
        assert_eq!(differs("", "x"), Some(0));
    }

    #[test]
    fn the_same_text_of_other_tokens_is_another_answer() {
        assert_eq!(answer("abc", 3).differs(&answer("abc", 4)), Some(3));
        let stopped = Answer { finish: Some("stop".into()), ..answer("abc", 3) };
        assert_eq!(answer("abc", 3).differs(&stopped), Some(3));
    }

    #[test]
    fn one_difference_breaks_the_law() {
        let cases = [Case::new(1, 0, 8), Case::new(1, 1, 8)];
        let expected = [answer("a", 1), answer("ä", 1)];
        let good = Company::new(0.0, 8, &expected, &expected);
        assert!(report(std::slice::from_ref(&good), &cases).held);
        let bad = Company::new(0.0, 8, &expected, &[answer("a", 1), answer("o", 1)]);
        assert_eq!((bad.equal, bad.different.len()), (1, 1));
        let found = report(&[good, bad], &cases);
        assert!(!found.held && found.text.contains("prompt 1"), "{}", found.text);
    }
}

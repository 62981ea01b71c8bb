//! Prompts of different lengths and kinds.

use serde_json::{Value, json};

use crate::prompts::{Random, chat, passage, question};

/// What sort of conversation it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A short question, as the model was trained on.
    Question,
    /// A piece of real text.
    Passage,
    /// A real text long enough to be fed in several chunks.
    Long,
    /// Several turns and a system message.
    Talk,
    /// Letters and signs of other scripts, which are tokens of single bytes here.
    Foreign,
}

const KINDS: [Kind; 5] = [Kind::Question, Kind::Passage, Kind::Long, Kind::Talk, Kind::Foreign];

const FOREIGN: &str = "Ein süßer Bär läuft über die Brücke · 一只小猫在雨中 · Снег падает · 🐉🔥 \
    naïve façade · ¿Qué hora es? · x² + y² = z² · «Où est-elle ?» · \u{200b}\u{feff} ·";

/// One prompt with its limits.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Case {
    pub(super) kind: Kind,
    messages: Value,
    max_tokens: usize,
    /// Half of the answers run to their limit, past the model's own end.
    endless: bool,
    seed: u64,
}

impl Case {
    pub(super) fn new(seed: u64, number: usize, tokens_max: usize) -> Self {
        let mut random = Random::new(seed, number as u64);
        let kind = KINDS[number % KINDS.len()];
        let own = random.below(1_000_000);
        let text = |random: &mut Random, words: usize| passage(random, words).join(" ");
        let content = match kind {
            Kind::Question | Kind::Talk => question(own),
            Kind::Passage => {
                let words = 5 + random.below(95);
                text(&mut random, words)
            }
            Kind::Long => {
                let words = 120 + random.below(400);
                text(&mut random, words)
            }
            Kind::Foreign => {
                let letters: Vec<char> = FOREIGN.chars().collect();
                let start = random.below(letters.len() / 2);
                format!("{own} {}", letters[start..].iter().collect::<String>())
            }
        };
        let mut messages = json!([{"role": "user", "content": content}]);
        if kind == Kind::Talk {
            messages = json!([
                {"role": "system", "content": text(&mut random, 12)},
                {"role": "user", "content": question(own + 1)},
                {"role": "assistant", "content": text(&mut random, 30)},
                {"role": "user", "content": content},
            ]);
        }
        let max_tokens = tokens_max / 2 + random.below(tokens_max / 2 + 1);
        Self { kind, messages, max_tokens, endless: random.chance(50), seed: random.next() >> 12 }
    }

    /// The request, with drafts of this depth, or plainly one token after the other.
    pub(super) fn body(&self, temperature: f64, drafts: Option<usize>) -> Value {
        let mut body = chat("", self.max_tokens, temperature);
        body["messages"] = self.messages.clone();
        body["ignore_eos"] = self.endless.into();
        if temperature > 0.0 {
            body["seed"] = self.seed.into();
        }
        match drafts {
            Some(depth) => body["draft_tokens"] = depth.into(),
            None => body["generation_mode"] = "ar".into(),
        }
        body
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_follows_from_its_number_and_no_two_are_the_same() {
        let cases: Vec<Case> = (0..200).map(|n| Case::new(1, n, 48)).collect();
        for (n, case) in cases.iter().enumerate() {
            assert_eq!(*case, Case::new(1, n, 48));
            assert!((24..=48).contains(&case.max_tokens));
            assert!(cases[..n].iter().all(|other| other.messages != case.messages), "{n}");
        }
    }

    #[test]
    fn only_a_warm_request_has_a_seed() {
        let case = Case::new(1, 0, 48);
        assert_eq!(case.body(0.0, None).get("seed"), None);
        assert_eq!(case.body(0.8, Some(3))["seed"], case.seed);
        assert_eq!(case.body(0.8, Some(3))["draft_tokens"], 3);
        assert_eq!(case.body(0.0, None)["generation_mode"], "ar");
    }
}

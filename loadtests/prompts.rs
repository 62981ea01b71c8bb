//! Prompts from a seed: short questions, and passages of real text in an order of their own, so
//! that no two share more than a template.

use std::sync::LazyLock;

use serde_json::{Value, json};

/// Topics of short questions of the kind that a chat begins with.
pub(crate) const TOPICS: [&str; 12] = [
    "a dragon who is afraid of fire",
    "a boy and his kite",
    "a cat that lost its hat",
    "an old clock in a tower",
    "two friends at the sea",
    "a bird that could not sing",
    "a girl who built a boat",
    "a snowman in spring",
    "a fox and a lantern",
    "a baker and a mouse",
    "a train in the night",
    "a star that fell down",
];

/// Prose, law, settings and source: tokens of all sorts.
const FILES: [&str; 6] = [
    include_str!("../README.md"),
    include_str!("../LICENSE"),
    include_str!("../NOTICE"),
    include_str!("../config/mtplx.toml"),
    include_str!("client.rs"),
    include_str!("prompts.rs"),
];

static WORDS: LazyLock<Vec<&str>> =
    LazyLock::new(|| FILES.iter().flat_map(|file| file.split_whitespace()).collect());

/// SplitMix64: a number is a function of the seed and of how many were drawn before it.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// Draws of their own for each `stream` of one seed.
    pub(crate) fn new(seed: u64, stream: u64) -> Self {
        let mut start = Self(seed);
        Self(start.next() ^ Self(stream).next())
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`, which is small beside 2^64, so that all come as often.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n.max(1) as u64).unwrap_or(0)
    }

    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// So many words of real text, in spans of a line or three from all over.
pub(crate) fn passage(random: &mut Random, words: usize) -> Vec<&'static str> {
    let mut passage = Vec::with_capacity(words);
    while passage.len() < words {
        let span = (12 + random.below(36)).min(words - passage.len());
        let start = random.below(WORDS.len() - span);
        passage.extend(&WORDS[start..start + span]);
    }
    passage
}

/// A question that no other number asks.
pub(crate) fn question(number: usize) -> String {
    let topic = TOPICS[number % TOPICS.len()];
    format!("Tell me a short story about {topic}. It is story number {number}.")
}

/// The body of a streamed chat of one message.
pub(crate) fn chat(content: &str, max_tokens: usize, temperature: f64) -> Value {
    json!({
        "messages": [{"role": "user", "content": content}],
        "max_tokens": max_tokens,
        "temperature": temperature,
        "stream": true,
        "stream_options": {"include_usage": true},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_words_again_and_another_others() {
        let of = |seed, stream| passage(&mut Random::new(seed, stream), 300);
        assert_eq!(of(1, 2), of(1, 2));
        assert_ne!(of(1, 2), of(1, 3));
        assert_ne!(of(1, 2), of(2, 2));
        assert_eq!(of(1, 2).len(), 300);
    }

    #[test]
    fn draws_stay_below_their_bound_and_reach_all_of_it() {
        let mut random = Random::new(7, 0);
        let mut seen = [0; 5];
        (0..1000).for_each(|_| seen[random.below(5)] += 1);
        assert!(seen.iter().all(|&n| n > 150), "{seen:?}");
    }

    #[test]
    fn splitmix_gives_its_published_numbers() {
        let mut random = Random(1_234_567);
        let drawn: Vec<u64> = (0..2).map(|_| random.next()).collect();
        assert_eq!(drawn, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
    }
}

//! Texts as tokens, piece by piece, so that a conversation that goes on is not tokenized from its
//! beginning with every turn. Pieces begin at one added token of the chat template's, such as
//! `<|im_start|>`: tokenizers cut those out before they normalize, split and merge what is between
//! them, so the tokens of the pieces are those of the whole. That is tried once at the start, and
//! where it does not hold texts are tokenized whole.
//!
//! What is remembered is asked for by tenant and by whole texts, as hashes of both, and answered
//! with their tokens alone: nobody finds out by the time it takes what another tenant said.

use std::sync::Arc;
use std::time::Duration;

use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use mtplx_core::{Tenant, Token};
use tokenizers::{AddedToken, Tokenizer};

/// Memory for what is remembered, where nobody says: a dozen conversations of 25 000 tokens.
const BYTES_MAX: u64 = 6 << 20;
/// Of it, what a piece takes beside its tokens: its name, and its places in the cache's lists.
const PIECE_BYTES: usize = 512;
/// What nobody says again for so long is forgotten.
const IDLE: Duration = Duration::from_secs(3600);

/// A text's tokens, and from which byte to which each goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) ids: Vec<Token>,
    pub(super) offsets: Vec<(usize, usize)>,
}

impl Cut {
    fn of(tokenizer: &Tokenizer, text: &str) -> Result<Self, String> {
        let encoding = tokenizer.encode(text, false).map_err(|e| e.to_string())?;
        let (ids, offsets) = (encoding.get_ids().to_vec(), encoding.get_offsets().to_vec());
        Ok(Self { ids, offsets })
    }

    fn add(&mut self, piece: &Self, at: usize) {
        self.ids.extend_from_slice(&piece.ids);
        self.offsets.extend(piece.offsets.iter().map(|&(from, to)| (at + from, at + to)));
    }

    fn bytes(&self) -> usize {
        self.ids.len() * (size_of::<Token>() + size_of::<(usize, usize)>())
    }
}

/// Pieces that were tokenized before.
pub(super) struct Cuts {
    /// What a piece begins with; none where texts are to be tokenized whole.
    mark: Option<String>,
    known: Cache<blake3::Hash, Arc<Cut>>,
}

impl Cuts {
    pub(super) fn new<'a>(
        tokenizer: &Tokenizer,
        added: impl Iterator<Item = &'a AddedToken> + Clone,
        template: Option<&str>,
    ) -> Self {
        let mut cuts = Self { mark: None, known: memory(BYTES_MAX) };
        let Some(template) = template else { return cuts };
        let apart = added.clone().filter(|token| stands_apart(token, added.clone()));
        let often = |token: &&AddedToken| template.matches(token.content.as_str()).count();
        let mark = apart.max_by_key(often).filter(|token| often(token) > 0);
        cuts.mark = mark.map(|token| token.content.clone());
        let Some(mark) = &cuts.mark else { return cuts };
        let probe =
            format!("a{mark}b {mark} c\n{mark}\u{e9}e\u{301} 12 {mark}{mark} \u{1f600}\n\n");
        if cuts.cut(tokenizer, Tenant::default(), &probe) != Cut::of(tokenizer, &probe) {
            tracing::debug!(mark, "pieces of a text are not cut as the whole: none is remembered");
            cuts.mark = None;
        }
        cuts
    }

    /// With memory for so many bytes in place of the usual, and nothing in it yet.
    pub(super) fn remembering(self, bytes_max: u64) -> Self {
        Self { known: memory(bytes_max), ..self }
    }

    /// The tokens of a tenant's text.
    ///
    /// # Errors
    /// In the tokenizer's words.
    pub(super) fn cut(
        &self,
        tokenizer: &Tokenizer,
        tenant: Tenant,
        text: &str,
    ) -> Result<Cut, String> {
        let Some(mark) = &self.mark else { return Cut::of(tokenizer, text) };
        let starts = text.match_indices(mark.as_str()).map(|(at, _)| at).filter(|&at| at > 0);
        let ends = starts.chain([text.len()]);
        let (mut whole, mut from) = (Cut::default(), 0);
        for end in ends {
            let piece = &text[from..end];
            let name = name(tenant, piece);
            let known = match self.known.get(&name) {
                Some(known) => known,
                None => {
                    let new = Arc::new(Cut::of(tokenizer, piece)?);
                    self.known.insert(name, Arc::clone(&new));
                    new
                }
            };
            whole.add(&known, from);
            from = end;
        }
        Ok(whole)
    }

    /// Whether this piece was tokenized for this tenant.
    #[cfg(test)]
    pub(super) fn remembers(&self, tenant: Tenant, piece: &str) -> bool {
        self.known.contains_key(&name(tenant, piece))
    }
}

fn memory(bytes_max: u64) -> Cache<blake3::Hash, Arc<Cut>> {
    let weigh = |_: &blake3::Hash, cut: &Arc<Cut>| {
        u32::try_from(PIECE_BYTES + cut.bytes()).unwrap_or(u32::MAX)
    };
    let known = Cache::builder().weigher(weigh).max_capacity(bytes_max).time_to_idle(IDLE);
    // The default policy refuses newcomers when full; a new conversation is one.
    known.eviction_policy(EvictionPolicy::lru()).build()
}

fn name(tenant: Tenant, piece: &str) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&tenant.0.to_le_bytes());
    hasher.update(piece.as_bytes());
    hasher.finalize()
}

/// Whether a token is cut out wherever it is written, whatever stands around it, and takes nothing
/// of that with it.
fn stands_apart<'a>(token: &AddedToken, mut added: impl Iterator<Item = &'a AddedToken>) -> bool {
    let own = token.content.as_str();
    let plain = !(token.normalized || token.lstrip || token.rstrip || token.single_word);
    // One that begins before it and reaches into it, or holds it, would be found in its place.
    let hides = |other: &AddedToken| {
        let other = other.content.as_str();
        let starts = own.char_indices().skip(1).map(|(at, _)| &own[..at]);
        other != own && (other.contains(own) || starts.clone().any(|s| other.ends_with(s)))
    };
    plain && !own.is_empty() && !added.any(hides)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::tiny;
    use super::*;

    const MINE: Tenant = Tenant(3);

    fn cuts(tokenizer: &Tokenizer) -> Cuts {
        let added: Vec<AddedToken> = tokenizer.get_added_tokens_decoder().into_values().collect();
        Cuts::new(tokenizer, added.iter(), Some("<|im_start|>a<|im_end|>b<|im_start|>"))
    }

    #[test]
    fn a_token_within_or_across_another_does_not_stand_apart() {
        let token = |content: &str| AddedToken::from(content, true);
        let all = ["<|a|>", "<|b|>", "x<|b|>", "<|c|>", "y<"].map(token);
        let apart = |content: &str| stands_apart(&token(content), all.iter());
        // The last one ends with what all begin with.
        assert!(!apart("<|a|>") && apart("y<"));
        let all = &all[..4];
        let apart = |content: &str| stands_apart(&token(content), all.iter());
        assert!(apart("<|a|>") && !apart("<|b|>") && apart("x<|b|>"));
        assert!(!stands_apart(&token("<|a|>").lstrip(true), all.iter()));
    }

    #[test]
    fn a_conversation_is_tokenized_once_piece_by_piece() {
        let text = tiny();
        let tokenizer = &text.tokenizer;
        let cuts = cuts(tokenizer);
        assert_eq!(cuts.mark.as_deref(), Some("<|im_start|>"));
        let before = cuts.known.iter().count();
        let first = "<|im_start|>user\nA dragon?<|im_end|>\n";
        let whole = format!("{first}<|im_start|>assistant\n");
        cuts.cut(tokenizer, MINE, &whole).unwrap();
        assert_eq!(cuts.known.iter().count(), before + 2);
        let longer = format!("{first}<|im_start|>assistant\nYes.<|im_end|>\n");
        assert_eq!(cuts.cut(tokenizer, MINE, &longer), Cut::of(tokenizer, &longer));
        assert_eq!(cuts.known.iter().count(), before + 3);
    }

    #[test]
    fn what_is_remembered_keeps_to_its_memory() {
        let text = tiny();
        let tokenizer = &text.tokenizer;
        for (bytes_max, most) in [(0, 0), (4 * PIECE_BYTES as u64, 3)] {
            let cuts = cuts(tokenizer).remembering(bytes_max);
            for word in 0..20 {
                let text = format!("<|im_start|>user\n{word}<|im_end|>\n");
                assert_eq!(cuts.cut(tokenizer, MINE, &text), Cut::of(tokenizer, &text));
            }
            cuts.known.run_pending_tasks();
            let count = cuts.known.entry_count();
            assert!(count <= most && (most == 0 || count > 0), "{count} in {bytes_max} bytes");
        }
    }

    #[test]
    fn what_one_tenant_said_is_no_quicker_for_another() {
        let text = tiny();
        let tokenizer = &text.tokenizer;
        let cuts = cuts(tokenizer);
        let whole = "<|im_start|>user\nA secret dragon.<|im_end|>\n";
        let before = cuts.known.iter().count();
        for (tenant, known) in [(MINE, 1), (MINE, 1), (Tenant(4), 2), (Tenant(4), 2)] {
            assert_eq!(cuts.cut(tokenizer, tenant, whole), Cut::of(tokenizer, whole));
            assert_eq!(cuts.known.iter().count(), before + known);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 500,
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn the_tokens_of_the_pieces_are_those_of_the_whole(
            parts in prop::collection::vec(
                prop_oneof![
                    Just("<|im_start|>".to_owned()),
                    Just("<|im_end|>".to_owned()),
                    Just("<think>\n\n</think>\n\n".to_owned()),
                    Just("<|im_".to_owned()),
                    Just(" \n \t".to_owned()),
                    Just("e\u{301}\u{e9} \u{1f600}".to_owned()),
                    "[a-zA-Z0-9 .,'\n<|>_]{0,12}",
                    "\\PC{0,8}",
                ],
                0..14,
            ),
        ) {
            let tiny = tiny();
            let (tokenizer, text) = (&tiny.tokenizer, parts.concat());
            let cuts = cuts(tokenizer);
            for _ in 0..2 {
                prop_assert_eq!(cuts.cut(tokenizer, MINE, &text), Cut::of(tokenizer, &text));
            }
        }
    }
}

//! The memory guard: what a request will need, what there is, and so whether it is served now.
//!
//! Nothing is seated that the budget may not hold to its last token. Who does not fit makes warm
//! prefixes go first, then waits for those who run, and is refused only when neither is left: all
//! that is the batch's and the bank's doing; the arithmetic is here.

use std::fmt;

use crate::engine::EngineInfo;

/// What there is, in bytes; fixed once the engine is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// All that the process may use.
    pub bytes: u64,
    /// In use when nobody was served yet: weights, and the states of all slots.
    pub base: u64,
    /// What the largest step needs while it runs.
    pub step: u64,
}

impl Budget {
    /// Of an engine that has no bound.
    pub const NONE: Self = Self { bytes: u64::MAX, base: 0, step: 0 };

    fn left(&self, used: u64) -> u64 {
        self.bytes.saturating_sub(used.max(self.base)).saturating_sub(self.step)
    }
}

/// Too little memory for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// Bytes it needs, pages shared with others left out.
    pub needed: u64,
    /// Bytes that can be had for it.
    pub left: u64,
    /// Bytes of the budget.
    pub budget: u64,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { needed, left, budget } = *self;
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        write!(
            f,
            "this request needs {} MiB of memory for its tokens, and of the server's {} MiB only \
             {} MiB are left for it; shorten the prompt or lower max_tokens, or have the server's \
             engine.memory_budget raised",
            mib(needed),
            mib(budget),
            left >> 20
        )
    }
}

/// Bytes of a request that brings so many pages nobody has paid for yet. A state that it parks
/// counts beside them.
#[must_use]
pub fn needed(info: &EngineInfo, pages: usize) -> u64 {
    (pages as u64).saturating_mul(info.page_bytes).saturating_add(info.snapshot_bytes)
}

/// Whether `needed` more bytes fit while `used` are in use.
///
/// # Errors
/// By how much they do not.
pub fn check(info: &EngineInfo, used: u64, needed: u64) -> Result<(), Shortage> {
    let left = info.budget.left(used);
    if needed <= left {
        return Ok(());
    }
    Err(Shortage { needed, left, budget: info.budget.bytes })
}

/// Whether a sequence of `tokens` would fit if it were alone: if not, it need not wait.
///
/// # Errors
/// By how much it would not.
pub fn check_alone(info: &EngineInfo, tokens: usize) -> Result<(), Shortage> {
    check(info, 0, needed(info, tokens.div_ceil(info.page_tokens)))
}

/// Tokens of the longest sequence that would fit if it were alone.
#[must_use]
pub fn tokens_max(info: &EngineInfo) -> usize {
    let left = info.budget.left(0).saturating_sub(info.snapshot_bytes);
    let pages = usize::try_from(left / info.page_bytes.max(1)).unwrap_or(usize::MAX);
    pages.saturating_mul(info.page_tokens)
}

#[cfg(all(test, feature = "scripted"))]
mod tests {
    use super::*;
    use crate::engine::Engine;
    use crate::scripted::{Script, Scripted};

    /// Pages of 1 KiB for 16 tokens, states of 4 KiB.
    fn info(budget: Budget) -> EngineInfo {
        EngineInfo { budget, ..Scripted::small(Script::default()).info().clone() }
    }

    #[test]
    fn what_is_used_or_was_at_the_start_counts_whichever_is_more() {
        let info = info(Budget { bytes: 100 << 10, base: 60 << 10, step: 10 << 10 });
        assert_eq!(check(&info, 0, 30 << 10), Ok(()));
        let shortage = Shortage { needed: 31 << 10, left: 30 << 10, budget: 100 << 10 };
        assert_eq!(check(&info, 50 << 10, 31 << 10), Err(shortage));
        let shortage = Shortage { needed: 30 << 10, left: 10 << 10, budget: 100 << 10 };
        assert_eq!(check(&info, 80 << 10, 30 << 10), Err(shortage));
        assert_eq!(check(&info, u64::MAX, 1).unwrap_err().left, 0);
    }

    #[test]
    fn the_longest_sequence_is_the_last_that_fits_alone() {
        let info = info(Budget { bytes: 100 << 10, base: 60 << 10, step: 10 << 10 });
        // 30 KiB: a state, and 26 pages.
        assert_eq!(tokens_max(&info), 26 * 16);
        assert!(check_alone(&info, 26 * 16).is_ok() && check_alone(&info, 26 * 16 + 1).is_err());
    }

    #[test]
    fn without_a_bound_everything_fits() {
        let info = info(Budget::NONE);
        assert_eq!(check_alone(&info, usize::MAX / 2), Ok(()));
        assert!(tokens_max(&info) > usize::MAX / 2 / 1024);
    }

    #[test]
    fn a_shortage_says_what_was_needed_what_there_is_and_how_to_mend_it() {
        let shortage = Shortage { needed: 5 << 20, left: 3 << 20, budget: 9 << 20 };
        let text = shortage.to_string();
        for part in ["needs 5 MiB", "9 MiB", "3 MiB are left", "max_tokens", "memory_budget"] {
            assert!(text.contains(part), "{text}");
        }
    }
}

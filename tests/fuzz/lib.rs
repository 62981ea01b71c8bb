//! Fuzzing with plain seeded generators: inputs are mutated from a small corpus, run, and must
//! neither panic nor take more memory than their length allows.
//!
//! A target is an ordinary test beside the code that it tries. It declares [`memory::Counting`] as
//! the allocator of its test binary and calls [`fuzz`]. An input is a function of seed, target and
//! number, so whatever is found is found again; on top of it the input itself is shown.
//!
//! `MTPLX_FUZZ` sets how many inputs each target runs, `MTPLX_FUZZ_SEED` which ones,
//! `MTPLX_FUZZ_FIRST` where their numbers begin.

#![allow(clippy::print_stdout, reason = "a test says how much it did")]

use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Instant;

pub mod memory;
mod mutate;
pub mod random;

pub use mutate::Corpus;

use random::Random;

/// Inputs of each target where nobody says how many.
const INPUTS: u64 = 2000;

/// Memory that an input may take at its worst moment.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    /// Bytes for any input.
    pub fixed: usize,
    /// Bytes for each byte of it.
    pub each: usize,
}

impl Bound {
    fn of(self, input: usize) -> usize {
        self.fixed + self.each * input
    }
}

fn setting(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// Tries one target with inputs from this corpus. `cost` says how many times less often than the
/// cheapest targets it is run.
///
/// # Panics
/// If the target does, or takes more memory than the bound.
pub fn fuzz(
    target: &str,
    corpus: &Corpus,
    (bound, cost): (Bound, u64),
    mut run: impl FnMut(&[u8]),
) {
    let (first, seed) = (setting("MTPLX_FUZZ_FIRST", 0), setting("MTPLX_FUZZ_SEED", 1));
    let inputs = (setting("MTPLX_FUZZ", INPUTS) / cost).max(1);
    let mut hasher = DefaultHasher::new();
    (seed, target).hash(&mut hasher);
    let (began, mut worst) = (Instant::now(), 0);
    // What is made once and kept is not what an input takes.
    corpus.seeds().for_each(&mut run);
    for number in first..first + inputs {
        let input = corpus.mutated(&mut Random::new(hasher.finish(), number));
        let before = memory::begin();
        let ran = catch_unwind(AssertUnwindSafe(|| run(&input)));
        let took = memory::peak(before);
        worst = worst.max(took.saturating_sub(bound.each * input.len()));
        if let Err(panic) = ran {
            println!("{target} {number} panics on {}", shown(&input));
            resume_unwind(panic);
        }
        assert!(
            took <= bound.of(input.len()),
            "{target} {number}: {took} bytes for {} of input: {}",
            input.len(),
            shown(&input)
        );
    }
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{target}: {inputs} inputs in {seconds:.1} s; beside {} bytes for each of the input at \
         most {worst} of {} were taken",
        bound.each, bound.fixed
    );
}

/// An input as it can be pasted into a test.
fn shown(input: &[u8]) -> String {
    match std::str::from_utf8(input) {
        Ok(text) => format!("{text:?}"),
        Err(_) => format!("b\"{}\"", input.escape_ascii()),
    }
}

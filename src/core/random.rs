//! Stateless randomness: every number is a function of (seed, position, purpose), so rejected
//! drafts, other rows and restarts cannot change a later draw.

use crate::Token;

/// What a random number decides; numbers of different purposes are independent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Which token the MTP head proposes.
    Draft = 1,
    /// Whether a proposed token is accepted.
    Accept = 2,
    /// Which token is drawn from the target or residual distribution.
    Draw = 3,
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection with full avalanche.
const fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Absorbs one word into a running key; the constant is SplitMix64's increment.
const fn absorb(key: u64, word: u64) -> u64 {
    mix(key.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ mix(word.wrapping_add(0x9e37_79b9_7f4a_7c15)))
}

/// 64 random bits for the decision `purpose` about the token at absolute `position`.
#[must_use]
pub const fn bits(seed: u64, position: u64, purpose: Purpose) -> u64 {
    absorb(absorb(seed, position), purpose as u64)
}

/// A uniform number in [0, 1) with 52 bits.
#[must_use]
pub fn uniform(seed: u64, position: u64, purpose: Purpose) -> f64 {
    unit(bits(seed, position, purpose))
}

/// Standard Gumbel noise that belongs to `token` at `position`; shared by draft and target, which
/// is what couples their choices.
#[must_use]
pub fn gumbel(seed: u64, position: u64, token: Token) -> f64 {
    gumbel_of(absorb(bits(seed, position, Purpose::Draw), u64::from(token) + 1))
}

/// Finite for all bits: half a step away from both 0 and 1.
fn gumbel_of(bits: u64) -> f64 {
    let u = unit(bits) + 0.5 * STEP;
    -(-u.ln()).ln()
}

/// The seed of the `index`-th of `n` choices of one request; index 0 keeps the request's own.
#[must_use]
pub const fn derive(seed: u64, index: u64) -> u64 {
    if index == 0 { seed } else { absorb(seed, index) }
}

/// 2⁻⁵², the distance of neighbouring uniform numbers: half of it is exact beside any of them.
const STEP: f64 = f64::EPSILON;

#[expect(clippy::cast_precision_loss, reason = "52 bits are exact in f64")]
fn unit(bits: u64) -> f64 {
    (bits >> 12) as f64 * STEP
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_a_function_of_seed_position_and_purpose() {
        let a = uniform(1, 2, Purpose::Draft);
        assert_eq!(a, uniform(1, 2, Purpose::Draft));
        assert_ne!(a, uniform(1, 2, Purpose::Accept));
        assert_ne!(a, uniform(1, 3, Purpose::Draft));
        assert_ne!(a, uniform(2, 2, Purpose::Draft));
    }

    #[test]
    fn uniform_numbers_fill_the_unit_interval_evenly() {
        let mut cells = [0_u32; 64];
        for position in 0..64_000 {
            let u = uniform(7, position, Purpose::Draw);
            assert!((0.0..1.0).contains(&u));
            cells[(u * 64.0) as usize] += 1;
        }
        let chi: f64 = cells.iter().map(|&n| (f64::from(n) - 1000.0).powi(2) / 1000.0).sum();
        // 63 degrees of freedom: 110 is beyond the 99.9th percentile.
        assert!(chi < 110.0, "chi-square {chi}");
    }

    #[test]
    fn gumbel_noise_is_finite_at_both_ends() {
        for bits in [0, u64::MAX] {
            assert!(gumbel_of(bits).is_finite(), "{bits:x}");
        }
        assert!(gumbel_of(u64::MAX) > 30.0 && gumbel_of(0) < -3.0);
    }

    #[test]
    fn gumbel_noise_has_the_mean_of_its_law() {
        let n = 50_000_u32;
        let sum: f64 = (0..n).map(|t| gumbel(3, 9, t)).sum();
        let mean = sum / f64::from(n);
        assert!((mean - 0.577_215_66).abs() < 0.02, "mean {mean}");
    }
}

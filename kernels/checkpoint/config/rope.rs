//! Rotary positions: plain, or stretched by YaRN.

use super::POSITIONS_MAX;
use crate::checkpoint::Error;
use crate::checkpoint::json::Object;

/// Rotary position embedding of the first `dims` dimensions of every head, dimension i paired with
/// i + dims/2. For text, the family's three-axis positions are the same as this.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// The base of the frequencies.
    pub theta: f64,
    /// Rotated dimensions, even, at most the head's.
    pub dims: usize,
    /// How positions beyond the trained ones are reached.
    pub scaling: RopeScaling,
}

/// How positions beyond the trained ones are reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    Plain,
    /// By slowing the frequencies that turn less than once within the trained context.
    Yarn(Yarn),
}

/// The settings of YaRN (Peng et al. 2023), as transformers names them.
#[derive(Clone, Copy, Debug, PartialEq)]
#[expect(missing_docs, reason = "the names are those of the file")]
pub struct Yarn {
    pub factor: f64,
    pub original_max_position_embeddings: usize,
    pub beta_fast: f64,
    pub beta_slow: f64,
    pub truncate: bool,
    pub attention_factor: f64,
}

impl Rope {
    /// Radians per position [dims/2].
    #[must_use]
    pub fn frequencies(&self) -> Vec<f32> {
        let dims = self.dims as f64;
        let plain = |i: usize| self.theta.powf(-2.0 * i as f64 / dims);
        let frequency = |i: usize| match self.scaling {
            RopeScaling::Plain => plain(i),
            RopeScaling::Yarn(yarn) => {
                let slow = yarn.ramp(self.theta, dims, i as f64);
                plain(i) * (1.0 - slow) + plain(i) / yarn.factor * slow
            }
        };
        (0..self.dims / 2).map(|i| frequency(i) as f32).collect()
    }

    /// The factor of cosine and sine; 1 unless positions are stretched.
    #[must_use]
    pub fn magnitude(&self) -> f32 {
        match self.scaling {
            RopeScaling::Plain => 1.0,
            RopeScaling::Yarn(yarn) => yarn.attention_factor as f32,
        }
    }

    /// The positions that can be reached where config.json promises `stated`: published YaRN
    /// settings leave the promise at the trained length.
    pub(super) fn positions(&self, stated: usize) -> usize {
        match self.scaling {
            RopeScaling::Plain => stated,
            RopeScaling::Yarn(yarn) => {
                let reached = yarn.factor * yarn.original_max_position_embeddings as f64;
                stated.max(reached.min(POSITIONS_MAX as f64) as usize)
            }
        }
    }
}

impl Yarn {
    /// How far pair `i` is slowed: 0 not at all, 1 by the whole factor.
    fn ramp(&self, theta: f64, dims: f64, i: f64) -> f64 {
        let trained = self.original_max_position_embeddings as f64;
        // The pair that turns `turns` times within the trained context.
        let pair = |turns: f64| {
            dims * (trained / (turns * std::f64::consts::TAU)).ln() / (2.0 * theta.ln())
        };
        let (mut low, mut high) = (pair(self.beta_fast), pair(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dims - 1.0));
        if low == high {
            high += 0.001;
        }
        ((i - low) / (high - low)).clamp(0.0, 1.0)
    }
}

/// The rope of `text`: `rope_parameters`, or the older flat keys with `rope_scaling`.
pub(super) fn read(text: &Object<'_>, head_dim: usize, positions: usize) -> Result<Rope, Error> {
    let mut inner = text.object("rope_parameters")?;
    if inner.is_none() {
        inner = text.object("rope_scaling")?;
    }
    let inner = inner.as_ref().unwrap_or(text);
    // transformers lets the inner value win; a file in which they differ was edited by halves.
    let either = |key: &str| match (inner.number(key)?, text.number(key)?) {
        (Some(a), Some(b)) if a != b => {
            Err(inner.error(key, format!("is {a}, but {b} one level up")))
        }
        (a, b) => Ok(a.or(b)),
    };
    let theta = match either("rope_theta")? {
        Some(theta) if theta > 1.0 && theta.is_finite() => theta,
        _ => return Err(inner.wrong("rope_theta", "a number above 1")),
    };
    let Some(partial) = either("partial_rotary_factor")? else {
        return Err(inner.wrong("partial_rotary_factor", "a number above 0, at most 1"));
    };
    let dims = head_dim as f64 * partial;
    if !(dims >= 2.0 && partial <= 1.0 && dims.trunc() % 2.0 == 0.0) {
        let problem = format!(
            "is {partial}: of head_dim = {head_dim}, {dims} would turn, \
             expected an even number from 2 to {head_dim}"
        );
        return Err(inner.error("partial_rotary_factor", problem));
    }
    let (mut key, mut kind) = ("rope_type", inner.text("rope_type")?);
    if kind.is_none() {
        (key, kind) = ("type", inner.text("type")?);
    }
    let scaling = match kind {
        None | Some("default" | "mrope") => RopeScaling::Plain,
        Some("yarn") => RopeScaling::Yarn(yarn(inner, positions)?),
        Some(_) => return Err(inner.unsupported(key, "supported are default and yarn")),
    };
    Ok(Rope { theta, dims: dims as usize, scaling })
}

fn yarn(inner: &Object<'_>, positions: usize) -> Result<Yarn, Error> {
    let key = "original_max_position_embeddings";
    let trained = match inner.get(key) {
        None => positions,
        Some(_) => inner.size(key, POSITIONS_MAX)?,
    };
    let bounded = |key: &str, low: f64, high: f64| match inner.number(key)? {
        Some(n) if !(low..=high).contains(&n) => {
            Err(inner.wrong(key, &format!("a number from {low} to {high}")))
        }
        n => Ok(n),
    };
    let factor = match bounded("factor", 1.0, 1024.0)? {
        Some(factor) => factor,
        None => (positions as f64 / trained as f64).max(1.0),
    };
    let magnitude = |scale: f64| 0.1 * scale * factor.ln() + 1.0;
    let attention_factor = match bounded("attention_factor", 0.01, 100.0)? {
        Some(given) => given,
        None => match (bounded("mscale", 0.0, 100.0)?, bounded("mscale_all_dim", 0.0, 100.0)?) {
            (Some(a), Some(b)) if a != 0.0 && b != 0.0 => magnitude(a) / magnitude(b),
            _ => magnitude(1.0),
        },
    };
    Ok(Yarn {
        factor,
        original_max_position_embeddings: trained,
        beta_fast: bounded("beta_fast", 1e-3, 1e6)?.unwrap_or(32.0),
        beta_slow: bounded("beta_slow", 1e-3, 1e6)?.unwrap_or(1.0),
        truncate: inner.flag("truncate")?.unwrap_or(true),
        attention_factor,
    })
}

#[cfg(test)]
mod tests {
    use super::{Rope, RopeScaling, Yarn};

    fn stretched(theta: f64, dims: usize, factor: f64, trained: usize, truncate: bool) -> Rope {
        let yarn = Yarn {
            factor,
            original_max_position_embeddings: trained,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate,
            attention_factor: 1.0,
        };
        Rope { theta, dims, scaling: RopeScaling::Yarn(yarn) }
    }

    fn assert_near(rope: Rope, at: &[(usize, f64)]) {
        let frequencies = rope.frequencies();
        assert_eq!(frequencies.len(), rope.dims / 2);
        for &(i, expected) in at {
            let apart = (f64::from(frequencies[i]) - expected).abs();
            assert!(apart <= expected * 1e-6, "{i}: {} for {expected}", frequencies[i]);
        }
    }

    #[test]
    fn plain_frequencies_fall_from_one_by_equal_ratios() {
        let rope = Rope { theta: 1e4, dims: 8, scaling: RopeScaling::Plain };
        assert_eq!(rope.frequencies(), [1.0, 0.1, 0.01, 0.001]);
        assert_eq!((rope.magnitude(), rope.positions(4096)), (1.0, 4096));
    }

    // Expected numbers: transformers 5.23's formula, evaluated in double precision.
    #[test]
    fn yarn_slows_what_turns_less_than_once() {
        let published = stretched(1e7, 64, 4.0, 262_144, true);
        assert_near(
            published,
            &[
                (0, 1.0),
                (14, 0.000_865_964_323_360_065_4),
                (15, 0.000_474_239_822_680_104_6),
                (19, 3.707_224_982_068_04e-5),
                (22, 3.849_816_315_148_730_5e-6),
                (31, 4.137_042_749_857_954e-8),
            ],
        );
        let untruncated = stretched(1e4, 16, 2.0, 4096, false);
        assert_near(
            untruncated,
            &[
                (2, 0.1),
                (3, 0.029_616_664_741_887_19),
                (4, 0.007_704_647_680_752_956),
                (5, 0.001_911_180_573_873_918),
                (6, 0.000_5),
            ],
        );
    }
}

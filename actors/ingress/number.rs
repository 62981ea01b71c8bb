//! Numbers of bodies, from JSON's fp64 to the fp32 that they are used as.

use serde::{Deserialize, Deserializer};

/// Rounds to the nearest, but for what would become whole by it, which goes away from zero instead:
/// bounds are whole, and what lies beyond one by less than fp32 can tell must not come to lie on
/// it.
pub(super) fn narrow<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f32>, D::Error> {
    Ok(Option::<f64>::deserialize(from)?.map(narrowed))
}

#[expect(clippy::cast_possible_truncation, reason = "to the nearest, or to infinity")]
fn narrowed(wide: f64) -> f32 {
    let near = wide as f32;
    let inward = f64::from(near).abs() < wide.abs() && near.fract() == 0.0;
    match (inward, wide > 0.0) {
        (false, _) => near,
        (true, true) => near.next_up(),
        (true, false) => near.next_down(),
    }
}

#[cfg(test)]
mod tests {
    use super::narrowed;

    #[test]
    fn what_lies_beyond_a_bound_stays_beyond_it() {
        for bound in [-2.0_f64, 1.0, 2.0] {
            let beyond = if bound > 0.0 { bound.next_up() } else { bound.next_down() };
            assert!(f64::from(narrowed(beyond)).abs() > bound.abs(), "{beyond}");
            assert_eq!(f64::from(narrowed(bound)), bound);
        }
        assert!(narrowed(-1e-300) < 0.0);
    }

    #[test]
    fn other_numbers_are_the_nearest() {
        for number in [0.0, 0.1, 0.7, -1.3, 2.0_f64.next_down(), 1e300, -1e300] {
            assert_eq!(narrowed(number), number as f32, "{number}");
        }
    }
}

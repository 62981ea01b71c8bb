//! Whether two samples have one law: the chi-square test of homogeneity.

use std::collections::BTreeMap;

use anyhow::Result;
use mtplx_core::Token;
use statrs::distribution::{ChiSquared, ContinuousCDF};

/// Cells are pooled so that each expects at least so many draws of either sample.
const EXPECTED_MIN: f64 = 10.0;

/// The p-value of the hypothesis that `a` and `b`, of one size, have the same law; `None` where
/// they hold too little to tell.
///
/// # Errors
/// None that is known.
pub(super) fn p_value(
    a: impl Iterator<Item = Token>,
    b: impl Iterator<Item = Token>,
) -> Result<Option<f64>> {
    let mut cells: BTreeMap<Token, [f64; 2]> = BTreeMap::new();
    a.for_each(|token| cells.entry(token).or_default()[0] += 1.0);
    b.for_each(|token| cells.entry(token).or_default()[1] += 1.0);
    let (mut cells, few): (Vec<[f64; 2]>, Vec<[f64; 2]>) =
        cells.into_values().partition(|[x, y]| x + y >= 2.0 * EXPECTED_MIN);
    let rest = few.iter().fold([0.0; 2], |[x, y], cell| [x + cell[0], y + cell[1]]);
    cells.extend((rest[0] + rest[1] >= EXPECTED_MIN).then_some(rest));
    if cells.len() < 2 {
        return Ok(None);
    }
    let chi: f64 = cells.iter().map(|[x, y]| (x - y).powi(2) / (x + y)).sum();
    Ok(Some(ChiSquared::new((cells.len() - 1) as f64)?.sf(chi)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_law_passes_and_two_do_not() {
        let p = |a: &dyn Fn(u32) -> u32, b: &dyn Fn(u32) -> u32| {
            p_value((0..500).map(a), (0..500).map(b)).unwrap()
        };
        assert!(p(&|i| i % 4, &|i| (i + 1) % 4).unwrap() > 0.99);
        // A tenth of the mass is elsewhere.
        assert!(p(&|i| i % 4, &|i| if i % 10 == 0 { 3 } else { i % 4 }).unwrap() < 0.01);
        assert_eq!(p(&|_| 7, &|_| 7), None);
        assert!(p(&|_| 7, &|_| 8).unwrap() < 1e-9);
    }
}

//! What may change between steps: written by the tuner alone, read by the batch alone.

/// What may change between steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Knobs {
    /// Tokens to draft for rows that leave it open, by how many decode.
    pub depths: Depths,
    /// Rows that may run at once.
    pub rows_max: usize,
    /// Prompt tokens a step may feed while other rows decode, as long as it is not known what that
    /// costs, and always where there is no `stretch`.
    pub prefill_busy: usize,
    /// Tokens a step may feed in all, verify rows first: the bound of prompt chunks when nobody
    /// decodes.
    pub prefill_idle: usize,
    /// How many times as long as without it a step may take because it also feeds prompts while
    /// others decode; above 1.
    pub stretch: Option<f64>,
    /// Share of the time for pauses between steps: heat's wish. What is decoded does not depend on
    /// it.
    pub pause: f32,
}

impl Knobs {
    /// The same depth for all widths and chunks that do not follow the measured costs.
    #[must_use]
    pub fn fixed(depth: u8, rows_max: usize, (busy, idle): (usize, usize)) -> Self {
        let depths = Depths::all(depth);
        Self { depths, rows_max, prefill_busy: busy, prefill_idle: idle, stretch: None, pause: 0.0 }
    }
}

/// Widths of the batch: up to 8 rows each number by itself, for kernels work in tiles and a row
/// more may cost as much as eight; above, two for every doubling: 9-12, 13-16, 17-24, … the last
/// holds all above.
pub const WIDTHS: usize = 18;

/// Up to so many rows each number is a width of its own.
const EACH: usize = 8;

/// The width of a number of rows.
#[must_use]
pub fn width_of(rows: usize) -> usize {
    if rows <= EACH {
        return rows.saturating_sub(1);
    }
    // What a file says may be any number.
    let rows = rows.min(EACH << WIDTHS);
    let whole = rows.next_power_of_two();
    let half = usize::from(rows * 4 <= whole * 3);
    let octave = (whole / EACH).trailing_zeros() as usize;
    (EACH - 1 + 2 * octave - half).min(WIDTHS - 1)
}

/// The most rows of a width.
#[must_use]
pub fn rows_of(width: usize) -> usize {
    if width < EACH {
        return width + 1;
    }
    let (octave, half) = ((width + 2 - EACH) / 2, (width - EACH).is_multiple_of(2));
    let whole = EACH << octave;
    if half { whole / 4 * 3 } else { whole }
}

/// A draft depth for every width of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Depths([u8; WIDTHS]);

impl Depths {
    /// The same for all widths.
    #[must_use]
    pub fn all(depth: u8) -> Self {
        Self([depth; WIDTHS])
    }

    /// One for each width, narrowest first.
    pub(crate) fn of_widths(depth: impl FnMut(usize) -> u8) -> Self {
        Self(std::array::from_fn(depth))
    }

    /// The depth while `rows` decode.
    #[must_use]
    pub fn at(&self, rows: usize) -> u8 {
        self.0[width_of(rows)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_are_each_number_first_and_half_octaves_then() {
        let widths = [1, 2, 3, 7, 8, 9, 12, 13, 16, 17, 24, 25, 192, 193, 256].map(width_of);
        assert_eq!(widths, [0, 1, 2, 6, 7, 8, 8, 9, 9, 10, 10, 11, 16, 17, 17]);
        let most: Vec<usize> = (0..WIDTHS).map(rows_of).collect();
        assert_eq!(most[6..13], [7, 8, 12, 16, 24, 32, 48]);
        assert!((0..WIDTHS).all(|width| width_of(rows_of(width)) == width));
        assert_eq!([257, 1 << 40, usize::MAX].map(width_of), [WIDTHS - 1; 3]);
    }
}

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

/// Bands of row counts: 1, 2, 3-4, 5-8, 9-16, … the last holds all above.
pub(crate) const BANDS: usize = 12;

/// The band of a number of rows.
pub(crate) fn band_of(rows: usize) -> usize {
    (rows.next_power_of_two().trailing_zeros() as usize).min(BANDS - 1)
}

/// A draft depth for every width of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Depths([u8; BANDS]);

impl Depths {
    /// The same for all widths.
    #[must_use]
    pub fn all(depth: u8) -> Self {
        Self([depth; BANDS])
    }

    /// One for each band, narrowest first.
    pub(crate) fn of_bands(depth: impl FnMut(usize) -> u8) -> Self {
        Self(std::array::from_fn(depth))
    }

    /// The depth while `rows` decode.
    #[must_use]
    pub fn at(&self, rows: usize) -> u8 {
        self.0[band_of(rows)]
    }
}

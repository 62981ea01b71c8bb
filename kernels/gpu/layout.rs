//! How quantised weights lie for `verify_qmm`, and the pure twin that reads them so.
//!
//! Outputs go in tiles of 32, columns in steps of 64. What a group of 32 threads needs for one tile
//! and step lies together, in the order in which its threads take it: 16 bytes a thread and load.
//! Thread `4 g + c` holds outputs `g`, `g + 8`, `g + 16`, `g + 24` of the tile and columns
//! `8 c .. 8 c + 8` and `32 + 8 c ..` of the step: what the tensor cores' fragments want, and
//! 16-byte pieces of x.
//!
//! * codes: u32 [tiles, steps, 2 halves · planes, 32 threads, 4]. Word `j` of a half of 16 outputs
//!   holds 2 outputs × 4 columns: nibble `i + 4 b` is output `g + 8 (i mod 2)` of the half, column
//!   `32 (j / 2) + 8 c + 4 (j mod 2) + 2 (i / 2) + b`. An 8-bit code is two planes of nibbles, the
//!   lower ones first.
//! * sides: [tiles, steps, groups of a step, 8 g, 4 r, (scale, bias)] of output `g + 8 r`. A group
//!   of 128 is told twice.

use rayon::prelude::*;

/// Outputs of a tile.
pub const TILE: usize = 32;
/// Columns of a step.
pub const STEP: usize = 64;
/// Fewer tiles than this do not fill a GPU with blocks of four warps.
pub const TILES_FEW: usize = 400;

/// The form of an affine matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Form {
    /// Outputs.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Bits of a code.
    pub bits: usize,
    /// Columns that share a scale and a bias.
    pub group: usize,
}

impl Form {
    /// Whether the kernels know it.
    #[must_use]
    pub fn fits(&self) -> bool {
        let format = matches!(self.bits, 4 | 8) && matches!(self.group, 32 | 64 | 128);
        // A column's index and a tile's offset are ints on the device.
        let sized = self.cols > 0 && self.rows > 0 && self.rows.max(self.cols) < 1 << 24;
        format && sized && self.cols.is_multiple_of(STEP.max(self.group))
    }

    /// Tiles of outputs; the last may be ragged.
    #[must_use]
    pub fn tiles(&self) -> usize {
        self.rows.div_ceil(TILE)
    }

    /// Steps of columns.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.cols / STEP
    }

    /// Planes of nibbles.
    #[must_use]
    pub fn planes(&self) -> usize {
        self.bits / 4
    }

    /// Pairs of scale and bias that a step holds of an output.
    #[must_use]
    pub fn subs(&self) -> usize {
        (STEP / self.group).max(1)
    }

    /// Words of packed codes.
    #[must_use]
    pub fn words(&self) -> usize {
        self.tiles() * self.steps() * self.planes() * 256
    }

    /// Packed scales and biases together.
    #[must_use]
    pub fn sides(&self) -> usize {
        self.tiles() * self.steps() * self.subs() * 64
    }

    /// Warps that divide a tile's columns: a fact of the form, whatever the rows of x and the GPU,
    /// so that sums have one order.
    #[must_use]
    pub fn parts(&self) -> usize {
        if self.tiles() < TILES_FEW { 8 } else { 4 }
    }

    /// Words of a row as checkpoints store it.
    fn row_words(&self) -> usize {
        self.cols * self.bits / 32
    }

    /// The code of a row of stored words.
    fn stored(&self, words: &[u32], col: usize) -> u32 {
        let bit = col * self.bits;
        words[bit / 32] >> (bit % 32) & ((1 << self.bits) - 1)
    }

    /// Packs stored codes, `words` [rows, cols · bits / 32]; outputs beyond the last have zeros.
    #[must_use]
    pub fn pack(&self, words: &[u32]) -> Vec<u32> {
        let mut packed = vec![0; self.words()];
        let (wide, planes) = (self.row_words(), self.planes());
        let tile_words = self.steps() * planes * 256;
        packed.par_chunks_mut(tile_words).enumerate().for_each(|(tile, out)| {
            for (at, word) in out.iter_mut().enumerate() {
                let (j, thread) = (at % 4, at / 4 % 32);
                let (load, step) = (at / 128 % (2 * planes), at / (256 * planes));
                let (half, plane) = (load / planes, load % planes);
                for nibble in 0..8 {
                    let (row, col) = place(half, thread, j, nibble);
                    let row = tile * TILE + row;
                    if row < self.rows {
                        let code = self.stored(&words[row * wide..], step * STEP + col);
                        *word |= (code >> (4 * plane) & 15) << (4 * nibble);
                    }
                }
            }
        });
        packed
    }

    /// Packs scales and biases, each [rows, cols / group].
    #[must_use]
    pub fn pack_sides<T: Copy + Default + Send + Sync>(
        &self,
        scales: &[T],
        biases: &[T],
    ) -> Vec<T> {
        let mut packed = vec![T::default(); self.sides()];
        let (subs, groups) = (self.subs(), self.cols / self.group);
        packed.par_chunks_mut(self.steps() * subs * 64).enumerate().for_each(|(tile, out)| {
            for (at, side) in out.iter_mut().enumerate() {
                let (r, g, sub) = (at / 2 % 4, at / 8 % 8, at / 64 % subs);
                let (row, step) = (tile * TILE + g + 8 * r, at / (64 * subs));
                let group = (step * STEP + sub * (STEP / subs)) / self.group;
                if row < self.rows {
                    let from = if at % 2 == 0 { scales } else { biases };
                    *side = from[row * groups + group];
                }
            }
        });
        packed
    }

    /// The pure twin: the weight at `row` and `col` as the kernels read it.
    #[must_use]
    pub fn weight(&self, words: &[u32], sides: &[f32], row: usize, col: usize) -> f64 {
        let (planes, subs) = (self.planes(), self.subs());
        let (tile, step) = (row / TILE, col / STEP);
        let (half, g, high) = (row % TILE / 16, row % 8, row % 16 / 8);
        let (c, j) = (col % 32 / 8, col % STEP / 32 * 2 + col % 8 / 4);
        let nibble = high + 2 * (col % 4 / 2) + 4 * (col % 2);
        let block = tile * self.steps() + step;
        let code = (0..planes).fold(0, |code, plane| {
            let load = block * 2 * planes + half * planes + plane;
            let word = words[load * 128 + (4 * g + c) * 4 + j];
            code | (word >> (4 * nibble) & 15) << (4 * plane)
        });
        let sub = col % STEP * subs / STEP;
        let side = (block * subs + sub) * 64 + g * 8 + row % TILE / 8 * 2;
        f64::from(sides[side]) * f64::from(code) + f64::from(sides[side + 1])
    }

    /// The pure twin: `y [M, rows] = x [M, cols] · Wᵀ` in double precision.
    #[must_use]
    pub fn product(&self, words: &[u32], sides: &[f32], x: &[f32]) -> Vec<f64> {
        let mut y = Vec::with_capacity(x.len() / self.cols * self.rows);
        let matrix: Vec<f64> = (0..self.rows * self.cols)
            .map(|at| self.weight(words, sides, at / self.cols, at % self.cols))
            .collect();
        for x in x.chunks(self.cols) {
            let dot = |w: &[f64]| w.iter().zip(x).map(|(w, x)| w * f64::from(*x)).sum::<f64>();
            y.extend(matrix.chunks(self.cols).map(dot));
        }
        y
    }
}

/// Output and column, within tile and step, of a nibble.
fn place(half: usize, thread: usize, j: usize, nibble: usize) -> (usize, usize) {
    let (g, c, i, b) = (thread / 4, thread % 4, nibble % 4, nibble / 4);
    (16 * half + g + 8 * (i % 2), 32 * (j / 2) + 8 * c + 4 * (j % 2) + 2 * (i / 2) + b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(len: usize, mut seed: u32) -> Vec<u32> {
        std::iter::repeat_with(|| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            seed ^ seed >> 15
        })
        .take(len)
        .collect()
    }

    #[test]
    fn every_code_scale_and_bias_is_found_again_where_the_kernels_look() {
        for bits in [4, 8] {
            for group in [32, 64, 128] {
                let form = Form { rows: 43, cols: 256, bits, group };
                assert!(form.fits());
                let stored = noise(form.rows * form.row_words(), 7);
                let groups = form.rows * form.cols / group;
                let scales: Vec<f32> = (0..groups).map(|i| 1.0 + i as f32).collect();
                let biases: Vec<f32> = (0..groups).map(|i| -(i as f32) / 8.0).collect();
                let (words, sides) = (form.pack(&stored), form.pack_sides(&scales, &biases));
                for row in 0..form.rows {
                    for col in 0..form.cols {
                        let code = form.stored(&stored[row * form.row_words()..], col);
                        let at = row * form.cols / group + col / group;
                        let expected = f64::from(scales[at]) * f64::from(code);
                        let expected = expected + f64::from(biases[at]);
                        assert_eq!(form.weight(&words, &sides, row, col), expected);
                    }
                }
            }
        }
    }

    #[test]
    fn forms_that_the_kernels_do_not_know_are_told_apart() {
        let fits = |rows, cols, bits, group| Form { rows, cols, bits, group }.fits();
        assert!(fits(1, 64, 4, 64) && fits(48, 5120, 8, 32) && fits(7, 128, 4, 128));
        assert!(!fits(8, 96, 4, 32), "half a step");
        assert!(!fits(8, 128, 5, 64) && !fits(8, 128, 4, 16) && !fits(0, 64, 4, 64));
        assert!(!fits(8, 192, 4, 128), "a group beyond the last column");
    }
}

//! Panels of affine codes, in planes of bits that unpack into bytes by shift and mask.
//!
//! Thirty-two steps of k of sixteen rows are `bits` lines. A line belongs to a plane of 8, 4, 2
//! or 1 bits; in each byte of a row's word lie the fields of several quads (four steps of k), so
//! that one shift and one mask give a quad of every row. Odd widths are two planes: three bits
//! are 2 + 1, five 4 + 1, six 4 + 2. No bit is wasted.

use super::{Affine, panels};
use crate::cpu::simd::{LANES, Line, Simd};

/// An affine quantised matrix in panels of sixteen rows; the last is filled up with zeros.
pub(in crate::cpu) struct Coded {
    pub(in crate::cpu) rows: usize,
    pub(in crate::cpu) cols: usize,
    pub(in crate::cpu) bits: u32,
    /// Steps of k that share a scale.
    pub(in crate::cpu) group: usize,
    /// `K / group`.
    pub(in crate::cpu) groups: usize,
    /// `[panels][K / 32][bits]`.
    lines: Vec<Line<u32>>,
    /// `[panels][K / group][scale, bias]`.
    scales: Vec<Line<f32>>,
}

/// The largest group.
pub(in crate::cpu) const GROUP_MAX: usize = 128;
/// Steps of k that one word per bit holds.
pub(in crate::cpu) const SPAN: usize = 32;
/// Steps of k in the bytes of a word.
pub(in crate::cpu) const QUAD: usize = 4;
/// Words' worth of bytes in a span.
pub(in crate::cpu) const SPAN_QUADS: usize = SPAN / QUAD;

/// The widths of the planes: lower bits, upper bits.
const fn planes(bits: u32) -> (u32, u32) {
    match bits {
        3 => (2, 1),
        5 => (4, 1),
        6 => (4, 2),
        other => (other, 0),
    }
}

/// Where plane of `width` bits keeps quad `quad` of a span: the line, and the shift in it.
#[inline(always)]
const fn place(width: u32, quad: usize) -> (usize, u32) {
    let bit = quad as u32 * width;
    ((bit / 8) as usize, bit % 8)
}

/// `width` ones in each byte.
const fn mask(width: u32) -> u32 {
    0x0101_0101 * ((1 << width) - 1)
}

/// The bytes of quad `quad` of sixteen rows, from the lines of a span.
#[inline(always)]
pub(in crate::cpu) fn quad_bytes<S: Simd, const BITS: usize>(
    simd: S,
    lines: &[Line<u32>; BITS],
    quad: usize,
) -> S::W {
    let (low, high) = const { planes(BITS as u32) };
    let (line, shift) = place(low, quad);
    let bytes = simd.load_words(&lines[line].0);
    if low == 8 {
        return bytes;
    }
    let bytes = simd.bits(bytes, shift, const { mask(planes(BITS as u32).0) }, 0);
    if high == 0 {
        return bytes;
    }
    let (line, shift) = place(high, quad);
    let above = simd.load_words(&lines[low as usize + line].0);
    simd.or_words(bytes, simd.bits(above, shift, const { mask(planes(BITS as u32).1) }, low))
}

/// Code `k` of a row: MLX's packing of any width is one little-endian stream of bits.
fn code(words: &[u32], bits: u32, k: usize) -> u32 {
    let bit = k * bits as usize;
    let (word, shift) = (bit / 32, bit % 32);
    let next = words.get(word + 1).copied().unwrap_or(0);
    let pair = u64::from(words[word]) | u64::from(next) << 32;
    (pair >> shift) as u32 & ((1 << bits) - 1)
}

// === impl Coded ===

impl Coded {
    pub(super) fn new(from: Affine<'_>, rows: usize, cols: usize) -> Self {
        let Affine { bits, group, words, scales, biases } = from;
        let width = bits as usize;
        let (low, high) = planes(bits);
        let per_row = cols * width / 32;
        let row_of = |row: usize| &words[row * per_row..][..per_row];
        let lines = panels(rows, cols / SPAN * width, Line::<u32>::ZERO, |line, lane, row, at| {
            // A line gathers fields of one plane, of all quads that have their place in it.
            let (span, at) = (at / width, at % width);
            let (plane, below, at) =
                if at < low as usize { (low, 0, at) } else { (high, low, at - low as usize) };
            for quad in (0..SPAN_QUADS).filter(|&quad| place(plane, quad).0 == at) {
                for byte in 0..QUAD {
                    let code = code(row_of(row), bits, span * SPAN + quad * QUAD + byte);
                    let field = code >> below & ((1 << plane) - 1);
                    line.0[lane] |= field << (byte as u32 * 8 + place(plane, quad).1);
                }
            }
        });
        let groups = cols / group;
        let scales = panels(rows, groups * 2, Line::<f32>::ZERO, |line, lane, row, at| {
            let from = if at % 2 == 0 { scales } else { biases };
            line.0[lane] = from[row * groups + at / 2];
        });
        Self { rows, cols, bits, group, groups, lines, scales }
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(self.lines.as_slice()) + size_of_val(self.scales.as_slice())
    }

    /// The lines of group `group` of `panel`.
    #[inline(always)]
    pub(in crate::cpu) fn lines(&self, panel: usize, group: usize) -> &[Line<u32>] {
        let per_group = self.group / SPAN * self.bits as usize;
        &self.lines[(panel * self.groups + group) * per_group..][..per_group]
    }

    /// Scales and biases of the sixteen rows of `panel` in group `group`.
    #[inline(always)]
    pub(in crate::cpu) fn scales(&self, panel: usize, group: usize) -> &[Line<f32>; 2] {
        &self.scales.as_chunks().0[panel * self.groups + group]
    }

    /// One row as fp32.
    pub(super) fn read_row(&self, row: usize, out: &mut [f32]) {
        let (panel, lane) = (row / LANES, row % LANES);
        let (low, high) = planes(self.bits);
        for (group, out) in out.chunks_mut(self.group).enumerate() {
            let lines = self.lines(panel, group);
            let scales = self.scales(panel, group);
            for (k, out) in out.iter_mut().enumerate() {
                let lines = &lines[k / SPAN * self.bits as usize..];
                let (quad, byte) = (k % SPAN / QUAD, (k % QUAD) as u32 * 8);
                let field = |first: u32, width: u32| {
                    let (line, shift) = place(width, quad);
                    let word = lines[first as usize + line].0[lane];
                    word >> (byte + shift) & ((1 << width) - 1)
                };
                let above = if high > 0 { field(low, high) } else { 0 };
                let code = field(0, low) | above << low;
                *out = scales[0].0[lane] * code as f32 + scales[1].0[lane];
            }
        }
    }
}

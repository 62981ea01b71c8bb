//! From a checkpoint's affine matrices to the layout of the GPU kernels.

use mlx_rs::{Array, Dtype};

use super::trial;
use crate::checkpoint::{Format, Linear};
use crate::error::Result;
use crate::gpu::layout::Form;
use crate::gpu::qmm::{PackedMatrix, tiles_together};
use crate::gpu::trial::narrowed;
use crate::gpu::{Gpu, gpu};

/// Outputs that the two matrices of a gated product take in turns.
const TURN: usize = 16;

/// Several matrices of one input as one, if all are of one affine format that the kernels know and
/// these serve here. With `gated` the outputs of the two take turns.
pub(super) fn load(parts: &[&Linear], dtype: Dtype, gated: bool) -> Result<Option<PackedMatrix>> {
    let gpu = gpu();
    let Some(form) = form_of(parts).filter(|_| gpu.serves(dtype)) else { return Ok(None) };
    if gated && !(form.rows / 2).is_multiple_of(TURN) {
        return Ok(None);
    }
    let (bits, group, warps) = (form.bits, form.group, form.parts());
    let kind = if gated { ", gated" } else { "" };
    let tiles = tiles_together(&form);
    let name = format!("verify_qmm, {bits} bits of {group}, {warps} warps, {tiles} tiles{kind}");
    if !gpu.passed(&name, dtype, || trial::run(&form, dtype, gated)) {
        return Ok(None);
    }
    let (mut words, mut scales, mut biases) = (Vec::new(), Vec::new(), Vec::new());
    for part in parts {
        if let Format::Affine { words: w, scales: s, biases: b, .. } = &part.format {
            words.extend_from_slice(&w.as_u32());
            scales.extend(s.to_f32());
            biases.extend(b.to_f32());
        }
    }
    if gated {
        (words, scales, biases) =
            (in_turns(&words, &form), in_turns(&scales, &form), in_turns(&biases, &form));
    }
    on_device(&gpu, [form; 2], &words, [&scales, &biases], (dtype, gated)).map(Some)
}

/// The common form of matrices stacked along their outputs.
fn form_of(parts: &[&Linear]) -> Option<Form> {
    let affine = |p: &Linear| match p.format {
        Format::Affine { bits, group, .. } => Some((bits, group, p.input)),
        Format::Dense(_) => None,
    };
    let (bits, group, cols) = affine(parts.first()?)?;
    let alike = parts.iter().all(|p| affine(p) == Some((bits, group, cols)));
    let form = Form { rows: parts.iter().map(|p| p.out).sum(), cols, bits, group };
    (alike && form.fits()).then_some(form)
}

/// Rows of the first and second half of `values` in turns.
pub(super) fn in_turns<T: Copy>(values: &[T], form: &Form) -> Vec<T> {
    let turn = values.len() / form.rows * TURN;
    let (a, b) = values.split_at(values.len() / 2);
    a.chunks(turn).zip(b.chunks(turn)).flat_map(|(a, b)| [a, b]).flatten().copied().collect()
}

/// Packs stored codes, scales and biases, and sends them to the device; `shaped` as for
/// [`PackedMatrix::new`].
///
/// # Errors
/// When MLX cannot allocate or a kernel does not compile.
pub(super) fn on_device(
    gpu: &Gpu,
    [form, shaped]: [Form; 2],
    words: &[u32],
    [scales, biases]: [&[f32]; 2],
    (dtype, gated): (Dtype, bool),
) -> Result<PackedMatrix> {
    let words = form.pack(words);
    let [scales, biases] = [scales, biases].map(|values| narrowed(values, dtype));
    let sides = form.pack_sides(&scales, &biases);
    // Sums with nothing: what comes from the host lies in memory that both sides page.
    let words = Array::from_slice(&words, &[words.len() as i32]);
    let words = words.add(Array::from_slice(&[0_u32], &[1]))?;
    let sides = Array::from_slice(&sides, &[sides.len() as i32]);
    let sides = sides.add(Array::from_slice(&[0_u16], &[1]))?;
    crate::place::eval([&words, &sides])?;
    PackedMatrix::new(gpu, [form, shaped], (words, sides.view_dtype(dtype)?), gated)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{FeedForward, Mixer};
    use crate::shape::{Noise, Scheme, preset};

    #[test]
    fn every_form_of_weights_serves_every_matrix_of_a_model() {
        let config = preset("small", Some(4)).unwrap();
        for (bits, group, half) in [
            (4, 32, false),
            (4, 64, true),
            (4, 128, false),
            (8, 32, true),
            (8, 64, false),
            (8, 128, true),
        ] {
            let noise = Noise::new(config.vocab * config.hidden, Scheme { bits, group, half });
            let checkpoint = noise.checkpoint(&config);
            let check = |parts: &[&Linear]| {
                let form = form_of(parts).unwrap();
                assert_eq!((form.bits, form.group), (bits, group), "{parts:?}");
                form
            };
            check(&[&checkpoint.embed]);
            for layer in &checkpoint.layers {
                match &layer.mixer {
                    Mixer::Gdn(w) => {
                        check(&[&w.in_qkv, &w.in_z, &w.in_b, &w.in_a]);
                        check(&[&w.out]);
                    }
                    Mixer::Attention(w) => {
                        check(&[&w.q, &w.k, &w.v]);
                        check(&[&w.o]);
                    }
                }
                let FeedForward::Dense(mlp) = &layer.mlp else { panic!("no experts") };
                check(&[&mlp.down]);
                let gated = check(&[&mlp.gate, &mlp.up]);
                assert!((gated.rows / 2).is_multiple_of(TURN));
            }
        }
    }

    #[test]
    fn outputs_of_a_gated_pair_take_turns_of_sixteen() {
        let form = Form { rows: 64, cols: 64, bits: 4, group: 64 };
        let rows: Vec<usize> = (0..64).collect();
        let turns = in_turns(&rows, &form);
        assert_eq!(turns[..16], rows[..16]);
        assert_eq!(turns[16..32], rows[32..48]);
        assert_eq!(turns[32..48], rows[16..32]);
    }
}

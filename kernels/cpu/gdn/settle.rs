//! What a call leaves in a slot's window and tape for the next one.

use super::inputs::Inputs;
use super::{GdnDims, GdnRow, HISTORY};

/// Moves the kept inputs into the window's history, and adds the row's: certain ones to the
/// history, uncertain ones after it.
pub(super) fn window(dims: &GdnDims, proj: &[f32], row: &GdnRow, windows: &mut [f32]) {
    let channels = dims.channels();
    let window = &mut windows[row.slot * dims.window_len()..][..dims.window_len()];
    window.copy_within(row.keep * channels..(row.keep + HISTORY) * channels, 0);
    let put = |window: &mut [f32], at: usize, t: usize| {
        let input = &proj[(row.start + t) * dims.projection()..][..channels];
        window[at * channels..][..channels].copy_from_slice(input);
    };
    if !row.commit {
        (0..row.len).for_each(|t| put(window, HISTORY + t, t));
        return;
    }
    // The last three of history and tokens.
    let new = row.len.min(HISTORY);
    let old = HISTORY - new;
    window.copy_within(new * channels..HISTORY * channels, 0);
    (0..new).for_each(|i| put(window, old + i, row.len - new + i));
}

/// Copies the window as it is after the row's marked token to the slot that is set aside for it.
pub(super) fn mark(dims: &GdnDims, proj: &[f32], row: &GdnRow, windows: &mut [f32]) {
    let Some((len, slot)) = row.mark else { return };
    let size = dims.window_len();
    windows.copy_within(row.slot * size..(row.slot + 1) * size, slot * size);
    window(dims, proj, &GdnRow { slot, len, mark: None, ..*row }, windows);
}

/// Writes keys and decays of uncertain tokens to the tape; their d is there already.
pub(super) fn tape(dims: &GdnDims, inputs: &Inputs, row: &GdnRow, tapes: &mut [f32]) {
    if row.commit {
        return;
    }
    let tape = &mut tapes[row.slot * dims.tape_len()..][..dims.tape_len()];
    for (t, entry) in tape.chunks_exact_mut(dims.tape_width()).take(row.len).enumerate() {
        entry[..dims.keys()].copy_from_slice(inputs.keys(dims, row.start + t));
        let decays = &mut entry[dims.keys() + dims.values()..];
        for (decay, rates) in decays.iter_mut().zip(inputs.rates(dims, row.start + t)) {
            *decay = rates.decay;
        }
    }
}

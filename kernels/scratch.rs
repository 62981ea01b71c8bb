//! Room for what lies between the kernels of one fused call. It belongs to the thread that
//! evaluates and is used again by the next call.

use std::cell::RefCell;

/// Most pieces that one call uses.
const PIECES: usize = 3;

thread_local! {
    static ROOM: RefCell<[Vec<f32>; PIECES]> = RefCell::default();
}

/// Calls `f` with pieces of the given lengths; what is in them is arbitrary.
///
/// # Panics
/// If `f` asks for room itself.
pub(crate) fn with<R>(lens: [usize; PIECES], f: impl FnOnce([&mut [f32]; PIECES]) -> R) -> R {
    ROOM.with_borrow_mut(|room| {
        for (piece, len) in room.iter_mut().zip(lens) {
            if piece.len() < len {
                piece.resize(len, 0.0);
            }
        }
        let mut pieces = room.iter_mut().zip(lens);
        f(std::array::from_fn(|_| match pieces.next() {
            Some((piece, len)) => &mut piece[..len],
            None => &mut [],
        }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_have_the_lengths_asked_for_and_are_used_again() {
        let first = with([4, 0, 9], |[a, b, c]| {
            assert_eq!((a.len(), b.len(), c.len()), (4, 0, 9));
            c.as_ptr()
        });
        let second = with([2, 3, 5], |[_, b, c]| {
            assert_eq!((b.len(), c.len()), (3, 5));
            c.as_ptr()
        });
        assert_eq!(first, second);
    }
}

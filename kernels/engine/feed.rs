//! Rows and tokens of a pass under construction.

use mlx_rs::ops::concatenate;
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::{Array, Dtype};

use super::{Arc, FeedRow, Result, SlotState};
use crate::gpu::gpu;
use crate::linear::Ids;

/// A token of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    Known(u32),
    /// One that is drawn within the same graph: its place among all that are.
    Drawn(usize),
}

/// Rows and their tokens, one after another.
#[derive(Default)]
pub(super) struct Feed {
    pub(super) words: Vec<Word>,
    pub(super) rows: Vec<FeedRow>,
}

/// Where a row's tokens go.
pub(super) struct Range {
    pub(super) position: usize,
    pub(super) keep: usize,
    pub(super) commit: bool,
    /// As for [`FeedRow`].
    pub(super) mark: Option<usize>,
}

impl Feed {
    /// Adds a row of known tokens.
    pub(super) fn push(&mut self, slot: usize, state: &SlotState, at: Range, tokens: &[u32]) {
        self.push_words(slot, state, at, tokens.iter().copied().map(Word::Known));
    }

    /// Adds a row.
    pub(super) fn push_words(
        &mut self,
        slot: usize,
        state: &SlotState,
        at: Range,
        words: impl IntoIterator<Item = Word>,
    ) {
        let start = self.words.len();
        self.words.extend(words);
        self.rows.push(FeedRow {
            slot,
            start,
            len: self.words.len() - start,
            position: at.position,
            keep: at.keep,
            commit: at.commit,
            mark: at.mark,
            pages: Arc::clone(&state.pages),
        });
    }

    /// The tokens; `drawn` are those of the graph, in their order.
    ///
    /// # Errors
    /// When MLX fails.
    pub(super) fn tokens(&self, drawn: &[Array]) -> Result<Ids> {
        tokens(&self.words, drawn)
    }
}

fn tokens(words: &[Word], drawn: &[Array]) -> Result<Ids> {
    let known: Vec<u32> = words
        .iter()
        .filter_map(|word| match word {
            Word::Known(token) => Some(*token),
            Word::Drawn(_) => None,
        })
        .collect();
    if known.len() == words.len() {
        return Ok(Ids::Known(known));
    }
    let mut next = 0..;
    let index: Vec<i32> = words
        .iter()
        .map(|word| match word {
            Word::Known(_) => next.next().unwrap_or_default(),
            Word::Drawn(place) => (known.len() + place) as i32,
        })
        .collect();
    // One part, as it is: the head's rows of a depth are those of the one before.
    let (first, last) = (index[0] - known.len() as i32, *index.last().unwrap_or(&0));
    if known.is_empty() && index.iter().copied().eq(first..=last) {
        let mut from = 0;
        for part in drawn {
            if (from, from + part.dim(0) - 1) == (first, last) {
                return Ok(Ids::Drawn(part.clone()));
            }
            from += part.dim(0);
        }
    }
    let mut parts = drawn.to_vec();
    if !known.is_empty() {
        parts.insert(0, small(known.iter().map(|&id| id as i32).collect(), drawn[0].dtype())?);
    }
    let index = small(index, Dtype::Int32)?;
    Ok(Ids::Drawn(concatenate(&parts, 0)?.take_axis(index, 0)?))
}

/// A few numbers, by the shortest way to the device.
fn small(numbers: Vec<i32>, dtype: Dtype) -> Result<Array> {
    let count = numbers.len() as i32;
    if gpu().serves(Dtype::Bfloat16) {
        return Ok(gpu().numbers(numbers)?.try_index(..count)?.as_dtype(dtype)?);
    }
    Ok(Array::from_slice(&numbers, &[count]).as_dtype(dtype)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_and_drawn_tokens_stand_where_they_belong() {
        let drawn = [Array::from_slice(&[7_u32, 8], &[2]), Array::from_slice(&[9_u32], &[1])];
        let read = |words: &[Word]| match tokens(words, &drawn).unwrap() {
            Ids::Known(tokens) => tokens,
            Ids::Drawn(tokens) => {
                crate::place::eval([&tokens]).unwrap();
                tokens.as_slice::<u32>().to_vec()
            }
        };
        use Word::{Drawn, Known};
        assert_eq!(read(&[Known(1), Known(2)]), [1, 2]);
        assert_eq!(read(&[Drawn(1), Drawn(0)]), [8, 7]);
        assert_eq!((read(&[Drawn(0), Drawn(1)]), read(&[Drawn(2)])), (vec![7, 8], vec![9]));
        assert_eq!((read(&[Drawn(1), Drawn(2)]), read(&[Drawn(1)])), (vec![8, 9], vec![8]));
        assert_eq!(read(&[Known(1), Drawn(2), Drawn(0), Known(3), Drawn(1)]), [1, 9, 7, 3, 8]);
    }
}

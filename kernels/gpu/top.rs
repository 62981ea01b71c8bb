//! `top`: the largest logits of every row, so that a pass returns a handful of numbers to the host
//! and not the vocabulary.

use mlx_rs::error::Exception;
use mlx_rs::{Array, Dtype};

use super::device::{Launch, Source};
use super::{Gpu, trial};
use crate::error::Result;

/// Logits that are returned of a row.
pub const KEPT: usize = 64;
/// Numbers of a row: how many were found, ids, bits of logits.
const WIDTH: usize = 1 + 2 * KEPT;

const SOURCE: Source = Source {
    name: "top",
    cuda: concat!(include_str!("scalar.cu"), include_str!("top.cu")),
    metal: include_str!("top.metal"),
    inputs: &["logits"],
    output: "out",
};

/// The largest logits of a row, ascending by id.
#[derive(Clone, Debug, PartialEq)]
pub struct Top {
    /// Tokens.
    pub ids: Vec<u32>,
    /// Their logits.
    pub logits: Vec<f32>,
}

/// Adds the search to the graph; `None` where the kernel does not serve.
///
/// # Errors
/// When MLX refuses.
pub fn search(gpu: &Gpu, logits: &Array) -> Result<Option<Array>> {
    match knows(logits.dim(1) as usize) && serves(gpu, logits.dtype()) {
        true => add(gpu, logits).map(Some),
        false => Ok(None),
    }
}

/// Whether rows of so many logits can be searched.
pub(super) fn knows(vocab: usize) -> bool {
    vocab.is_multiple_of(8) && vocab >= 1024
}

/// Whether the kernel serves logits of this type here; it is tried once.
pub(super) fn serves(gpu: &Gpu, dtype: Dtype) -> bool {
    gpu.serves(dtype) && gpu.passed("top", || run(gpu, dtype))
}

/// The rows of an evaluated search; `None` if one had too many equal logits to tell.
#[must_use]
pub fn read(found: &Array) -> Option<Vec<Top>> {
    let row = |row: &[i32]| {
        let (ids, logits) = row[1..].split_at(KEPT);
        (row[0] == KEPT as i32).then(|| Top {
            ids: ids.iter().map(|&id| id as u32).collect(),
            logits: logits.iter().map(|&bits| f32::from_bits(bits as u32)).collect(),
        })
    };
    found.as_slice::<i32>().chunks(WIDTH).map(row).collect()
}

/// The ids of every row of an evaluated search, whatever was found.
pub(super) fn ids(found: &Array) -> impl Iterator<Item = &[i32]> {
    found.as_slice::<i32>().chunks(WIDTH).map(|row| &row[1..=KEPT])
}

pub(super) fn add(gpu: &Gpu, logits: &Array) -> Result<Array> {
    let settings = [("TYPE", super::scalar(logits.dtype())), ("K", KEPT.to_string())];
    let kernel = gpu.kernel(&SOURCE, &settings)?;
    let (rows, vocab) = (logits.dim(0), logits.dim(1));
    let launch =
        Launch { scalars: &[vocab], blocks: rows as usize, threads: 1024, shared_bytes: 0 };
    let shape = [rows, WIDTH as i32];
    // SAFETY: the vocabulary is a multiple of 8; a row without a result says so.
    let [found] = unsafe { kernel.call(&[logits], [(&shape, Dtype::Int32)], launch) }?;
    Ok(found)
}

fn run(gpu: &Gpu, dtype: Dtype) -> Result<()> {
    let (rows, vocab) = (2, 4096);
    let logits = trial::noise(&[rows, vocab], 5, dtype)?;
    let (found, all) = (add(gpu, &logits)?, logits.as_dtype(Dtype::Float32)?);
    crate::place::eval([&found, &all])?;
    let tops = read(&found).ok_or_else(|| Exception::custom("top found nothing"))?;
    for (top, row) in tops.iter().zip(all.as_slice::<f32>().chunks(vocab as usize)) {
        let mut ids: Vec<u32> = (0..vocab as u32).collect();
        ids.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]).then(a.cmp(&b)));
        ids.truncate(KEPT);
        ids.sort_unstable();
        let logits = ids.iter().map(|&id| row[id as usize]).collect();
        if *top != (Top { ids, logits }) {
            return Err(Exception::custom("top found others than the largest").into());
        }
    }
    Ok(())
}

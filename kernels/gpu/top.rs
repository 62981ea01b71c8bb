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
    gpu.serves(dtype) && gpu.passed("top", dtype, || run(gpu, dtype))
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

/// Searches beside a sort, in rows of noise: one has a logit that is no number, with a sign, and
/// one has many that say never.
fn run(gpu: &Gpu, dtype: Dtype) -> Result<()> {
    const BROKEN: (usize, usize) = (1, 4000);
    let (rows, vocab) = (3, 4096);
    let mut values = trial::floats(rows * vocab, 5, (0.0, 1.0));
    values[BROKEN.0 * vocab + BROKEN.1] = -f32::NAN;
    values[2 * vocab..].iter_mut().step_by(2).for_each(|value| *value = f32::NEG_INFINITY);
    let bits = trial::narrowed(&values, dtype);
    let found = add(gpu, &trial::of_bits(&bits, &[rows as i32, vocab as i32], dtype)?)?;
    crate::place::eval([&found])?;
    let off = |what: &str| Err(Exception::custom(format!("top is off: {what}")).into());
    let Some(tops) = read(&found) else { return off("nothing was found") };
    let values = trial::widened(&bits, dtype);
    for (at, (top, row)) in tops.iter().zip(values.chunks(vocab)).enumerate() {
        let mut ids: Vec<u32> = (0..vocab as u32).collect();
        // What is no number comes first.
        let key = |id: u32| Some(row[id as usize]).filter(|v| !v.is_nan()).unwrap_or(f32::NAN);
        ids.sort_by(|&a, &b| key(b).total_cmp(&key(a)).then(a.cmp(&b)));
        ids.truncate(KEPT);
        ids.sort_unstable();
        if top.ids != ids {
            return off("others than the largest");
        }
        let same = |(&id, &logit): (&u32, &f32)| {
            let want = row[id as usize];
            want == logit || (want.is_nan() && logit.is_nan())
        };
        if !top.ids.iter().zip(&top.logits).all(same) {
            return off("other logits");
        }
        if at == BROKEN.0 && !top.ids.contains(&(BROKEN.1 as u32)) {
            return off("what is no number was not told");
        }
    }
    Ok(())
}

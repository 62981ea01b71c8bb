//! Parked states out of the engine and into it, as bytes: for the bank's files.
//!
//! An image holds, in this order, for every cache (attention layers, then the MTP head's) the
//! pages of its keys and of its values, for every GDN layer its state and its window, and the
//! hidden state of the last token. Positions beyond the state's tokens are zero: a page may hold
//! there what others wrote. Elements keep their bits.

use mlx_rs::{Array, Dtype};
use mtplx_core::engine::Parcel;
use mtplx_core::image::{Image, Part, Unfit};

use super::{GdnSnapshot, MlxEngine, Snapshot};
use crate::error::{Error, Result};

/// Types of elements, as images name them.
const TYPES: [(&str, Dtype, usize); 3] =
    [("f32", Dtype::Float32, 4), ("f16", Dtype::Float16, 2), ("bf16", Dtype::Bfloat16, 2)];

impl MlxEngine {
    pub(super) fn give(&mut self, at: Parcel<'_>) -> Result<Image> {
        let unknown = || Error::Plan(format!("{:?} is not parked", at.snapshot));
        let parked = self.snapshots.get(&at.snapshot).ok_or_else(unknown)?;
        let index: Vec<i32> = at.pages.iter().map(|p| p.0 as i32).collect();
        let mut parts = Vec::new();
        let (layers, head) = (self.pools.kv.len(), self.pools.mtp.is_some());
        let pools = self.pools.kv.iter().chain(&self.pools.mtp);
        for ((name, first), pool) in names(layers, head).into_iter().zip(pools) {
            for (side, array) in ["keys", "values"].into_iter().zip(pool.gather(&index)?) {
                let mut part = part(format!("{name}.{side}"), &array)?;
                clear_outside(&mut part, first..at.tokens);
                parts.push(part);
            }
        }
        for (i, gdn) in parked.gdn.iter().enumerate() {
            parts.push(part(format!("gdn.{i}.state"), &gdn.state)?);
            parts.push(part(format!("gdn.{i}.window"), &gdn.window)?);
        }
        parts.push(part("carry".into(), &parked.carry)?);
        Ok(Image { parts })
    }

    pub(super) fn take(&mut self, at: Parcel<'_>, image: &Image) -> Result<()> {
        let mut parts = Parts(image.parts.iter());
        let pages = at.pages.iter().map(|p| p.0 as usize + 1).max().unwrap_or(0);
        let (layers, head) = (self.pools.kv.len(), self.pools.mtp.is_some());
        // All is checked before anything is written.
        let mut caches = Vec::new();
        for ((name, _), pool) in
            names(layers, head).into_iter().zip(self.pools.kv.iter().chain(&self.pools.mtp))
        {
            let (mut shape, dtype) = pool.page();
            shape.insert(0, at.pages.len() as i32);
            let keys = parts.next(&format!("{name}.keys"), &shape, Some(dtype))?;
            caches.push([keys, parts.next(&format!("{name}.values"), &shape, Some(dtype))?]);
        }
        let mut gdn = Vec::new();
        for (i, pool) in self.pools.gdn.iter().enumerate() {
            let [(state, exact), (window, float)] = pool.shapes();
            let state = parts.next(&format!("gdn.{i}.state"), &state, Some(exact))?;
            let window = parts.next(&format!("gdn.{i}.window"), &window, Some(float))?;
            gdn.push(GdnSnapshot { state, window });
        }
        let carry = parts.next("carry", &[1, self.hidden as i32], None)?;
        if parts.0.next().is_some() {
            return Err(Error::Plan("there is more than a state consists of".into()));
        }
        self.make_room(pages)?;
        for (pool, arrays) in self.pools.kv.iter_mut().chain(&mut self.pools.mtp).zip(caches) {
            for (first, run) in runs(at) {
                pool.put(first, run, &arrays)?;
            }
        }
        let copies = gdn.iter().flat_map(|s| [&s.state, &s.window]);
        let arrays = copies.chain([&carry]).chain(self.pools.arrays());
        crate::place::eval(arrays)?;
        self.snapshots.insert(at.snapshot, Snapshot { len: at.tokens, gdn, carry });
        Ok(())
    }
}

/// Names of all caches, and the first position each has: the MTP head's entry 0 does not exist.
fn names(layers: usize, head: bool) -> Vec<(String, usize)> {
    let layers = (0..layers).map(|i| (format!("kv.{i}"), 0));
    layers.chain(head.then(|| ("mtp".into(), 1))).collect()
}

/// Pages that follow each other: where in the state, and which.
fn runs(at: Parcel<'_>) -> Vec<(usize, std::ops::Range<usize>)> {
    let mut runs: Vec<(usize, std::ops::Range<usize>)> = Vec::new();
    for (i, page) in at.pages.iter().map(|p| p.0 as usize).enumerate() {
        match runs.last_mut() {
            Some((_, run)) if run.end == page => run.end += 1,
            _ => runs.push((i, page..page + 1)),
        }
    }
    runs
}

fn part(name: String, array: &Array) -> Result<Part> {
    let known = TYPES.iter().find(|(_, dtype, _)| *dtype == array.dtype());
    let Some((dtype, ..)) = known else {
        return Err(Error::Plan(format!("{name} is of type {:?}", array.dtype())));
    };
    let flat = array.reshape(&[-1])?.view_dtype(Dtype::Uint8)?;
    crate::place::eval([&flat])?;
    let shape = array.shape().iter().map(|&n| n as usize).collect();
    Ok(Part { name, dtype: (*dtype).into(), shape, bytes: flat.as_slice::<u8>().to_vec() })
}

/// Zeroes all positions of pages `[pages, heads, page, D]` that are not in `kept`.
fn clear_outside(part: &mut Part, kept: std::ops::Range<usize>) {
    let [pages, heads, page, _] = part.shape[..] else { return };
    let cell = part.bytes.len() / (pages * heads * page).max(1);
    for (i, cell) in part.bytes.chunks_exact_mut(cell.max(1)).enumerate() {
        let position = i / (heads * page) * page + i % page;
        if !kept.contains(&position) {
            cell.fill(0);
        }
    }
}

/// Parts of an image, taken one after another.
struct Parts<'a>(std::slice::Iter<'a, Part>);

impl Parts<'_> {
    fn next(&mut self, name: &str, shape: &[i32], dtype: Option<Dtype>) -> Result<Array> {
        let wrong = |what: String| Error::Plan(format!("{name}: {what}"));
        let part = self.0.next().ok_or_else(|| wrong("is missing".into()))?;
        if part.name != name {
            return Err(wrong(format!("is called {}", part.name)));
        }
        let known = TYPES.iter().find(|(known, ..)| *known == part.dtype);
        let known = known.filter(|(_, known, _)| dtype.is_none_or(|dtype| dtype == *known));
        let (_, dtype, size) = known.ok_or_else(|| wrong(format!("is of {}", part.dtype)))?;
        let same = part.shape.len() == shape.len()
            && part.shape.iter().zip(shape).all(|(&a, &b)| usize::try_from(b) == Ok(a));
        let elements = part.shape.iter().try_fold(*size, |all, &n| all.checked_mul(n));
        let length = i32::try_from(part.bytes.len()).ok();
        let (true, true, Some(length)) = (same, elements == Some(part.bytes.len()), length) else {
            return Err(wrong(format!("has the shape {:?}", part.shape)));
        };
        let bytes = Array::from_slice(&part.bytes, &[length]);
        Ok(bytes.view_dtype(*dtype)?.reshape(shape)?)
    }
}

impl From<Error> for Unfit {
    fn from(error: Error) -> Self {
        Self(error.to_string())
    }
}

//! Parked states out of the engine and into it, as bytes: for the bank's files. A stretch at a
//! time, so that rows that run never wait for all of a large state.
//!
//! An image holds, in this order, for every cache (attention layers, then the MTP head's) the
//! pages of its keys and of its values, for every GDN layer its state and its window, and the
//! hidden state of the last token. Positions beyond the state's tokens are zero: a page may hold
//! there what others wrote. Elements keep their bits.

use mlx_rs::{Array, Dtype};
use mtplx_core::Page;
use mtplx_core::engine::{Parcel, Stretch};
use mtplx_core::image::{Image, Part, Unfit};

use super::{GdnSnapshot, MlxEngine, Snapshot};
use crate::error::{Error, Result};

/// Types of elements, as images name them.
const TYPES: [(&str, Dtype, usize); 3] =
    [("f32", Dtype::Float32, 4), ("f16", Dtype::Float16, 2), ("bf16", Dtype::Bfloat16, 2)];

/// What a part of an image is to be.
struct Section {
    name: String,
    of: Of,
    shape: Vec<i32>,
    /// `None` for whatever the pass gives.
    dtype: Option<Dtype>,
}

/// Where it comes from.
#[derive(Clone, Copy)]
enum Of {
    /// A cache's keys or values, and the first position that is there.
    Pages {
        cache: usize,
        side: usize,
        first: usize,
    },
    State(usize),
    Window(usize),
    Carry,
}

impl MlxEngine {
    /// Adds about `most` bytes to an image. True once it is whole.
    pub(super) fn give(&self, at: Parcel<'_>, image: &mut Image, most: usize) -> Result<bool> {
        let unknown = || Error::Plan(format!("{:?} is not parked", at.snapshot));
        let parked = self.snapshots.get(&at.snapshot).ok_or_else(unknown)?;
        let end = image.bytes() + most as u64;
        let begun = image.parts.len().saturating_sub(1);
        for (i, section) in self.sections(at.pages.len()).into_iter().enumerate().skip(begun) {
            let room = end.saturating_sub(image.bytes());
            if i == image.parts.len() {
                if room == 0 {
                    return Ok(false);
                }
                image.parts.push(section.begin());
            }
            let part = &mut image.parts[i];
            let (cache, side, first) = match section.of {
                Of::Pages { cache, side, first } => (cache, side, first),
                _ if !part.bytes.is_empty() => continue,
                of @ (Of::State(_) | Of::Window(_) | Of::Carry) => {
                    append(part, parked.array(of))?;
                    continue;
                }
            };
            let page = section.bytes() / at.pages.len();
            let done = part.bytes.len() / page;
            let more = pages_of(room, page).min(at.pages.len() - done);
            if more > 0 {
                let pages: Vec<i32> =
                    at.pages[done..done + more].iter().map(|p| p.0 as i32).collect();
                let cache = self.pools.kv_pools().nth(cache).ok_or_else(unknown)?;
                append(part, &cache.gather(&pages, side)?)?;
                clear_outside(part, done, first..at.tokens);
            }
            if done + more < at.pages.len() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Writes about `most` bytes of an image. True once all of it is parked.
    pub(super) fn take(
        &mut self,
        at: Parcel<'_>,
        image: &Image,
        Stretch { done, most }: Stretch<'_>,
    ) -> Result<bool> {
        let sections = self.sections(at.pages.len());
        if *done == 0 {
            check(&sections, image)?;
            self.make_room(at.pages.iter().map(|p| p.0 as usize + 1).max().unwrap_or(0))?;
            self.arriving.clear();
        }
        let (end, mut begin) = (*done + most as u64, 0);
        for (section, part) in sections.iter().zip(&image.parts) {
            let behind = done.saturating_sub(begin) as usize;
            begin += part.bytes.len() as u64;
            if behind >= part.bytes.len() {
                continue;
            }
            let room = end.saturating_sub(*done);
            if room == 0 {
                return Ok(false);
            }
            let Of::Pages { cache, side, .. } = section.of else {
                let values = array(&part.bytes, &part.dtype, &section.shape)?;
                crate::place::eval([&values])?;
                self.arriving.push(values);
                *done += part.bytes.len() as u64;
                continue;
            };
            let page = part.bytes.len() / at.pages.len();
            let behind = behind / page;
            let more = pages_of(room, page).min(at.pages.len() - behind);
            let bytes = &part.bytes[behind * page..(behind + more) * page];
            self.put((cache, side), &at.pages[behind..behind + more], (section, part, bytes))?;
            *done += (more * page) as u64;
        }
        if *done < begin {
            return Ok(false);
        }
        self.park_arrived(at)?;
        Ok(true)
    }

    /// Writes whole pages of one side of a cache.
    fn put(
        &mut self,
        (cache, side): (usize, usize),
        pages: &[Page],
        (section, part, bytes): (&Section, &Part, &[u8]),
    ) -> Result<()> {
        let mut shape = section.shape.clone();
        shape[0] = pages.len() as i32;
        let values = array(bytes, &part.dtype, &shape)?;
        let unknown = || Error::Plan(format!("there is no cache {cache}"));
        let pool = self.pools.cache_mut(cache).ok_or_else(unknown)?;
        for (first, run) in runs(pages) {
            pool.put(side, first, run, &values)?;
        }
        crate::place::eval(pool.arrays())
    }

    /// All of an image has come: what of it is not in pages gets its name.
    fn park_arrived(&mut self, at: Parcel<'_>) -> Result<()> {
        let mut arrived = std::mem::take(&mut self.arriving);
        let carry = arrived.pop().ok_or_else(|| Error::Plan("a state without its end".into()))?;
        let mut arrays = arrived.into_iter();
        let mut gdn = Vec::new();
        while let (Some(state), Some(window)) = (arrays.next(), arrays.next()) {
            gdn.push(GdnSnapshot { state, window });
        }
        self.snapshots.insert(at.snapshot, Snapshot { len: at.tokens, gdn, carry });
        Ok(())
    }

    /// What an image of so many pages consists of.
    fn sections(&self, pages: usize) -> Vec<Section> {
        let mut sections = Vec::new();
        let layers = self.pools.kv.len();
        for (cache, pool) in self.pools.kv_pools().enumerate() {
            let (mut shape, dtype) = pool.page();
            shape.insert(0, pages as i32);
            // The MTP head's entry 0 does not exist.
            let head = cache == layers;
            let name = if head { "mtp".into() } else { format!("kv.{cache}") };
            for (side, of) in ["keys", "values"].into_iter().enumerate() {
                sections.push(Section {
                    name: format!("{name}.{of}"),
                    of: Of::Pages { cache, side, first: usize::from(head) },
                    shape: shape.clone(),
                    dtype: Some(dtype),
                });
            }
        }
        for (i, pool) in self.pools.gdn.iter().enumerate() {
            let [(state, exact), (window, float)] = pool.shapes();
            let name = format!("gdn.{i}.state");
            sections.push(Section { name, of: Of::State(i), shape: state, dtype: Some(exact) });
            let name = format!("gdn.{i}.window");
            sections.push(Section { name, of: Of::Window(i), shape: window, dtype: Some(float) });
        }
        let shape = vec![1, self.hidden as i32];
        sections.push(Section { name: "carry".into(), of: Of::Carry, shape, dtype: None });
        sections
    }
}

impl Snapshot {
    /// What is not in pages.
    fn array(&self, of: Of) -> &Array {
        match of {
            Of::State(layer) => &self.gdn[layer].state,
            Of::Window(layer) => &self.gdn[layer].window,
            Of::Pages { .. } | Of::Carry => &self.carry,
        }
    }
}

impl Section {
    /// Bytes of all of it, where its type is known.
    fn bytes(&self) -> usize {
        let size = TYPES.iter().find(|(_, dtype, _)| Some(*dtype) == self.dtype);
        let elements: usize = self.shape.iter().map(|&n| n as usize).product();
        elements * size.map_or(0, |(_, _, size)| *size)
    }

    /// An empty part of it.
    fn begin(&self) -> Part {
        let shape = self.shape.iter().map(|&n| n as usize).collect();
        let bytes = Vec::with_capacity(self.bytes());
        Part { name: self.name.clone(), dtype: String::new(), shape, bytes }
    }

    /// Whether a part is what it is to be.
    fn check(&self, part: &Part) -> Result<()> {
        let wrong = |what: String| Err(Error::Plan(format!("{}: {what}", self.name)));
        if part.name != self.name {
            return wrong(format!("is called {}", part.name));
        }
        let known = TYPES.iter().find(|(known, ..)| *known == part.dtype);
        let known = known.filter(|(_, known, _)| self.dtype.is_none_or(|dtype| dtype == *known));
        let Some((_, _, size)) = known else { return wrong(format!("is of {}", part.dtype)) };
        let same = part.shape.len() == self.shape.len()
            && part.shape.iter().zip(&self.shape).all(|(&a, &b)| usize::try_from(b) == Ok(a));
        let elements = part.shape.iter().try_fold(*size, |all, &n| all.checked_mul(n));
        if !same || elements != Some(part.bytes.len()) {
            return wrong(format!("has the shape {:?}", part.shape));
        }
        Ok(())
    }
}

fn check(sections: &[Section], image: &Image) -> Result<()> {
    if sections.len() != image.parts.len() {
        let (own, others) = (sections.len(), image.parts.len());
        return Err(Error::Plan(format!("a state consists of {own} parts, not of {others}")));
    }
    sections.iter().zip(&image.parts).try_for_each(|(section, part)| section.check(part))
}

/// Pages that make so many bytes, the last of them begun; in 32 bits, as MLX counts.
fn pages_of(bytes: u64, page: usize) -> usize {
    (bytes.min(1 << 30) as usize).div_ceil(page.max(1))
}

/// Pages that follow each other: where in the list, and which.
fn runs(pages: &[Page]) -> Vec<(usize, std::ops::Range<usize>)> {
    let mut runs: Vec<(usize, std::ops::Range<usize>)> = Vec::new();
    for (i, page) in pages.iter().map(|p| p.0 as usize).enumerate() {
        match runs.last_mut() {
            Some((_, run)) if run.end == page => run.end += 1,
            _ => runs.push((i, page..page + 1)),
        }
    }
    runs
}

/// Puts an array's elements behind those that a part has.
fn append(part: &mut Part, array: &Array) -> Result<()> {
    let known = TYPES.iter().find(|(_, dtype, _)| *dtype == array.dtype());
    let Some((dtype, ..)) = known else {
        return Err(Error::Plan(format!("{} is of type {:?}", part.name, array.dtype())));
    };
    let flat = array.reshape(&[-1])?.view_dtype(Dtype::Uint8)?;
    crate::place::eval([&flat])?;
    part.dtype = (*dtype).into();
    part.bytes.extend_from_slice(flat.as_slice::<u8>());
    Ok(())
}

/// Zeroes all positions of pages `[pages, heads, page, D]`, from page `from` on, that are not in
/// `kept`.
fn clear_outside(part: &mut Part, from: usize, kept: std::ops::Range<usize>) {
    let [_, heads, page, width] = part.shape[..] else { return };
    let size = TYPES.iter().find(|(name, ..)| *name == part.dtype).map_or(0, |(_, _, size)| *size);
    let cell = (width * size).max(1);
    for (i, cell) in part.bytes.chunks_exact_mut(cell).enumerate().skip(from * heads * page) {
        let position = i / (heads * page) * page + i % page;
        if !kept.contains(&position) {
            cell.fill(0);
        }
    }
}

/// Elements of a type, from bytes.
fn array(bytes: &[u8], dtype: &str, shape: &[i32]) -> Result<Array> {
    let known = TYPES.iter().find(|(known, ..)| *known == dtype);
    let (Some((_, dtype, _)), Ok(length)) = (known, i32::try_from(bytes.len())) else {
        return Err(Error::Plan(format!("{} bytes of {dtype}", bytes.len())));
    };
    Ok(Array::from_slice(bytes, &[length]).view_dtype(*dtype)?.reshape(shape)?)
}

impl From<Error> for Unfit {
    fn from(error: Error) -> Self {
        Self(error.to_string())
    }
}

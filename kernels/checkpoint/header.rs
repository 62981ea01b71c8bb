//! The header of a safetensors file: eight bytes of length, then JSON, then the elements.
//!
//! Read here rather than by the `safetensors` crate, because the crate keeps the last of two equal
//! names and its errors name neither the tensor nor how much of the file is missing.

use std::collections::BTreeSet;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::Error;
use super::error::{DOWNLOAD, shown};
use super::files::Bytes;
use super::tensor::Dtype;

/// The format's own limit.
const HEADER_BYTES_MAX: u64 = 100_000_000;
pub(super) const LENGTH_BYTES: usize = 8;
/// The length and the brace that every header begins with.
pub(super) const START: usize = LENGTH_BYTES + 1;

/// One tensor of a file, of any element type.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    /// As the header calls it.
    pub(super) dtype: String,
    pub(super) shape: Vec<usize>,
    pub(super) bytes: Bytes,
}

#[derive(Deserialize)]
struct Info {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// The tensors of a safetensors file, in the order of its header.
pub(super) fn entries(file: &str, bytes: &Bytes) -> Result<Vec<Entry>, Error> {
    let (header, data) = split(file, bytes)?;
    let infos: Pairs<Info> = serde_json::from_slice(&header).map_err(|e| {
        Error::file(file, format!("has a broken safetensors header: {e}"), DOWNLOAD)
    })?;
    check_names(file, &infos.0)?;
    check_layout(file, &infos.0, data.len())?;
    let broken = |name: &str| tensor_error(file, name, "lies outside the file".to_owned());
    infos
        .0
        .into_iter()
        .map(|(name, info)| {
            let (start, end) = info.data_offsets;
            let bytes = data.part(start..end).ok_or_else(|| broken(&name))?;
            Ok(Entry { name, dtype: info.dtype, shape: info.shape, bytes })
        })
        .collect()
}

/// The bytes of the header that a file's first [`START`] bytes announce; `None` if they are those
/// of something else.
pub(super) fn announced(start: &[u8]) -> Option<u64> {
    let (length, header) = start.split_first_chunk::<LENGTH_BYTES>()?;
    let length = u64::from_le_bytes(*length);
    (header.first() == Some(&b'{') && length <= HEADER_BYTES_MAX).then_some(length)
}

fn split(file: &str, bytes: &Bytes) -> Result<(Bytes, Bytes), Error> {
    let broken = |problem: String| Error::file(file, problem, DOWNLOAD);
    let short = || broken(format!("is cut short: {} bytes are no safetensors file", bytes.len()));
    let length = bytes.first_chunk::<LENGTH_BYTES>().ok_or_else(short)?;
    let length = u64::from_le_bytes(*length);
    if length > HEADER_BYTES_MAX {
        let problem = format!(
            "is no safetensors file: its first bytes announce a header of \
             {length} bytes, more than the format allows"
        );
        return Err(broken(problem));
    }
    let start = LENGTH_BYTES + length as usize;
    let header = bytes.part(LENGTH_BYTES..start);
    let data = bytes.part(start..bytes.len());
    header.zip(data).ok_or_else(|| {
        let has = bytes.len();
        broken(format!("is cut short: its header should end at byte {start} but it has {has}"))
    })
}

fn check_names(file: &str, infos: &[(String, Info)]) -> Result<(), Error> {
    let mut seen = BTreeSet::new();
    match infos.iter().find(|(name, _)| !seen.insert(name.as_str())) {
        Some((name, _)) => Err(tensor_error(file, name, "stands in the header twice".to_owned())),
        None => Ok(()),
    }
}

/// Every tensor has the bytes its shape needs; together they cover the data, each byte once.
fn check_layout(file: &str, infos: &[(String, Info)], data_len: usize) -> Result<(), Error> {
    let mut order: Vec<&(String, Info)> = infos.iter().collect();
    order.sort_by_key(|(_, info)| info.data_offsets);
    let mut covered = 0;
    for (name, info) in order {
        let (start, end) = info.data_offsets;
        let wrong = |problem: String| Err(tensor_error(file, name, problem));
        if end < start {
            return wrong(format!("ends at byte {end}, before it starts at {start}"));
        }
        if end > data_len {
            return wrong(format!(
                "ends at byte {end} of the data but the file has only {data_len} (it is cut short)"
            ));
        }
        if start != covered {
            return wrong(format!("starts at byte {start} where {covered} is due"));
        }
        covered = end;
        let elements = info.shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
        let needs = Dtype::named(&info.dtype)
            .map(|dtype| elements.and_then(|n| n.checked_mul(dtype.size())));
        // Other element types matter only where a weight has one: that is refused by name.
        if needs.is_some_and(|needs| needs != Some(end - start)) {
            let (dtype, shape, has) = (&info.dtype, &info.shape, end - start);
            return wrong(format!("is {dtype} {shape:?} but has {has} bytes"));
        }
    }
    if covered != data_len {
        let problem = format!("has {data_len} bytes of data but its header describes {covered}");
        return Err(Error::file(file, problem, DOWNLOAD));
    }
    Ok(())
}

fn tensor_error(file: &str, name: &str, problem: String) -> Error {
    Error::file(file, format!("tensor {} {problem}", shown(name)), DOWNLOAD)
}

/// The members of a JSON object in order, equal keys included, `__metadata__` left out.
pub(super) struct Pairs<V>(pub(super) Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Pairs<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members<V>(PhantomData<V>);

        impl<'de, V: Deserialize<'de>> Visitor<'de> for Members<V> {
            type Value = Pairs<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<V>, A::Error> {
                let mut pairs = vec![];
                while let Some(key) = map.next_key::<String>()? {
                    if key == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let value = map
                        .next_value()
                        .map_err(|e| A::Error::custom(format!("at {}: {e}", shown(&key))))?;
                    pairs.push((key, value));
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Members(PhantomData))
    }
}

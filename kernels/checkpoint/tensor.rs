//! Tensors as they lie in the file.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use half::{bf16, f16};

use super::files::Bytes;

/// The element types that weights come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of single precision.
    BF16,
    /// Words that hold packed quantised elements.
    U32,
}

impl Dtype {
    /// Bytes of one element.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Self::F32 | Self::U32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    /// Whether elements are floating-point numbers.
    #[must_use]
    pub fn is_float(self) -> bool {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => true,
            Self::U32 => false,
        }
    }

    /// The type that config.json and people call `name`, if weights can be written in it.
    #[must_use]
    pub fn spoken(name: &str) -> Option<Self> {
        match name {
            "float32" | "f32" => Some(Self::F32),
            "float16" | "f16" => Some(Self::F16),
            "bfloat16" | "bf16" => Some(Self::BF16),
            _ => None,
        }
    }

    /// What config.json calls it.
    pub(super) fn in_config(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
            Self::U32 => "uint32",
        }
    }

    /// The type that a safetensors header calls `name`, if weights can come in it.
    pub(super) fn named(name: &str) -> Option<Self> {
        match name {
            "F32" => Some(Self::F32),
            "F16" => Some(Self::F16),
            "BF16" => Some(Self::BF16),
            "U32" => Some(Self::U32),
            _ => None,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A tensor in the file's own type and layout: row-major, little endian. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tensor {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Bytes,
}

impl Tensor {
    /// `None` unless `bytes` are as many as `shape` and `dtype` say.
    #[must_use]
    pub fn new(name: &str, dtype: Dtype, shape: &[usize], bytes: Bytes) -> Option<Self> {
        let elements = shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size))?;
        (elements.checked_mul(dtype.size())? == bytes.len()).then(|| Self {
            name: name.to_owned(),
            dtype,
            shape: shape.to_vec(),
            bytes,
        })
    }

    /// The rows of `stretches`, one after the other, as a matrix: a row is what varies with the
    /// last axis alone. Shares the bytes of a single stretch, copies those of several. `None` where
    /// a stretch leads outside.
    pub(super) fn rows(&self, stretches: &[Range<usize>]) -> Option<Self> {
        let columns = *self.shape.last()?;
        let row = columns * self.dtype.size();
        let part = |rows: &Range<usize>| self.bytes.part(rows.start * row..rows.end * row);
        let bytes = match stretches {
            [only] => part(only)?,
            many => {
                let parts = many.iter().map(part).collect::<Option<Vec<_>>>()?;
                Bytes::joined(&parts)
            }
        };
        let count = stretches.iter().map(ExactSizeIterator::len).sum();
        Self::new(&self.name, self.dtype, &[count, columns], bytes)
    }

    /// The same numbers, each greater by `added`, in elements of `dtype`: rounded where these are
    /// narrower. `None` where `dtype` is no float.
    pub(super) fn cast(&self, dtype: Dtype, added: f32) -> Option<Self> {
        if self.dtype == dtype && added == 0.0 {
            return Some(self.clone());
        }
        let numbers = self.to_f32().into_iter().map(|number| number + added);
        let bytes: Vec<u8> = match dtype {
            Dtype::F32 => numbers.flat_map(f32::to_le_bytes).collect(),
            Dtype::F16 => numbers.flat_map(|x| f16::from_f32(x).to_le_bytes()).collect(),
            Dtype::BF16 => numbers.flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect(),
            Dtype::U32 => return None,
        };
        Self::new(&self.name, dtype, &self.shape, bytes.into())
    }

    /// The first element that is no finite number.
    pub(super) fn not_finite(&self) -> Option<usize> {
        let of = |mask: u32| move |bits: u32| bits & mask == mask;
        match self.dtype {
            Dtype::F32 => words(&self.bytes).position(of(0x7f80_0000)),
            Dtype::F16 => halves(&self.bytes).map(u32::from).position(of(0x7c00)),
            Dtype::BF16 => halves(&self.bytes).map(u32::from).position(of(0x7f80)),
            Dtype::U32 => None,
        }
    }

    /// Its name in the file.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The type of its elements.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Its sizes, outermost first.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Its elements, little endian and perhaps unaligned: product of the shape × size of the type.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Its elements as f32: exact for the float types, rounded for words beyond 2^24.
    #[must_use]
    pub fn to_f32(&self) -> Vec<f32> {
        self.to_f32_between(0, self.bytes.len() / self.dtype.size())
    }

    /// The elements `start..end` as f32, fewer where there are fewer.
    pub(super) fn to_f32_between(&self, start: usize, end: usize) -> Vec<f32> {
        let end = end.min(self.bytes.len() / self.dtype.size());
        let size = self.dtype.size();
        let bytes = self.bytes.get(start * size..end * size).unwrap_or_default();
        match self.dtype {
            Dtype::F32 => words(bytes).map(f32::from_bits).collect(),
            Dtype::F16 => halves(bytes).map(|bits| f16::from_bits(bits).to_f32()).collect(),
            Dtype::BF16 => halves(bytes).map(|bits| bf16::from_bits(bits).to_f32()).collect(),
            Dtype::U32 => words(bytes).map(|word| word as f32).collect(),
        }
    }

    /// The bits of its four-byte elements, borrowed where they are aligned; none where elements
    /// have two bytes.
    #[must_use]
    pub fn as_u32(&self) -> Cow<'_, [u32]> {
        match self.dtype {
            Dtype::F32 | Dtype::U32 => {
                // SAFETY: any four bytes are a u32.
                let (before, aligned, after) = unsafe { self.bytes.align_to::<u32>() };
                if before.is_empty() && after.is_empty() && cfg!(target_endian = "little") {
                    Cow::Borrowed(aligned)
                } else {
                    Cow::Owned(words(&self.bytes).collect())
                }
            }
            Dtype::F16 | Dtype::BF16 => Cow::Borrowed(&[]),
        }
    }

    /// The bits of its two-byte elements, borrowed where they are aligned; none where elements
    /// have four bytes.
    #[must_use]
    pub fn as_u16(&self) -> Cow<'_, [u16]> {
        match self.dtype {
            Dtype::F16 | Dtype::BF16 => {
                // SAFETY: any two bytes are a u16.
                let (before, aligned, after) = unsafe { self.bytes.align_to::<u16>() };
                if before.is_empty() && after.is_empty() && cfg!(target_endian = "little") {
                    Cow::Borrowed(aligned)
                } else {
                    Cow::Owned(halves(&self.bytes).collect())
                }
            }
            Dtype::F32 | Dtype::U32 => Cow::Borrowed(&[]),
        }
    }
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

fn halves(bytes: &[u8]) -> impl Iterator<Item = u16> {
    bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]))
}

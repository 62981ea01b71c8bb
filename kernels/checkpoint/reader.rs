//! Takes weights out of an inventory and checks each against what the model needs.

use std::cell::RefCell;
use std::collections::BTreeSet;

use super::config::{BITS, GROUPS, NormEncoding, Quantization, Scheme};
use super::error::shown;
use super::linear::{Format, Linear};
use super::shards::{Inventory, Stored};
use super::tensor::{Dtype, Tensor};
use super::{Error, Norm};

const REPLACE: &str =
    "the weights and config.json do not belong together: fetch both from one source";

/// Reads one group of weights: the trunk or the MTP head.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    inventory: &'a Inventory,
    /// What stands before the group's names in the inventory.
    prefix: &'static str,
    /// What stands before them in paths and messages.
    group: &'static str,
    /// What to hold shapes against; a head may have been quantised apart from its trunk.
    quantization: Option<&'a Quantization>,
    encoding: NormEncoding,
    taken: RefCell<BTreeSet<String>>,
}

impl<'a> Reader<'a> {
    pub(super) fn of_trunk(
        inventory: &'a Inventory,
        quantization: &'a Quantization,
        encoding: NormEncoding,
    ) -> Self {
        let quantization = Some(quantization);
        Self { inventory, prefix: "", group: "", quantization, encoding, taken: RefCell::default() }
    }

    pub(super) fn of_head(
        inventory: &'a Inventory,
        prefix: &'static str,
        encoding: NormEncoding,
    ) -> Self {
        let (group, quantization) = ("mtp.", None);
        Self { inventory, prefix, group, quantization, encoding, taken: RefCell::default() }
    }

    /// The inner names of the tensors read so far.
    pub(super) fn into_taken(self) -> BTreeSet<String> {
        self.taken.into_inner()
    }

    /// Whether there is a tensor `name`.
    pub(super) fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// The matrix [out, input] of the module `path`, in its stored form. It is quantised if it has
    /// scales; its shapes then tell bits and group.
    pub(super) fn linear(&self, path: &str, out: usize, input: usize) -> Result<Linear, Error> {
        self.matrix(path, &[out], input)
    }

    /// The `count` matrices [out, input] that the module `path` stacks, one below the other.
    pub(super) fn stack(
        &self,
        path: &str,
        count: usize,
        out: usize,
        input: usize,
    ) -> Result<Linear, Error> {
        self.matrix(path, &[count, out], input)
    }

    /// The same of a tensor that is no module's: there is no `.weight` in its name.
    pub(super) fn bare_stack(
        &self,
        name: &str,
        count: usize,
        out: usize,
        input: usize,
    ) -> Result<Linear, Error> {
        let format = Format::Dense(self.dense(name, &[count, out], input)?);
        Ok(Linear { path: format!("{}{name}", self.group), out: count * out, input, format })
    }

    fn matrix(&self, path: &str, rows: &[usize], input: usize) -> Result<Linear, Error> {
        let name = |part: &str| format!("{path}.{part}");
        if let Some(stored) = self.find(&name("bias")) {
            let expected = "no bias in this architecture";
            return Err(wrong(stored, expected));
        }
        let format = match self.has(&name("scales")) {
            true => self.affine(path, rows, input)?,
            false => Format::Dense(self.dense(&name("weight"), rows, input)?),
        };
        let path = format!("{}{path}", self.group);
        Ok(Linear { path, out: rows.iter().product(), input, format })
    }

    fn dense(&self, name: &str, rows: &[usize], input: usize) -> Result<Tensor, Error> {
        let shape = [rows, &[input]].concat();
        let expected = format!("f32, f16 or bf16 {shape:?}");
        let stored = self.take(name, &expected)?;
        match typed(stored) {
            Some(tensor) if tensor.dtype() == Dtype::U32 => {
                let beside = |stem| format!("scales beside packed words, as {stem}scales");
                Err(wrong(stored, &name.strip_suffix("weight").map_or(expected, beside)))
            }
            Some(tensor) if tensor.shape() == shape => Ok(tensor),
            _ => Err(wrong(stored, &expected)),
        }
    }

    fn affine(&self, path: &str, rows: &[usize], input: usize) -> Result<Format, Error> {
        let name = |part: &str| format!("{path}.{part}");
        let sizes: String = rows.iter().map(|size| format!("{size}, ")).collect();
        let columns = |tensor: &Tensor| match tensor.shape().split_last() {
            Some((&columns, before)) if before == rows => Some(columns),
            _ => None,
        };
        let expected = format!("packed u32 [{sizes}{input} · bits / 32]");
        let stored_words = self.take(&name("weight"), &expected)?;
        let words = typed(stored_words)
            .filter(|t| t.dtype() == Dtype::U32)
            .ok_or_else(|| wrong(stored_words, &expected))?;
        let bits = columns(&words).and_then(|columns| exact(columns, 32, input, &BITS));
        let expected = format!("{expected} with bits in {BITS:?}");
        let bits = bits.ok_or_else(|| wrong(stored_words, &expected))?;

        let expected = format!("f32, f16 or bf16 [{sizes}{input} / group], group in {GROUPS:?}");
        let stored_scales = self.take(&name("scales"), &expected)?;
        let scales = typed(stored_scales).filter(|t| t.dtype().is_float());
        let group = scales.as_ref().and_then(columns);
        let group = group.and_then(|columns| exact(input, 1, columns, &GROUPS));
        let (Some(scales), Some(group)) = (scales, group) else {
            return Err(wrong(stored_scales, &expected));
        };

        let expected = format!(
            "{} {:?} like its scales: only the affine mode, which has biases, can be run",
            scales.dtype(),
            scales.shape()
        );
        let stored_biases = self.take(&name("biases"), &expected)?;
        let biases = typed(stored_biases)
            .filter(|t| (t.shape(), t.dtype()) == (scales.shape(), scales.dtype()))
            .ok_or_else(|| wrong(stored_biases, &expected))?;
        self.check_stated(path, stored_words, bits, group)?;
        Ok(Format::Affine { bits, group, words, scales, biases })
    }

    /// Holds what the shapes say against what config.json says.
    fn check_stated(
        &self,
        path: &str,
        words: &Stored,
        bits: usize,
        group: usize,
    ) -> Result<(), Error> {
        let Some(stated) = self.quantization.and_then(|quantization| quantization.of(path)) else {
            return Ok(());
        };
        let is = format!("{bits} bits in groups of {group} by its shapes");
        let expected = match stated {
            None => format!("no scales (it has {is}), since config.json says it is not quantised"),
            Some(Scheme { mode, .. }) if mode != "affine" => {
                format!("mode affine, but config.json says {}", shown(mode))
            }
            Some(scheme) => {
                let (b, g) = (scheme.bits.unwrap_or(bits), scheme.group.unwrap_or(group));
                if (b, g) == (bits, group) {
                    return Ok(());
                }
                format!("{b} bits in groups of {g} as config.json says, but it has {is}")
            }
        };
        Err(wrong(words, &expected))
    }

    /// The gains [len] of an RMS norm that is stored in the group's encoding.
    pub(super) fn gain(&self, name: &str, len: usize) -> Result<Norm, Error> {
        let mut gain = self.vector(name, len)?;
        match self.encoding {
            NormEncoding::Absolute => {}
            NormEncoding::ZeroCentred => gain.iter_mut().for_each(|gain| *gain += 1.0),
        }
        Ok(gain)
    }

    /// The numbers [len] of the tensor `name`.
    pub(super) fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, Error> {
        self.numbers(name, &[len])
    }

    /// The convolution's taps [channels, kernel], the last one for the newest token.
    pub(super) fn taps(
        &self,
        name: &str,
        channels: usize,
        kernel: usize,
    ) -> Result<Vec<f32>, Error> {
        // The axis of size one makes no difference in memory.
        match self.encoding {
            NormEncoding::Absolute => self.numbers(name, &[channels, kernel, 1]),
            NormEncoding::ZeroCentred => self.numbers(name, &[channels, 1, kernel]),
        }
    }

    fn numbers(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Error> {
        let expected = format!("f32, f16 or bf16 {shape:?}");
        let stored = self.take(name, &expected)?;
        let numbers = typed(stored)
            .filter(|t| t.shape() == shape && t.dtype().is_float())
            .ok_or_else(|| wrong(stored, &expected))?
            .to_f32();
        match numbers.iter().position(|number| !number.is_finite()) {
            None => Ok(numbers),
            Some(at) => {
                let expected = format!("finite numbers, but the one at {at} is {}", numbers[at]);
                Err(wrong(stored, &expected))
            }
        }
    }

    fn find(&self, name: &str) -> Option<&'a Stored> {
        self.inventory.get(&format!("{}{name}", self.prefix))
    }

    fn take(&self, name: &str, expected: &str) -> Result<&'a Stored, Error> {
        let Some(stored) = self.find(name) else {
            let files: Vec<&str> = self.inventory.files.iter().map(String::as_str).collect();
            return Err(Error::Tensor {
                tensor: format!("{}{name}", self.group),
                found: format!("is missing from {}", shown(files.join(", "))),
                expected: expected.to_owned(),
                mend: REPLACE.to_owned(),
            });
        };
        self.taken.borrow_mut().insert(format!("{}{name}", self.prefix));
        Ok(stored)
    }
}

/// `a · factor / b` where that is whole and allowed.
fn exact(a: usize, factor: usize, b: usize, allowed: &[usize]) -> Option<usize> {
    let product = a.checked_mul(factor)?;
    let quotient = product.checked_div(b)?;
    (quotient * b == product && allowed.contains(&quotient)).then_some(quotient)
}

pub(super) fn typed(stored: &Stored) -> Option<Tensor> {
    let entry = &stored.entry;
    let dtype = Dtype::named(&entry.dtype)?;
    Tensor::new(&entry.name, dtype, &entry.shape, entry.bytes.clone())
}

/// The error that rows were asked for which `path` does not have: shapes were checked before, so
/// this is a fault of the program, told rather than died of.
pub(super) fn outside(path: &str) -> Error {
    Error::Tensor {
        tensor: shown(path),
        found: "has too few rows".to_owned(),
        expected: "the rows its shape promised".to_owned(),
        mend: REPLACE.to_owned(),
    }
}

/// The error that the tensor is not as `expected`.
pub(super) fn wrong(stored: &Stored, expected: &str) -> Error {
    let entry = &stored.entry;
    Error::Tensor {
        tensor: shown(&entry.name),
        found: format!("is {} {:?} in {}", shown(&entry.dtype), entry.shape, stored.file),
        expected: expected.to_owned(),
        mend: REPLACE.to_owned(),
    }
}

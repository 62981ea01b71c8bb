//! What is written, and of which rows of the source: names, layouts and the form of each tensor.

use std::collections::BTreeMap;

use super::{Recipe, not_finite};
use crate::checkpoint::Error;
use crate::checkpoint::config::{Family, NormEncoding};
use crate::checkpoint::mtp;
use crate::checkpoint::reader::{outside, typed, wrong};
use crate::checkpoint::shards::{Inventory, Stored};
use crate::checkpoint::tensor::{Dtype, Tensor};

/// Bits and group of a matrix's codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Scheme {
    pub(super) bits: usize,
    pub(super) group: usize,
}

/// One tensor, or the three of a coded matrix.
#[derive(Debug)]
pub(super) struct Module {
    /// The new name; of a coded matrix that of its words.
    pub(super) name: String,
    shape: Vec<usize>,
    /// Matrices whose rows, one after the other, are this one's.
    sources: Vec<Tensor>,
    /// The type of the numbers; of a coded matrix that of its scales.
    dtype: Dtype,
    /// What makes a stored norm a plain gain.
    added: f32,
    pub(super) scheme: Option<Scheme>,
}

impl Module {
    /// The tensors in the file: name, type and shape.
    pub(super) fn tensors(&self) -> Vec<(String, Dtype, Vec<usize>)> {
        let Some(Scheme { bits, group }) = self.scheme else {
            return vec![(self.name.clone(), self.dtype, self.shape.clone())];
        };
        let (columns, rows) = self.shape.split_last().map_or((0, &[][..]), |(c, rows)| (*c, rows));
        let path = self.path();
        let with = |part: &str, dtype, columns| {
            (format!("{path}.{part}"), dtype, [rows, &[columns]].concat())
        };
        vec![
            with("weight", Dtype::U32, columns * bits / 32),
            with("scales", self.dtype, columns / group),
            with("biases", self.dtype, columns / group),
        ]
    }

    /// The name without its last part.
    pub(super) fn path(&self) -> &str {
        self.name.strip_suffix(".weight").unwrap_or(&self.name)
    }

    /// Whether it multiplies activations.
    pub(super) fn is_matrix(&self) -> bool {
        self.shape.len() > 1 && !self.name.ends_with(CONVOLUTION)
    }

    /// Its rows in pieces of about `bytes`, at least one row each.
    pub(super) fn pieces(&self, bytes: usize) -> impl Iterator<Item = Tensor> {
        self.sources.iter().flat_map(move |source| {
            let [rows, columns] = match *source.shape() {
                [rows, columns] => [rows, columns],
                _ => [0, 0],
            };
            let row = (columns * source.dtype().size()).max(1);
            let step = (bytes / row).max(1);
            let piece = move |start: usize| rows_of(source, start, (start + step).min(rows));
            (0..rows).step_by(step).filter_map(piece)
        })
    }

    /// The numbers of `piece` as they are to be written, or coded.
    pub(super) fn numbers(&self, piece: &Tensor) -> Result<Tensor, Error> {
        let cast = piece.cast(self.dtype, self.added).ok_or_else(|| outside(piece.name()))?;
        match cast.not_finite() {
            None => Ok(cast),
            Some(at) => {
                let row = at / cast.shape().last().copied().unwrap_or(1).max(1);
                Err(not_finite(piece, row, self.dtype))
            }
        }
    }
}

#[expect(clippy::single_range_in_vec_init, reason = "one stretch of rows is meant")]
fn rows_of(tensor: &Tensor, start: usize, end: usize) -> Option<Tensor> {
    tensor.rows(&[start..end])
}

const CONVOLUTION: &str = ".linear_attn.conv1d.weight";

/// The trunk or the head: where its names begin, and what becomes of its tensors.
pub(super) struct Group<'a> {
    recipe: &'a Recipe,
    /// What MLX puts before the names of all.
    language: &'static str,
    /// What MLX puts before those of the trunk but its output head.
    model: &'static str,
    /// What stands before the group's names in the source.
    prefix: &'static str,
    bits: Option<usize>,
    /// Whether routers are coded more finely than the rest.
    keeps_routers: bool,
    encoding: NormEncoding,
}

impl<'a> Group<'a> {
    pub(super) fn of_trunk(recipe: &'a Recipe, family: Family, encoding: NormEncoding) -> Self {
        let language = match family {
            Family::Qwen35Dense | Family::Qwen35Moe => "language_model.",
            Family::Qwen3Next => "",
        };
        let (model, prefix, bits) = ("model.", "", recipe.bits);
        Self { recipe, language, model, prefix, bits, keeps_routers: true, encoding }
    }

    pub(super) fn of_head(
        recipe: &'a Recipe,
        prefix: &'static str,
        encoding: NormEncoding,
    ) -> Self {
        let (language, model, bits) = (mtp::PREFIX, "", recipe.head_bits);
        Self { recipe, language, model, prefix, bits, keeps_routers: false, encoding }
    }

    /// What is to be written of those tensors of `inventory` that are `wanted`.
    pub(super) fn modules(
        &self,
        inventory: &Inventory,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Vec<Module>, Error> {
        let mut modules = vec![];
        let mut apart: BTreeMap<String, BTreeMap<usize, &Stored>> = BTreeMap::new();
        for (name, stored) in inventory.iter() {
            if !wanted(name) {
                continue;
            }
            let name = name.strip_prefix(self.prefix).unwrap_or(name);
            let (path, part) = match name.split_once(".mlp.experts.") {
                None => {
                    modules.push(self.plain(name, stored)?);
                    continue;
                }
                Some((path, part)) => (format!("{path}.mlp.switch_mlp"), part),
            };
            match part.split_once('.') {
                None => modules.extend(self.fused(&path, part, stored)?),
                Some((expert, part)) => {
                    let expert = expert.parse().map_err(|_| wrong(stored, "a numbered expert"))?;
                    apart.entry(format!("{path}.{part}")).or_default().insert(expert, stored);
                }
            }
        }
        for (name, experts) in apart {
            modules.push(self.stacked(&name, &experts)?);
        }
        modules.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(modules)
    }

    /// A tensor that stays by itself.
    fn plain(&self, name: &str, stored: &Stored) -> Result<Module, Error> {
        let tensor = float(stored)?;
        let mut shape = tensor.shape().to_vec();
        // The axis of size one makes no difference in memory.
        if name.ends_with(CONVOLUTION) {
            shape.sort_unstable_by_key(|&size| size == 1);
        }
        let is_gain = shape.len() == 1
            && name.ends_with(".weight")
            && !name.ends_with(".linear_attn.norm.weight");
        let added = match (is_gain, self.encoding) {
            (true, NormEncoding::ZeroCentred) => 1.0,
            (true, NormEncoding::Absolute) | (false, _) => 0.0,
        };
        let sources = vec![flat(&tensor)?];
        self.module(name, shape, sources, added)
    }

    /// Experts whose matrices are stacked already; gate and up may stand in one.
    fn fused(&self, path: &str, part: &str, stored: &Stored) -> Result<Vec<Module>, Error> {
        let tensor = float(stored)?;
        let [experts, rows, columns] = *tensor.shape() else {
            return Err(wrong(stored, "three axes: experts, rows and columns"));
        };
        let parts: &[&str] = match part {
            "gate_up_proj" => &["gate_proj", "up_proj"],
            "down_proj" => &["down_proj"],
            _ => return Err(wrong(stored, "gate_up_proj or down_proj")),
        };
        let (flat, rows) = (flat(&tensor)?, rows / parts.len());
        let of_part = |(i, part): (usize, &&str)| {
            let cut = |e: usize| {
                let start = (e * parts.len() + i) * rows;
                rows_of(&flat, start, start + rows).ok_or_else(|| outside(tensor.name()))
            };
            let sources = match parts.len() {
                1 => vec![flat.clone()],
                _ => (0..experts).map(cut).collect::<Result<_, _>>()?,
            };
            let name = format!("{path}.{part}.weight");
            self.module(&name, vec![experts, rows, columns], sources, 0.0)
        };
        parts.iter().enumerate().map(of_part).collect()
    }

    /// Experts that have a tensor each, as one.
    fn stacked(&self, name: &str, experts: &BTreeMap<usize, &Stored>) -> Result<Module, Error> {
        let mut sources = vec![];
        let mut shape = vec![experts.len()];
        for stored in experts.values() {
            let tensor = float(stored)?;
            let first = sources.first().map_or(tensor.dtype(), Tensor::dtype);
            if self.recipe.dtype.is_none() && tensor.dtype() != first {
                let expected = format!("{first} like the experts before it, or a --dtype for all");
                return Err(wrong(stored, &expected));
            }
            if sources.is_empty() {
                shape.extend(tensor.shape());
            }
            sources.push(flat(&tensor)?);
        }
        self.module(name, shape, sources, 0.0)
    }

    fn module(
        &self,
        name: &str,
        shape: Vec<usize>,
        sources: Vec<Tensor>,
        added: f32,
    ) -> Result<Module, Error> {
        let stored = sources.first().map(Tensor::dtype).ok_or_else(|| outside(name))?;
        // A decay of e^-e^x: what it loses in half precision is lost for good.
        let dtype = match name.ends_with(".A_log") {
            true => stored,
            false => self.recipe.dtype.unwrap_or(stored),
        };
        let model = if name.starts_with("lm_head.") { "" } else { self.model };
        let name = format!("{}{model}{name}", self.language);
        let mut module = Module { name, shape, sources, dtype, added, scheme: None };
        module.scheme = self.scheme(&module);
        Ok(module)
    }

    /// As mlx-lm has it: routers in 8 bits whatever the others are, and no codes where groups do
    /// not fill a row.
    fn scheme(&self, module: &Module) -> Option<Scheme> {
        let (bits, group) = (self.bits.filter(|_| module.is_matrix())?, self.recipe.group);
        let columns = *module.shape.last()?;
        let scheme = match self.keeps_routers && is_router(module.path()) {
            true => Scheme { bits: 8, group: 64 },
            false => Scheme { bits, group },
        };
        let fits = columns.is_multiple_of(group) && columns.is_multiple_of(scheme.group);
        fits.then_some(scheme)
    }
}

/// Whether the module of this path decides which experts are asked.
pub(super) fn is_router(path: &str) -> bool {
    path.ends_with(".mlp.gate") || path.ends_with(".mlp.shared_expert_gate")
}

/// The tensor, which must not be coded already.
fn float(stored: &Stored) -> Result<Tensor, Error> {
    let expected = "f32, f16 or bf16: it is quantised already, convert the original checkpoint";
    typed(stored).filter(|t| t.dtype().is_float()).ok_or_else(|| wrong(stored, expected))
}

/// The same as a matrix.
fn flat(tensor: &Tensor) -> Result<Tensor, Error> {
    let columns = tensor.shape().last().copied().unwrap_or(1).max(1);
    let rows = tensor.shape().iter().product::<usize>() / columns;
    rows_of(tensor, 0, rows).ok_or_else(|| outside(tensor.name()))
}

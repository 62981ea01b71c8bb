//! Which tensor stands where: files of bounded size, their headers, and the index of them.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::Recipe;
use super::modules::Module;
use crate::checkpoint::header::LENGTH_BYTES;

/// One file of weights.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) name: String,
    /// What stands before the elements.
    pub(super) header: Vec<u8>,
    /// Each with the places of its tensors in the file.
    modules: Vec<(Module, Vec<u64>)>,
    data_bytes: u64,
}

impl Shard {
    pub(super) fn new(name: String, modules: Vec<Module>) -> Self {
        // Wide elements first, so that all of them are aligned.
        let mut order = vec![];
        for (m, module) in modules.iter().enumerate() {
            for (part, (name, dtype, shape)) in module.tensors().into_iter().enumerate() {
                order.push((std::cmp::Reverse(dtype.size()), name, (m, part), dtype, shape));
            }
        }
        order.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        let mut header = Map::new();
        header.insert("__metadata__".into(), json!({"format": "mlx"}));
        let mut places = BTreeMap::new();
        let mut end = 0;
        for (_, name, place, dtype, shape) in order {
            let start = end;
            end += (shape.iter().product::<usize>() * dtype.size()) as u64;
            let dtype = dtype.to_string();
            let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]});
            header.insert(name, entry);
            places.insert(place, start);
        }
        let mut text = Value::Object(header).to_string().into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');
        let mut header = (text.len() as u64).to_le_bytes().to_vec();
        debug_assert_eq!(header.len(), LENGTH_BYTES);
        header.extend(text);
        let first = header.len() as u64;
        let places_of = |m: usize| places.range((m, 0)..(m + 1, 0)).map(|(_, at)| first + at);
        let modules = modules.into_iter().enumerate();
        let modules = modules.map(|(m, module)| (module, places_of(m).collect())).collect();
        Self { name, header, modules, data_bytes: end }
    }

    /// The size of the file.
    pub(super) fn bytes_total(&self) -> u64 {
        self.header.len() as u64 + self.data_bytes
    }

    pub(super) fn modules(&self) -> impl Iterator<Item = (&Module, &[u64])> {
        self.modules.iter().map(|(module, places)| (module, places.as_slice()))
    }

    pub(super) fn tensors(&self) -> usize {
        self.modules.iter().map(|(_, places)| places.len()).sum()
    }

    /// The matrices that are not coded although their group is.
    pub(super) fn uncoded(&self, recipe: &Recipe) -> Vec<String> {
        let coded = match self.name == super::HEAD {
            true => recipe.head_bits.is_some(),
            false => recipe.bits.is_some(),
        };
        let plain = |module: &&Module| coded && module.is_matrix() && module.scheme.is_none();
        let modules = self.modules.iter().map(|(module, _)| module);
        modules.filter(plain).map(|module| module.path().to_owned()).collect()
    }
}

fn bytes_of(module: &Module) -> u64 {
    let bytes = |(_, dtype, shape): (String, crate::checkpoint::Dtype, Vec<usize>)| {
        (shape.iter().product::<usize>() * dtype.size()) as u64
    };
    module.tensors().into_iter().map(bytes).sum()
}

/// The trunk's files, as mlx-lm names them.
pub(super) fn shards(modules: Vec<Module>, bytes_max: u64) -> Vec<Shard> {
    let mut groups: Vec<Vec<Module>> = vec![];
    let mut bytes = 0;
    for module in modules {
        let more = bytes_of(&module);
        match groups.last_mut().filter(|_| bytes + more <= bytes_max) {
            Some(group) => group.push(module),
            None => {
                groups.push(vec![module]);
                bytes = 0;
            }
        }
        bytes += more;
    }
    let count = groups.len();
    let name = |i: usize| match count {
        1 => "model.safetensors".to_owned(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
    };
    let shards = groups.into_iter().enumerate();
    shards.map(|(i, group)| Shard::new(name(i), group)).collect()
}

/// The text of the index of the trunk's files.
pub(super) fn index(shards: &[Shard]) -> String {
    let total: u64 = shards.iter().map(|shard| shard.data_bytes).sum();
    let names = shards.iter().flat_map(|shard| {
        let tensors = shard.modules().flat_map(|(module, _)| module.tensors());
        tensors.map(|(name, ..)| (name, shard.name.as_str()))
    });
    let map: BTreeMap<String, &str> = names.collect();
    let index = json!({"metadata": {"total_size": total}, "weight_map": map});
    format!("{index:#}\n")
}

//! The fused input projections of Qwen3-Next. Their rows come in groups, one for each key head:
//! its query, its key, then the values and the gates of the value heads that share it. The forward
//! pass reads all queries, all keys, all values; rows are regrouped once, here, which is exact for
//! codes too. The regrouped copies are kept: about 1 % of such a model.

use std::ops::Range;

use super::Error;
use super::config::GdnShape;
use super::linear::Linear;
use super::reader::{Reader, outside};

/// Rows of one kind within a group: where they begin, and how many they are.
type Kind = (usize, usize);

/// `qkv`, `z`, `b` and `a` from the modules `in_proj_qkvz` and `in_proj_ba` below `prefix`.
pub(super) fn read(
    reader: &Reader<'_>,
    prefix: &str,
    shape: &GdnShape,
    hidden: usize,
) -> Result<[Linear; 4], Error> {
    let heads = shape.value_heads / shape.key_heads;
    let (keys, values) = (shape.key_dim, heads * shape.value_dim);
    let linear = |part: &str, out| reader.linear(&format!("{prefix}{part}"), out, hidden);
    let qkvz = linear("in_proj_qkvz", shape.channels() + shape.values())?;
    let ba = linear("in_proj_ba", 2 * shape.value_heads)?;
    let take = |from: &Linear, part: &str, group: usize, kinds: &[Kind]| {
        let rows = stretches(shape.key_heads, group, kinds);
        from.rows(format!("{prefix}{part}"), &rows).ok_or_else(|| outside(&from.path))
    };
    let group = 2 * (keys + values);
    let [q, k] = [(0, keys), (keys, keys)];
    let [v, z] = [(2 * keys, values), (2 * keys + values, values)];
    Ok([
        take(&qkvz, "in_proj_qkv", group, &[q, k, v])?,
        take(&qkvz, "in_proj_z", group, &[z])?,
        take(&ba, "in_proj_b", 2 * heads, &[(0, heads)])?,
        take(&ba, "in_proj_a", 2 * heads, &[(heads, heads)])?,
    ])
}

/// The rows of each of `kinds` in all of `groups`, kind after kind.
fn stretches(groups: usize, group: usize, kinds: &[Kind]) -> Vec<Range<usize>> {
    let of_kind = |&(first, count): &Kind| {
        (0..groups).map(move |i| i * group + first..i * group + first + count)
    };
    kinds.iter().flat_map(of_kind).collect()
}

#[cfg(test)]
mod tests {
    use super::stretches;

    #[test]
    fn kinds_are_gathered_over_the_groups() {
        assert_eq!(stretches(2, 10, &[(0, 3), (3, 2)]), [0..3, 10..13, 3..5, 13..15]);
    }
}

//! The weights of a mixture of experts, however a file lays them out.

use super::Error;
use super::config::MoeShape;
use super::linear::Linear;
use super::reader::{Reader, outside};
use super::weights::{self, Mlp};

/// `sum of r_e · expert_e(x) over the routed e, + sigmoid(shared_gate x) · shared(x)`.
#[derive(Clone, Debug)]
pub struct MoeWeights {
    /// [experts, hidden].
    pub router: Linear,
    /// One after the other, [hidden → expert's ffn → hidden]. Those of one tensor share its bytes.
    pub experts: Vec<Mlp>,
    /// The expert of every token [hidden → shared ffn → hidden].
    pub shared: Mlp,
    /// [1, hidden].
    pub shared_gate: Linear,
}

/// The block at `path`, such as `layers.0.mlp`.
pub(super) fn read(
    reader: &Reader<'_>,
    path: &str,
    hidden: usize,
    shape: &MoeShape,
) -> Result<MoeWeights, Error> {
    Ok(MoeWeights {
        router: reader.linear(&format!("{path}.gate"), shape.experts, hidden)?,
        experts: experts(reader, path, hidden, shape)?,
        shared: weights::dense(reader, &format!("{path}.shared_expert"), hidden, shape.shared_ffn)?,
        shared_gate: reader.linear(&format!("{path}.shared_expert_gate"), 1, hidden)?,
    })
}

/// MLX stacks the experts' matrices; published files do too, gate and up in one; or each expert has
/// its own tensors.
fn experts(
    reader: &Reader<'_>,
    path: &str,
    hidden: usize,
    shape: &MoeShape,
) -> Result<Vec<Mlp>, Error> {
    let (count, ffn) = (shape.experts, shape.ffn);
    // Whichever of a layout's tensors is there: one that lacks another is told which.
    let has = |parts: &[&str]| parts.iter().any(|p| reader.has(&format!("{path}.experts.{p}")));
    if has(&["gate_up_proj", "down_proj"]) {
        let name = |part: &str| format!("{path}.experts.{part}");
        let gate_up = reader.bare_stack(&name("gate_up_proj"), count, 2 * ffn, hidden)?;
        let down = reader.bare_stack(&name("down_proj"), count, hidden, ffn)?;
        let expert = |e: usize| {
            let gate = 2 * e * ffn;
            Ok(Mlp {
                gate: cut(&gate_up, e, gate, ffn)?,
                up: cut(&gate_up, e, gate + ffn, ffn)?,
                down: cut(&down, e, e * hidden, hidden)?,
            })
        };
        return (0..count).map(expert).collect();
    }
    if has(&["0.gate_proj.weight", "0.up_proj.weight", "0.down_proj.weight"]) {
        let expert = |e| weights::dense(reader, &format!("{path}.experts.{e}"), hidden, ffn);
        return (0..count).map(expert).collect();
    }
    let name = |part: &str| format!("{path}.switch_mlp.{part}");
    let gate = reader.stack(&name("gate_proj"), count, ffn, hidden)?;
    let up = reader.stack(&name("up_proj"), count, ffn, hidden)?;
    let down = reader.stack(&name("down_proj"), count, hidden, ffn)?;
    let expert = |e: usize| {
        Ok(Mlp {
            gate: cut(&gate, e, e * ffn, ffn)?,
            up: cut(&up, e, e * ffn, ffn)?,
            down: cut(&down, e, e * hidden, hidden)?,
        })
    };
    (0..count).map(expert).collect()
}

/// Expert `e`'s matrix: the `count` rows from `first` on.
#[expect(clippy::single_range_in_vec_init, reason = "one stretch of rows is meant")]
fn cut(stack: &Linear, e: usize, first: usize, count: usize) -> Result<Linear, Error> {
    let rows = stack.rows(format!("{}.{e}", stack.path), &[first..first + count]);
    rows.ok_or_else(|| outside(&stack.path))
}

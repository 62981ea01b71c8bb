//! `mtplx bench products`: what a product with quantised weights costs by the rows that share it,
//! beside what reading the weights must take. Verification stands on this being flat.

use std::fmt;

use anyhow::{Result, bail};
use clap::Args;
use mtplx_kernels::place::{Dtype, Place};
use mtplx_kernels::shape::{self, Scheme};
use schemars::JsonSchema;
use serde::Serialize;

use super::shape::{Half, one_of, told};

/// What is measured.
#[derive(Args, Debug, Clone)]
#[command(after_help = "Examples:\n  mtplx bench products\n  \
    mtplx bench products --outputs 4096 --inputs 4096 --rows 1,4,8 --json")]
pub struct ProductsArgs {
    /// Outputs of the matrix.
    #[arg(long, default_value_t = 17408)]
    pub outputs: usize,
    /// Inputs of it.
    #[arg(long, default_value_t = 5120)]
    pub inputs: usize,
    /// Rows that share it.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 64])]
    pub rows: Vec<usize>,
    /// Bits of a weight.
    #[arg(long, default_value = "4", value_parser = one_of([4, 8]))]
    pub bits: usize,
    /// Weights that share a scale.
    #[arg(long, default_value = "64", value_parser = one_of([32, 64, 128]))]
    pub group: usize,
    /// Activations and scales, on a GPU.
    #[arg(long, value_enum, default_value_t = Half::Bfloat16)]
    pub dtype: Half,
    /// One object of JSON in place of lines for people; `mtplx schema bench-products` describes
    /// it.
    #[arg(long)]
    pub json: bool,
}

/// What `mtplx bench products --json` prints.
#[derive(Debug, JsonSchema, Serialize)]
pub(crate) struct Report {
    weights: String,
    place: String,
    device: Option<String>,
    mlx: String,
    copy_gb_s: f64,
    /// What reading the weights takes at the rate of a copy.
    floor_us: f64,
    products: Vec<Product>,
}

#[derive(Debug, JsonSchema, Serialize)]
struct Product {
    rows: usize,
    us: f64,
    share_of_copy: f64,
    over_one_row: Option<f64>,
}

/// Measures and prints.
///
/// # Errors
/// When a shape cannot be, or MLX fails.
pub fn run(args: &ProductsArgs) -> Result<()> {
    let ProductsArgs { outputs, inputs, bits, group, .. } = *args;
    let elements = outputs.checked_mul(inputs).filter(|n| (1..=1 << 32).contains(n));
    if elements.is_none() || inputs % 128 != 0 {
        bail!(
            "{outputs} × {inputs}: inputs must be a multiple of 128, and all at most 2³² weights"
        );
    }
    if args.rows.iter().any(|rows| !(1..=4096).contains(rows)) {
        bail!("--rows: each must be from 1 to 4096");
    }
    let half = args.dtype == Half::Float16;
    let scheme = Scheme { bits, group, half };
    let place = Place::detect(if half { Dtype::Float16 } else { Dtype::Bfloat16 })?;
    let copy = shape::bandwidth(place)?;
    let times = shape::products(place, scheme, [outputs, inputs], &args.rows)?;
    let floor_us = 1e6 * (outputs * inputs) as f64 * scheme.bytes() / copy;
    let one = times.iter().find(|time| time.rows == 1).map(|time| time.micros);
    let product = |time: &shape::ProductTime| Product {
        rows: time.rows,
        us: time.micros,
        share_of_copy: floor_us / time.micros,
        over_one_row: one.map(|one| time.micros / one),
    };
    let report = Report {
        weights: format!("{outputs}×{inputs}, random, {bits} bits in groups of {group}"),
        place: place.name(),
        device: shape::device_name(),
        mlx: shape::mlx_version(),
        copy_gb_s: copy / 1e9,
        floor_us,
        products: times.iter().map(product).collect(),
    };
    told(&if args.json { serde_json::to_string(&report)? } else { report.to_string() })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let device = self.device.as_deref().unwrap_or("a device without a name");
        writeln!(f, "{}", self.weights)?;
        writeln!(f, "{device}, MLX {}, {}", self.mlx, self.place)?;
        writeln!(f, "copy, read and written: {:.0} GB/s", self.copy_gb_s)?;
        write!(f, "the weights alone: {:.1} us", self.floor_us)?;
        for Product { rows, us, share_of_copy, over_one_row } in &self.products {
            let share = 100.0 * share_of_copy;
            write!(f, "\nM={rows:<2} {us:8.1} us, {share:.0} % of copy bandwidth")?;
            if let Some(over) = over_one_row {
                write!(f, ", {over:.2} of M=1")?;
            }
        }
        Ok(())
    }
}

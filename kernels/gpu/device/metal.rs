//! Custom Metal kernels through mlx-rs. MLX writes a kernel's signature from the arrays of the
//! call, and compiles it when a result is first evaluated: what the compiler finds wrong comes out
//! of a kernel's trial.

use std::cell::RefCell;
use std::collections::BTreeMap;

use mlx_rs::error::Result;
use mlx_rs::fast::{MetalKernel, MetalKernelApplyOptions, MetalKernelOptions, MetalKernelOutput};
use mlx_rs::{Array, DeviceType, Dtype};

use super::{Launch, Limits, Source};

/// Fewer elements than this lie in another address space, which is part of the signature.
const CONSTANT_MAX: usize = 8;

/// A source with its settings.
#[derive(Debug)]
pub(super) struct Kernel {
    source: Source,
    name: String,
    header: String,
    body: String,
    /// By the kinds of the arrays: MLX would compile anew whenever a name changes its signature.
    variants: RefCell<BTreeMap<String, MetalKernel>>,
}

impl Kernel {
    pub(super) fn compile(
        source: &Source,
        name: &str,
        settings: &[(&str, String)],
    ) -> Result<Self> {
        let (header, body) = source.metal_texts(settings);
        let variants = RefCell::default();
        Ok(Self { source: *source, name: name.to_owned(), header, body, variants })
    }

    /// # Safety
    /// As [`super::Kernel::call`].
    pub(super) unsafe fn call(
        &self,
        inputs: &[&Array],
        outputs: &[(&[i32], Dtype)],
        launch: Launch<'_>,
    ) -> Result<Vec<Array>> {
        let scalars = Array::from_slice(launch.scalars, &[launch.scalars.len() as i32]);
        let inputs: Vec<&Array> = inputs.iter().copied().chain([&scalars]).collect();
        let kind = inputs.iter().map(|a| kind(a)).collect::<String>();
        let mut variants = self.variants.borrow_mut();
        if !variants.contains_key(&kind) {
            variants.insert(kind.clone(), self.variant(&kind, inputs.len() - 1)?);
        }
        let outputs: Vec<MetalKernelOutput> = outputs
            .iter()
            .map(|(shape, dtype)| MetalKernelOutput { shape: shape.to_vec(), dtype: *dtype })
            .collect();
        let group = launch.threads as i32;
        // MLX counts a grid in threads.
        let grid = (launch.blocks as i32 * group, 1, 1);
        let options = MetalKernelApplyOptions::default();
        // SAFETY: as promised to this function; what is written into inputs is its caller's affair.
        unsafe { variants[&kind].apply(&inputs, &outputs, grid, (group, 1, 1), options) }
    }

    fn variant(&self, kind: &str, inputs: usize) -> Result<MetalKernel> {
        let names: Vec<&str> =
            self.source.inputs[..inputs].iter().copied().chain(["scalars"]).collect();
        let options = MetalKernelOptions { header: self.header.clone(), ..Default::default() };
        let name = format!("{}{kind}", self.name);
        MetalKernel::new(&name, &names, &[self.source.output], &self.body, options)
    }
}

/// What of an array is part of a signature, fit for a name.
fn kind(array: &Array) -> String {
    let place = match (array.ndim(), array.size()) {
        (0, _) => "value",
        (_, ..CONSTANT_MAX) => "constant",
        _ => "device",
    };
    format!("_{:?}_{place}", array.dtype())
}

/// Zeros: nothing of Metal's asks.
#[cfg_attr(target_os = "linux", expect(dead_code, reason = "macOS alone asks"))]
pub(super) fn limits() -> Limits {
    Limits { multiprocessors: 0, shared_bytes: 0 }
}

pub(super) fn is_known() -> bool {
    let kind = mlx_rs::Device::try_default().and_then(|device| device.get_type());
    matches!(kind, Ok(DeviceType::Gpu))
}

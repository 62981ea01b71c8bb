//! Custom Metal kernels through mlx-rs.

use mlx_rs::error::Result;
use mlx_rs::fast::{
    MetalKernel, MetalKernelApplyOptions, MetalKernelOptions, MetalKernelOutput, TemplateArg,
};
use mlx_rs::{Array, Dtype};

use super::{Launch, Source};

/// A kernel of MLX's.
#[derive(Debug)]
pub(super) struct Kernel(MetalKernel);

impl Kernel {
    pub(super) fn new(source: &Source, name: &str) -> Result<Self> {
        let options = MetalKernelOptions {
            header: source.header.into(),
            ensure_row_contiguous: true,
            atomic_outputs: false,
        };
        MetalKernel::new(name, source.inputs, source.outputs, source.body, options).map(Self)
    }

    /// # Safety
    /// As [`super::Kernel::call`].
    pub(super) unsafe fn call(
        &self,
        inputs: &[&Array],
        outputs: &[(&[i32], Dtype)],
        launch: Launch<'_>,
    ) -> Result<Vec<Array>> {
        let output = |(shape, dtype): &(&[i32], Dtype)| MetalKernelOutput {
            shape: shape.to_vec(),
            dtype: *dtype,
        };
        let outputs: Vec<MetalKernelOutput> = outputs.iter().map(output).collect();
        let types = launch.dtypes.iter().map(|(n, d)| ((*n).to_owned(), TemplateArg::Dtype(*d)));
        let ints = launch.constants.iter().map(|(n, v)| ((*n).to_owned(), TemplateArg::Int(*v)));
        let options = MetalKernelApplyOptions {
            template_args: types.chain(ints).collect(),
            ..MetalKernelApplyOptions::default()
        };
        // MLX counts a grid in threads.
        let (grid, group) = ((launch.blocks * launch.threads, 1, 1), (launch.threads, 1, 1));
        // SAFETY: as promised to this function.
        unsafe { self.0.apply(inputs, &outputs, grid, group, options) }
    }
}

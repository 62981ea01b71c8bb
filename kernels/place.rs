//! Where the model runs, and what follows from it.

use std::cell::Cell;

pub use mlx_rs::Dtype;
use mlx_rs::{Device, DeviceType};

#[cfg(target_os = "linux")]
use crate::error::Error;
use crate::error::Result;

/// Where arrays are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// MLX's CPU stream with the Rust kernels of [`crate::cpu`] in its graph; fp32 throughout.
    #[cfg(target_os = "linux")]
    Host,
    /// MLX's default device with MLX's own operations, activations in this type.
    Mlx(Dtype),
}

impl Place {
    /// The best place this process has: the GPU if MLX has one, else the CPU.
    ///
    /// # Errors
    /// When MLX cannot name its default device; or is its CUDA library, which computes nothing
    /// where the driver knows of no GPU.
    pub fn detect(checkpoint: Dtype) -> Result<Self> {
        #[cfg(target_os = "linux")]
        if crate::gpu::device::is_missed() {
            return Err(Error::NoGpu(
                "MLX's CUDA library is loaded, and NVIDIA's driver finds no GPU that it can use: \
                 see what nvidia-smi says, or start without CUDA=1 (without that library on \
                 LD_LIBRARY_PATH) to run on the CPU",
            ));
        }
        let gpu = matches!(Device::try_default()?.get_type()?, DeviceType::Gpu);
        #[cfg(target_os = "linux")]
        if !gpu {
            return Ok(Self::Host);
        }
        let _ = gpu;
        Ok(Self::Mlx(checkpoint))
    }

    /// The type of activations and caches.
    #[must_use]
    pub fn dtype(self) -> Dtype {
        match self {
            #[cfg(target_os = "linux")]
            Self::Host => Dtype::Float32,
            Self::Mlx(dtype) => dtype,
        }
    }

    /// Whether a text is the same to the bit here, whatever is drafted and in whatever company.
    #[must_use]
    pub fn is_exact(self) -> bool {
        match self {
            #[cfg(target_os = "linux")]
            Self::Host => true,
            Self::Mlx(_) => false,
        }
    }

    /// For people.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            #[cfg(target_os = "linux")]
            Self::Host => "cpu, fp32, host kernels".into(),
            Self::Mlx(dtype) => format!("mlx default device, {dtype:?}"),
        }
    }
}

thread_local! {
    static EVALUATIONS: Cell<u64> = const { Cell::new(0) };
}

/// How often this thread has waited for arrays.
#[must_use]
pub fn evaluations() -> u64 {
    EVALUATIONS.get()
}

/// Evaluates `arrays`; what failed in a Rust kernel of their graph is an error too.
///
/// # Errors
/// What MLX or a kernel met.
pub fn eval<'a>(arrays: impl IntoIterator<Item = &'a mlx_rs::Array>) -> Result<()> {
    EVALUATIONS.set(EVALUATIONS.get() + 1);
    #[cfg(target_os = "linux")]
    crate::host::eval(arrays)?;
    #[cfg(not(target_os = "linux"))]
    mlx_rs::transforms::eval(arrays)?;
    Ok(())
}

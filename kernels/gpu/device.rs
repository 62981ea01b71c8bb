//! A kernel's way to the device: source to a run-time compiler, arrays in, arrays out. CUDA on
//! Linux, Metal on macOS.
//!
//! Kernels may write into their inputs. MLX knows nothing of that, so whoever hands such an array
//! to MLX again must first have evaluated an output of the call, or pass it along.

use mlx_rs::error::Exception;
use mlx_rs::{Array, Dtype};

use crate::error::Result;

/// What a kernel is made of.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// Its name, for people.
    pub name: &'static str,
    /// The text, with one kernel in it.
    pub text: &'static str,
}

/// How a kernel is launched.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// Numbers that follow the arrays among the kernel's arguments.
    pub scalars: &'a [i32],
    /// Blocks of threads.
    pub blocks: usize,
    /// Threads of a block.
    pub threads: usize,
}

/// A compiled kernel.
#[derive(Debug)]
pub struct Kernel(imp::Kernel);

impl Kernel {
    /// Compiles a source with `settings`: its macros, by name.
    ///
    /// # Errors
    /// Where there is no GPU of the kind, and what the compiler finds wrong.
    pub fn compile(source: &Source, settings: &[(&str, String)]) -> Result<Self> {
        Ok(Self(imp::Kernel::compile(source, &unique_name(source, settings), settings)?))
    }

    /// Adds a call to the graph; its results are not computed yet.
    ///
    /// # Safety
    /// The source must stay inside the arrays it is given, and write every element of its outputs.
    /// What it writes into inputs is told to nobody; see above.
    ///
    /// # Errors
    /// When MLX refuses the call.
    pub unsafe fn call<const N: usize>(
        &self,
        inputs: &[&Array],
        outputs: [(&[i32], Dtype); N],
        launch: Launch<'_>,
    ) -> Result<[Array; N]> {
        // SAFETY: as promised to this function.
        let results = unsafe { self.0.call(inputs, &outputs, launch) }?;
        results.try_into().map_err(|_| Exception::custom("a kernel lost an output").into())
    }
}

/// The kind and generation of the GPU: 10 · compute capability on CUDA; 0 where there is none.
#[must_use]
pub fn generation() -> i32 {
    imp::generation()
}

/// MLX keeps loaded kernels by name: another source or setting must have another.
fn unique_name(source: &Source, settings: &[(&str, String)]) -> String {
    let said = settings.iter().flat_map(|(name, value)| [*name, "=", value, ","]);
    let hash = [source.text]
        .into_iter()
        .chain(said)
        .flat_map(str::bytes)
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    format!("mtplx_{}_{hash:016x}", source.name)
}

#[cfg(target_os = "linux")]
#[path = "device/cuda.rs"]
mod imp;
#[cfg(target_os = "macos")]
#[path = "device/metal.rs"]
mod imp;

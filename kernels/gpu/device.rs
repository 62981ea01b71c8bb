//! A kernel's way to the device: source to MLX's run-time compiler, arrays in, arrays out. CUDA on
//! Linux through mlx-c, Metal on macOS through mlx-rs.

use mlx_rs::error::Exception;
use mlx_rs::{Array, Dtype};

use crate::error::Result;

/// What a kernel is made of.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// Its name, for people.
    pub name: &'static str,
    /// Names of its inputs.
    pub inputs: &'static [&'static str],
    /// Names of its outputs.
    pub outputs: &'static [&'static str],
    /// Functions that stand before the kernel.
    pub header: &'static str,
    /// What stands between the kernel's braces.
    pub body: &'static str,
}

/// How a kernel is launched.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// Constants of the source: values, by name.
    pub constants: &'a [(&'static str, i32)],
    /// Types of the source, by name.
    pub dtypes: &'a [(&'static str, Dtype)],
    /// Blocks of threads.
    pub blocks: i32,
    /// Threads of a block.
    pub threads: i32,
}

/// A kernel; MLX compiles it at the first evaluation of each set of constants and types.
#[derive(Debug)]
pub struct Kernel(imp::Kernel);

impl Kernel {
    /// Hands a source to MLX.
    ///
    /// # Errors
    /// When MLX refuses it.
    pub fn new(source: &Source) -> Result<Self> {
        Ok(Self(imp::Kernel::new(source, &unique_name(source))?))
    }

    /// Adds a call to the graph; its results are not computed yet. What does not compile fails the
    /// evaluation.
    ///
    /// # Safety
    /// The source must stay inside the arrays it is given, write every element of its outputs and
    /// write nothing else.
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

/// MLX keeps compiled kernels by name, on disk too: another source must have another name.
fn unique_name(source: &Source) -> String {
    let text = [source.header, source.body].concat();
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
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

//! A kernel's way to the device: source to a run-time compiler, arrays in, arrays out. CUDA on
//! Linux, Metal on macOS.
//!
//! Kernels may write into their inputs. MLX knows nothing of that, so whoever hands such an array
//! to MLX again must first have evaluated an output of the call, or pass it along; and what MLX was
//! to read of it before must have been evaluated before the call.

use mlx_rs::error::Exception;
use mlx_rs::{Array, Dtype};

use crate::error::Result;

/// What all Metal sources begin with.
#[cfg(any(test, target_os = "macos"))]
const METAL_SHARED: &str = include_str!("scalar.metal");

/// What a kernel is made of: one contract, written for both kinds of device.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// Its name, for people.
    pub name: &'static str,
    /// CUDA's text, with one kernel in it.
    pub cuda: &'static str,
    /// Metal's: functions, and with `BODY` defined the statements of the kernel.
    pub metal: &'static str,
    /// Metal's names of the inputs, of which a call may leave out the last; the scalars follow.
    pub inputs: &'static [&'static str],
    /// Metal's name of the output.
    pub output: &'static str,
}

impl Source {
    /// What stands before a Metal kernel, and its statements.
    #[cfg(any(test, target_os = "macos"))]
    fn metal_texts(&self, settings: &[(&str, String)]) -> (String, String) {
        let defines: String =
            settings.iter().map(|(name, value)| format!("#define SET_{name} {value}\n")).collect();
        let header = format!("{defines}{METAL_SHARED}{}", self.metal);
        (header, format!("#define BODY\n{}", self.metal))
    }
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
    /// Memory of a block besides what the source declares; CUDA's alone.
    pub shared_bytes: usize,
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

/// Whether there is a GPU that the kernels are written for.
#[must_use]
pub fn is_known() -> bool {
    imp::is_known()
}

/// Whether MLX came for a GPU, and the driver knows of none.
#[cfg(target_os = "linux")]
#[must_use]
pub fn is_missed() -> bool {
    imp::has_driver() && imp::generation() == 0
}

/// What a device has room for; it changes no result.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Multiprocessors.
    pub multiprocessors: usize,
    /// Shared memory that a block may have.
    pub shared_bytes: usize,
}

/// The limits of the GPU, or of a small one where nobody knows.
#[must_use]
pub fn limits() -> Limits {
    let known = |value: usize, otherwise: usize| if value == 0 { otherwise } else { value };
    let Limits { multiprocessors, shared_bytes } = imp::limits();
    Limits {
        multiprocessors: known(multiprocessors, 64),
        shared_bytes: known(shared_bytes, 48 << 10),
    }
}

/// Whether an array that the host fills lies in memory that the device has to wait for.
pub const HOST_IS_FAR: bool = cfg!(target_os = "linux");

/// MLX keeps loaded kernels by name: another source or setting must have another.
fn unique_name(source: &Source, settings: &[(&str, String)]) -> String {
    let said = settings.iter().flat_map(|(name, value)| [*name, "=", value, ","]);
    let hash = [source.cuda, source.metal]
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

/// Compiled on Linux, too, as far as it goes there: to MLX, which has no Metal.
#[cfg(all(test, target_os = "linux"))]
#[path = "device/metal.rs"]
mod metal;

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    const SOURCE: Source = Source {
        name: "twice",
        cuda: "",
        metal: "#ifdef BODY\nout[0] = 2 * a[0];\n#endif\n",
        inputs: &["a", "b"],
        output: "out",
    };

    #[test]
    fn a_metal_source_reaches_mlx_with_its_settings_and_scalars() {
        let settings = [("TYPE", "Brain".to_owned()), ("K", "7".to_owned())];
        let (header, body) = SOURCE.metal_texts(&settings);
        assert!(header.starts_with("#define SET_TYPE Brain\n#define SET_K 7\n"), "{header}");
        assert!(header.contains("typedef SET_TYPE Scalar;") && !header.contains("#define BODY"));
        assert!(body.starts_with("#define BODY\n"), "{body}");
        let kernel = metal::Kernel::compile(&SOURCE, "twice", &settings).unwrap();
        let a = Array::from_slice(&[1.0_f32; 8], &[8]);
        let launch = Launch { scalars: &[3], blocks: 2, threads: 32, shared_bytes: 0 };
        let output: (&[i32], Dtype) = (&[1], Dtype::Float32);
        // SAFETY: nothing runs without Metal.
        let refused = unsafe { kernel.call(&[&a], &[output], launch) }.unwrap_err();
        assert!(refused.to_string().contains("mlx"), "MLX itself refuses: {refused}");
        assert!(!metal::is_known() || is_known(), "a GPU that nobody knows");
    }
}

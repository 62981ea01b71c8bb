//! Custom CUDA kernels through MLX's `precompiled_cuda_kernel`, which neither mlx-c nor mlx-rs
//! wraps; the C++ half is `native/cuda_call.cpp`.
//!
//! mlx-c's `cuda_kernel` would do too, and did: but it puts the source together anew for every
//! call, knows no launch bounds, and compiles behind 7 seconds' worth of headers.

use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr;

use mlx_rs::error::{Exception, Result};
use mlx_rs::{Array, Dtype, Stream};

use super::{Launch, Limits, Source};

/// The longest text of a failure, in bytes, with its final zero.
const ERROR_BYTES_MAX: usize = 4096;

/// Machine code, and its entry's name.
#[derive(Debug)]
pub(super) struct Kernel {
    name: CString,
    image: Vec<u8>,
}

impl Kernel {
    pub(super) fn compile(
        source: &Source,
        name: &str,
        settings: &[(&str, String)],
    ) -> Result<Self> {
        let arch = generation();
        if arch == 0 {
            return Err(Exception::custom("there is no CUDA GPU"));
        }
        let fixed = [
            format!("--gpu-architecture=sm_{arch}"),
            "--std=c++17".into(),
            // Generic lambdas name no side of their own, and there is no host here.
            "-default-device".into(),
            define("NAME", name),
        ];
        let settings = settings.iter().map(|(name, value)| define(name, value));
        let options: Vec<CString> =
            fixed.into_iter().chain(settings).map(|o| text(&o)).collect::<Result<_>>()?;
        let options: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();
        let code = text(source.cuda)?;
        let (mut image, mut size) = (ptr::null_mut(), 0);
        tried(source.name, |error, room| {
            // SAFETY: every pointer is good for its length throughout the call.
            unsafe {
                mtplx_cuda_compile(
                    code.as_ptr(),
                    options.as_ptr(),
                    options.len(),
                    &raw mut image,
                    &raw mut size,
                    error,
                    room,
                )
            }
        })?;
        // SAFETY: the call succeeded, so `image` has `size` bytes, and is freed once.
        let image = unsafe {
            let copy = std::slice::from_raw_parts(image.cast::<u8>(), size).to_vec();
            mtplx_cuda_free(image);
            copy
        };
        Ok(Self { name: text(name)?, image })
    }

    /// # Safety
    /// As [`super::Kernel::call`].
    pub(super) unsafe fn call(
        &self,
        inputs: &[&Array],
        outputs: &[(&[i32], Dtype)],
        launch: Launch<'_>,
    ) -> Result<Vec<Array>> {
        let handles: Vec<mlx_sys::mlx_array> = inputs.iter().map(|a| a.as_ptr()).collect();
        let raw_outputs: Vec<RawOutput> = outputs
            .iter()
            .map(|(shape, dtype)| RawOutput {
                shape: shape.as_ptr(),
                ndim: shape.len(),
                dtype: (*dtype).into(),
            })
            .collect();
        let raw = RawLaunch {
            name: self.name.as_ptr(),
            image: self.image.as_ptr().cast(),
            image_size: self.image.len(),
            scalars: launch.scalars.as_ptr(),
            scalars_len: launch.scalars.len(),
            blocks: launch.blocks as c_int,
            threads: launch.threads as c_int,
            shared_bytes: launch.shared_bytes as c_int,
        };
        let stream = Stream::thread_local_or_gpu();
        let mut results = vec![mlx_sys::mlx_array { ctx: ptr::null_mut() }; outputs.len()];
        tried("a call of a CUDA kernel", |error, room| {
            // SAFETY: every pointer is good for its length throughout the call; the handles are
            // borrowed from live arrays.
            unsafe {
                mtplx_cuda_call(
                    results.as_mut_ptr(),
                    &raw const raw,
                    handles.as_ptr(),
                    handles.len(),
                    raw_outputs.as_ptr(),
                    raw_outputs.len(),
                    stream.as_ptr(),
                    error,
                    room,
                )
            }
        })?;
        // SAFETY: each result is a new handle that nobody else frees.
        Ok(results.into_iter().map(|array| unsafe { Array::from_ptr(array) }).collect())
    }
}

pub(super) fn is_known() -> bool {
    // From 8.0 on tensor cores take bf16. Run on 9.0 alone so far; trials judge the others.
    generation() >= 80
}

/// Whether the driver's library is in this process: MLX's CUDA library brings it along.
pub(super) fn has_driver() -> bool {
    // SAFETY: it looks up a name.
    unsafe { !libc::dlsym(libc::RTLD_DEFAULT, c"cuInit".as_ptr()).is_null() }
}

/// 10 · compute capability; 0 where there is no GPU.
pub(super) fn generation() -> i32 {
    // The driver's numbers for the two halves of the compute capability.
    10 * attribute(75) + attribute(76)
}

/// Zeros where nobody knows.
pub(super) fn limits() -> Limits {
    let size = |number| usize::try_from(attribute(number)).unwrap_or(0);
    // The driver's numbers for multiprocessors, and for what a block may ask for.
    Limits { multiprocessors: size(16), shared_bytes: size(97) }
}

/// One of the driver's facts about the GPU; 0 where there is none.
fn attribute(number: c_int) -> c_int {
    // SAFETY: it touches nothing of ours.
    unsafe { mtplx_cuda_attribute(number) }
}

fn define(name: &str, value: &str) -> String {
    format!("-DSET_{name}={value}")
}

fn text(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Exception::custom("a kernel's text holds a zero"))
}

/// Runs a call that writes its failure's words into a buffer.
fn tried(what: &str, call: impl FnOnce(*mut c_char, usize) -> c_int) -> Result<()> {
    let mut error = [0; ERROR_BYTES_MAX];
    if call(error.as_mut_ptr(), error.len()) == 0 {
        return Ok(());
    }
    // SAFETY: the buffer started as zeros and its last byte is never written but with one.
    let words = unsafe { CStr::from_ptr(error.as_ptr()) }.to_string_lossy();
    Err(Exception::custom(format!("{what}: {words}")))
}

/// `mtplx_cuda_output` of `cuda_call.h`.
#[repr(C)]
struct RawOutput {
    shape: *const c_int,
    ndim: usize,
    dtype: mlx_sys::mlx_dtype,
}

/// `mtplx_cuda_launch` of `cuda_call.h`.
#[repr(C)]
struct RawLaunch {
    name: *const c_char,
    image: *const c_char,
    image_size: usize,
    scalars: *const c_int,
    scalars_len: usize,
    blocks: c_int,
    threads: c_int,
    shared_bytes: c_int,
}

unsafe extern "C" {
    fn mtplx_cuda_attribute(number: c_int) -> c_int;
    fn mtplx_cuda_compile(
        source: *const c_char,
        options: *const *const c_char,
        options_len: usize,
        image: *mut *mut c_char,
        image_size: *mut usize,
        error: *mut c_char,
        error_size: usize,
    ) -> c_int;
    fn mtplx_cuda_free(image: *mut c_char);
    fn mtplx_cuda_call(
        results: *mut mlx_sys::mlx_array,
        launch: *const RawLaunch,
        inputs: *const mlx_sys::mlx_array,
        inputs_len: usize,
        outputs: *const RawOutput,
        outputs_len: usize,
        stream: mlx_sys::mlx_stream,
        error: *mut c_char,
        error_size: usize,
    ) -> c_int;
}

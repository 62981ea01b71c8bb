//! Custom CUDA kernels through mlx-c, which mlx-rs does not wrap.

use std::ffi::{CString, c_char};
use std::ptr;

use mlx_rs::error::{Exception, Result};
use mlx_rs::{Array, Dtype, Stream};

use super::{Launch, Source};

/// A handle that this module owns.
#[derive(Debug)]
pub(super) struct Kernel {
    raw: mlx_sys::mlx_fast_cuda_kernel,
}

struct Config(mlx_sys::mlx_fast_cuda_kernel_config);
struct Names(mlx_sys::mlx_vector_string);
struct Arrays(mlx_sys::mlx_vector_array);

impl Kernel {
    pub(super) fn new(source: &Source, name: &str) -> Result<Self> {
        let (name, header) = (text(name)?, text(source.header)?);
        let (inputs, outputs) = (Names::new(source.inputs)?, Names::new(source.outputs)?);
        let body = text(source.body)?;
        // SAFETY: every pointer is good throughout the call, which copies what it keeps.
        let raw = unsafe {
            mlx_sys::mlx_fast_cuda_kernel_new(
                name.as_ptr(),
                inputs.0,
                outputs.0,
                body.as_ptr(),
                header.as_ptr(),
                true,
                0,
            )
        };
        if raw.ctx.is_null() {
            return Err(Exception::custom("this MLX has no CUDA kernels"));
        }
        Ok(Self { raw })
    }

    /// # Safety
    /// As [`super::Kernel::call`].
    pub(super) unsafe fn call(
        &self,
        inputs: &[&Array],
        outputs: &[(&[i32], Dtype)],
        launch: Launch<'_>,
    ) -> Result<Vec<Array>> {
        let config = Config::new(outputs, launch)?;
        let handles: Vec<mlx_sys::mlx_array> = inputs.iter().map(|a| a.as_ptr()).collect();
        let stream = Stream::thread_local_or_gpu();
        // SAFETY: handles are borrowed from live arrays, the vectors are freed by their owners,
        // and each result is a new handle that nobody else frees.
        unsafe {
            let given = Arrays(mlx_sys::mlx_vector_array_new_data(handles.as_ptr(), handles.len()));
            let mut made = Arrays(mlx_sys::mlx_vector_array_new());
            let status = mlx_sys::mlx_fast_cuda_kernel_apply(
                &raw mut made.0,
                self.raw,
                given.0,
                config.0,
                stream.as_ptr(),
            );
            check(status, "MLX refused the call of a CUDA kernel")?;
            (0..outputs.len())
                .map(|i| {
                    let mut array = mlx_sys::mlx_array { ctx: ptr::null_mut() };
                    let status = mlx_sys::mlx_vector_array_get(&raw mut array, made.0, i);
                    check(status, "a CUDA kernel lost an output")?;
                    Ok(Array::from_ptr(array))
                })
                .collect()
        }
    }
}

impl Config {
    fn new(outputs: &[(&[i32], Dtype)], launch: Launch<'_>) -> Result<Self> {
        let what = "MLX refused the shape of a CUDA call";
        // SAFETY: every pointer is good throughout its call, which copies what it keeps.
        unsafe {
            let config = Self(mlx_sys::mlx_fast_cuda_kernel_config_new());
            let raw = config.0;
            for (shape, dtype) in outputs {
                let (at, len) = (shape.as_ptr(), shape.len());
                let dtype = (*dtype).into();
                let status =
                    mlx_sys::mlx_fast_cuda_kernel_config_add_output_arg(raw, at, len, dtype);
                check(status, what)?;
            }
            // MLX counts a grid in threads.
            let (all, threads) = (launch.blocks * launch.threads, launch.threads);
            check(mlx_sys::mlx_fast_cuda_kernel_config_set_grid(raw, all, 1, 1), what)?;
            let status = mlx_sys::mlx_fast_cuda_kernel_config_set_thread_group(raw, threads, 1, 1);
            check(status, what)?;
            check(mlx_sys::mlx_fast_cuda_kernel_config_set_verbose(raw, false), what)?;
            for (name, dtype) in launch.dtypes {
                let (name, dtype) = (text(name)?, (*dtype).into());
                let at = name.as_ptr();
                let status =
                    mlx_sys::mlx_fast_cuda_kernel_config_add_template_arg_dtype(raw, at, dtype);
                check(status, what)?;
            }
            for (name, value) in launch.constants {
                let name = text(name)?;
                let at = name.as_ptr();
                let status =
                    mlx_sys::mlx_fast_cuda_kernel_config_add_template_arg_int(raw, at, *value);
                check(status, what)?;
            }
            Ok(config)
        }
    }
}

impl Names {
    fn new(names: &[&str]) -> Result<Self> {
        let names: Vec<CString> = names.iter().map(|name| text(name)).collect::<Result<_>>()?;
        let mut at: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
        // SAFETY: the pointers are good throughout the call, which copies the texts.
        Ok(Self(unsafe { mlx_sys::mlx_vector_string_new_data(at.as_mut_ptr(), at.len()) }))
    }
}

fn text(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Exception::custom("a kernel's text holds a zero"))
}

fn check(status: i32, what: &str) -> Result<()> {
    if status == 0 { Ok(()) } else { Err(Exception::custom(what)) }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        // SAFETY: this is the only owner.
        unsafe { mlx_sys::mlx_fast_cuda_kernel_free(self.raw) };
    }
}

impl Drop for Config {
    fn drop(&mut self) {
        // SAFETY: this is the only owner.
        unsafe { mlx_sys::mlx_fast_cuda_kernel_config_free(self.0) };
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        // SAFETY: this is the only owner. What fails to be freed is lost, no more.
        let _ = unsafe { mlx_sys::mlx_vector_string_free(self.0) };
    }
}

impl Drop for Arrays {
    fn drop(&mut self) {
        // SAFETY: this is the only owner. What fails to be freed is lost, no more.
        let _ = unsafe { mlx_sys::mlx_vector_array_free(self.0) };
    }
}

//! Writes the Rust bindings of mlx-c where `mlx-sys`'s build script does not run.
//!
//! Usage: `mlx-bindings OUT.rs MLX_C_ROOT SHIM_DIR`, with libclang named by `LIBCLANG_PATH`.
//! The options are those of `mlx-sys`'s `bindgen_config.rs`; the shim's `half.h` comes on top.

use std::error::Error;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<PathBuf> = env::args_os().skip(1).map(PathBuf::from).collect();
    let [out, mlx_c, shim] = args.as_slice() else {
        return Err("usage: mlx-bindings OUT.rs MLX_C_ROOT SHIM_DIR".into());
    };
    let bindings = builder(mlx_c, shim)?.generate()?;
    Ok(bindings.write_to_file(out)?)
}

fn builder(mlx_c: &Path, shim: &Path) -> io::Result<bindgen::Builder> {
    let mut builder = bindgen::Builder::default()
        .rust_target("1.73.0".parse().map_err(io::Error::other)?)
        .clang_arg(format!("-I{}", mlx_c.display()))
        .blocklist_function("malloc")
        .blocklist_function("realloc");
    if cfg!(target_arch = "aarch64") {
        builder = builder.clang_arg(format!("-I{}", shim.join("arm").display()));
    }
    for header in headers(&mlx_c.join("mlx/c"))? {
        builder = builder.header(header.to_string_lossy());
    }
    Ok(builder.header(shim.join("half.h").to_string_lossy()))
}

/// The `.h` files of one folder, in the order of their names.
fn headers(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut headers = fs::read_dir(folder)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<Vec<_>>>()?;
    headers.retain(|path| path.extension() == Some(OsStr::new("h")));
    headers.sort();
    Ok(headers)
}

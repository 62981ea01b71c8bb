//! Compiles the C++ sides of `host.rs` and `gpu/device/cuda.rs` against the MLX that `mlx-sys` was
//! built with.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_CFG_TARGET_OS").is_none_or(|os| os != "linux") {
        return;
    }
    let sources = ["native/host_primitive.cpp", "native/cuda_call.cpp"];
    for file in sources.into_iter().chain(["native/host_primitive.h", "native/cuda_call.h"]) {
        println!("cargo::rerun-if-changed={file}");
    }
    let include = env::var_os("DEP_MLX_INCLUDE").expect("run `make setup` first");
    let mut build = cc::Build::new();
    build.cpp(true).std("c++20").opt_level(2).files(sources);
    for folder in env::split_paths(&include) {
        // As a system's header: its warnings are not ours.
        build.flag("-isystem").flag(folder);
    }
    build.compile("mtplx_host");
}

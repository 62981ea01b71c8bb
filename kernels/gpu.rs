//! The project's own GPU kernels: each as a Metal and a CUDA source of one contract, beside the
//! plain path of MLX's own operations, which is always there.
//!
//! Not wired into the model yet: [`qmm`] is reached from `examples/gpu_kernels` alone.

pub mod device;
pub mod layout;
pub mod qmm;

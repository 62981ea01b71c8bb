//! Custom Metal kernels through mlx-rs. None is switched on yet: no Metal line lands unrun, and the
//! sources there are not run on Linux so far.

use mlx_rs::error::{Exception, Result};
use mlx_rs::{Array, Dtype};

use super::{Launch, Source};

/// A kernel of MLX's.
#[derive(Debug)]
pub(super) enum Kernel {}

impl Kernel {
    pub(super) fn compile(source: &Source, _: &str, _: &[(&str, String)]) -> Result<Self> {
        Err(Exception::custom(format!("{} has no Metal source", source.name)))
    }

    /// # Safety
    /// As [`super::Kernel::call`].
    pub(super) unsafe fn call(
        &self,
        _: &[&Array],
        _: &[(&[i32], Dtype)],
        _: Launch<'_>,
    ) -> Result<Vec<Array>> {
        match *self {}
    }
}

pub(super) fn generation() -> i32 {
    0
}

//! What stands for `amx` on machines that cannot have the unit: types without values.

use super::Line;

pub(in crate::cpu) const TILE_ROWS: usize = 5;
pub(in crate::cpu) const TILE_K: usize = 64;

pub(in crate::cpu) type Sums = [Line<u32>; 3 * TILE_ROWS];

#[derive(Clone, Copy, Debug)]
pub(in crate::cpu) enum Amx {}

pub(in crate::cpu) enum Tiles {}

impl Amx {
    pub(in crate::cpu) fn shape(self, _rows: usize, _k: usize) -> Tiles {
        match self {}
    }
}

impl Tiles {
    /// # Safety
    /// Cannot be called.
    pub(in crate::cpu) unsafe fn load(&self, _digits: *const u32, _stride: usize) {
        match *self {}
    }

    pub(in crate::cpu) fn prefetch(&self, _codes: &[Line<u32>]) {
        match *self {}
    }

    pub(in crate::cpu) fn clear(&self) {
        match *self {}
    }

    /// # Safety
    /// Cannot be called.
    pub(in crate::cpu) unsafe fn multiply(&self, _codes: [*const Line<u32>; 2]) {
        match *self {}
    }

    pub(in crate::cpu) fn store(&self, _to: &mut [Sums; 2]) {
        match *self {}
    }
}

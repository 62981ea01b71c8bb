//! The matrix unit of newer x86-64 servers (AMX): products of whole tiles of bytes.
//!
//! Eight tile registers hold up to sixteen rows of 64 bytes each. One instruction multiplies a
//! tile of signed digits `[rows, k]` with a tile of unsigned codes `[k, 16]` and adds the exact
//! products to 32-bit sums `[rows, 16]`. The codes lie in memory as the unit wants them: quads of
//! k, with the sixteen outputs of a panel inside (Intel SDM volume 1, chapter 18).

// SAFETY, for every block here: `self` is the proof that the unit exists and that Linux lets
// this process use it (see `Amx::new`). Tiles keep their contents from block to block because
// nothing that runs in between touches them: while a `Tiles` lives, only this crate's vector code
// does, on the thread that made it, and no compiler uses tile registers of its own accord.
#![allow(clippy::undocumented_unsafe_blocks)]

use super::{LANES, Line};
use std::arch::asm;
use std::marker::PhantomData;
use std::sync::OnceLock;

/// Rows of x in a tile: each is three rows of digits.
pub(in crate::cpu) const TILE_ROWS: usize = 5;
/// Steps of k in a tile.
pub(in crate::cpu) const TILE_K: usize = 64;

/// Sums of a tile: rows of upper digits, of middle ones, of lower ones.
pub(in crate::cpu) type Sums = [Line<u32>; 3 * TILE_ROWS];

/// The unit, found and allowed.
#[derive(Clone, Copy, Debug)]
pub(in crate::cpu) struct Amx(());

/// The unit with the shapes of its tiles set; they are given back when this goes.
pub(in crate::cpu) struct Tiles(PhantomData<*const ()>);

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Amx {
    /// The unit, if this machine has one and the system lets this process use it.
    pub(super) fn new() -> Option<Self> {
        static ALLOWED: OnceLock<bool> = OnceLock::new();
        ALLOWED.get_or_init(|| exists() && ask_system()).then_some(Self(()))
    }

    /// Sets the tiles up for `rows` rows of x and groups of up to 64 steps of k.
    #[inline(always)]
    pub(in crate::cpu) fn shape(self, rows: usize, k: usize) -> Tiles {
        assert!((1..=TILE_ROWS).contains(&rows) && (4..=TILE_K).contains(&k), "no such tile");
        let mut shapes = Shapes {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [0; 16],
            rows: [0; 16],
        };
        // A tile of digits, two of codes, two of sums.
        let (digits, codes) = ((3 * rows, k), (k / 4, 4 * LANES));
        let sums = (3 * rows, 4 * LANES);
        let all = [digits, codes, codes, sums, sums];
        for (i, (height, bytes)) in all.into_iter().enumerate() {
            (shapes.rows[i], shapes.row_bytes[i]) = (height as u8, bytes as u16);
        }
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const shapes, options(nostack)) };
        Tiles(PhantomData)
    }
}

impl Tiles {
    /// Loads a tile of digits; its rows lie `stride` bytes apart.
    ///
    /// # Safety
    /// There must be such rows.
    #[inline(always)]
    pub(in crate::cpu) unsafe fn load(&self, digits: *const u32, stride: usize) {
        unsafe {
            asm!(
                "tileloadd tmm0, [{digits} + {stride}]",
                digits = in(reg) digits, stride = in(reg) stride, options(nostack, readonly),
            );
        }
    }

    /// Tells that these codes are wanted soon: loads of tiles do not teach the machine to guess.
    #[inline(always)]
    pub(in crate::cpu) fn prefetch(&self, codes: &[Line<u32>]) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        for line in codes {
            unsafe { _mm_prefetch::<_MM_HINT_T0>((&raw const *line).cast()) };
        }
    }

    /// Sets the sums to zero.
    #[inline(always)]
    pub(in crate::cpu) fn clear(&self) {
        unsafe {
            asm!("tilezero tmm3", "tilezero tmm4", options(nostack, nomem, preserves_flags));
        }
    }

    /// Adds the products of the loaded digits with the codes of two panels.
    ///
    /// # Safety
    /// `codes` must hold the k of the shape.
    #[inline(always)]
    pub(in crate::cpu) unsafe fn multiply(&self, codes: [*const Line<u32>; 2]) {
        unsafe {
            asm!(
                "tileloadd tmm1, [{a} + {stride}]",
                "tileloadd tmm2, [{b} + {stride}]",
                "tdpbsud tmm3, tmm0, tmm1",
                "tdpbsud tmm4, tmm0, tmm2",
                a = in(reg) codes[0], b = in(reg) codes[1], stride = in(reg) size_of::<Line<u32>>(),
                options(nostack, readonly),
            );
        }
    }

    /// Writes the sums, by panel.
    #[inline(always)]
    pub(in crate::cpu) fn store(&self, to: &mut [Sums; 2]) {
        unsafe {
            asm!(
                "tilestored [{a} + {stride}], tmm3",
                "tilestored [{b} + {stride}], tmm4",
                a = in(reg) to[0].as_mut_ptr(), b = in(reg) to[1].as_mut_ptr(),
                stride = in(reg) size_of::<Line<u32>>(), options(nostack),
            );
        }
    }
}

impl Drop for Tiles {
    /// Tiles in use are kilobytes that the system saves at every switch of threads.
    fn drop(&mut self) {
        unsafe { asm!("tilerelease", options(nostack)) };
    }
}

/// Whether processor and system know the unit and its products of bytes.
fn exists() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    const OSXSAVE: u32 = 1 << 27;
    const TILE_AND_INT8: u32 = 1 << 24 | 1 << 25;
    // Both parts of a tile's state are saved by the system.
    const STATE: u32 = 1 << 17 | 1 << 18;
    if __cpuid(0).eax < 7 || __cpuid(1).ecx & OSXSAVE == 0 {
        return false;
    }
    let state: u32;
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") state, out("edx") _, options(nostack)) };
    state & STATE == STATE && __cpuid_count(7, 0).edx & TILE_AND_INT8 == TILE_AND_INT8
}

/// Linux lets a process have tiles only if it asks (Documentation/arch/x86/xstate.rst).
fn ask_system() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: a request by number; it passes no memory.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

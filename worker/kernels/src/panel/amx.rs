//! Tiles of a product of pairs of bf16 by AMX: 16 rows of 16 pairs times 16 pairs of 16 columns in one instruction.
//!
//! The standard library has no stable functions for these instructions yet, so they are written out. A block of 32 terms is
//! summed by itself, its first and its second numbers apart, and then added to what was there: another order than that
//! of AVX-512 BF16, and so other last digits.

use super::{WIDE, tiles::Tile};
use crate::float::LANES;
use std::{arch::asm, sync::OnceLock};

/// Rows of a tile register, and pairs of terms in each.
pub const ROWS: usize = 16;
pub const PAIRS: usize = 16;

/// Distance between the rows of a panel.
const PANEL: usize = WIDE * size_of::<f32>();

/// Has the machine AMX with bf16, and lets the system this process use it?
pub fn ready() -> bool {
    static READY: OnceLock<bool> = OnceLock::new();
    *READY.get_or_init(|| is_x86_feature_detected!("avx512f") && has_amx() && permitted())
}

fn has_amx() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    const BF16: u32 = 1 << 22;
    const TILE: u32 = 1 << 24;
    const BOTH: u32 = BF16 | TILE;
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & BOTH == BOTH
}

/// Linux keeps the state of tiles for those who have asked for it.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    use std::ffi::c_long;
    // SAFETY: declared as in unistd.h.
    unsafe extern "C" {
        fn syscall(number: c_long, ...) -> c_long;
    }
    const ARCH_PRCTL: c_long = 158;
    const ARCH_REQ_XCOMP_PERM: c_long = 0x1023;
    const XTILEDATA: c_long = 18;
    // SAFETY: it changes what this process may do and nothing else; a system that does not know it says so.
    unsafe { syscall(ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// The shapes of the eight tile registers, as the processor reads them: palette 1, then bytes of a row, then rows.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start: u8,
    reserved: [u8; 14],
    bytes: [u16; 16],
    rows: [u8; 16],
}

/// Gives all registers 16 pairs in each row, and as many rows: those of `x` and of the result `rows`, those of the panel all.
///
/// # Safety
/// The machine is [`ready`]; `rows` is at most `ROWS`.
unsafe fn shape(rows: usize) {
    let mut shapes = Shapes { palette: 1, start: 0, reserved: [0; 14], bytes: [0; 16], rows: [0; 16] };
    for register in 0..8 {
        shapes.bytes[register] = 4 * PAIRS as u16;
        shapes.rows[register] = if register > 5 { PAIRS } else { rows } as u8;
    }
    // SAFETY: 64 bytes that the instruction takes, as the caller promises.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const shapes, options(nostack, readonly)) }
}

/// Calls `then` with tile registers of whole size, which are nobody's before and after.
///
/// # Safety
/// The machine is [`ready`], and `then` does not call this.
pub unsafe fn with_registers(then: impl FnOnce()) {
    // SAFETY: as the caller promises. No compiled code uses these registers.
    unsafe { shape(ROWS) };
    then();
    // SAFETY: as above.
    unsafe { asm!("tilerelease", options(nostack, nomem)) }
}

/// Rows of the next tile, where so many are left: only the last may be other than a multiple of `ROWS`.
pub fn tall(left: usize) -> usize {
    match left {
        n if n >= 2 * ROWS => 2 * ROWS,
        n => n.min(ROWS),
    }
}

/// # Safety
/// `ROWS` rows (or as many as the register has) of 64 bytes must be readable, `distance` bytes apart.
#[inline(always)]
unsafe fn load<const TO: u8>(from: *const f32, distance: usize) {
    // SAFETY: as the caller promises; `TO` has been given a shape.
    unsafe {
        asm!("tileloadd tmm{to}, [{from} + {distance}*1]", to = const TO, from = in(reg) from,
        distance = in(reg) distance, options(nostack, readonly))
    }
}

/// # Safety
/// As for `load`, writable.
#[inline(always)]
unsafe fn store<const FROM: u8>(to: *mut f32, distance: usize) {
    // SAFETY: as the caller promises; `FROM` has been given a shape.
    unsafe {
        asm!("tilestored [{to} + {distance}*1], tmm{from}", from = const FROM, to = in(reg) to,
        distance = in(reg) distance, options(nostack))
    }
}

/// # Safety
/// All three have been given shapes, `SUM` and `X` with the same number of rows, `WEIGHTS` with `PAIRS`.
#[inline(always)]
unsafe fn multiply<const SUM: u8, const X: u8, const WEIGHTS: u8>() {
    // SAFETY: as the caller promises.
    unsafe {
        asm!("tdpbf16ps tmm{sum}, tmm{x}, tmm{weights}", sum = const SUM, x = const X, weights = const WEIGHTS,
        options(nostack, nomem))
    }
}

/// Zeros, or what is there already.
///
/// # Safety
/// As for `load`, where `add`.
#[inline(always)]
unsafe fn begin<const SUM: u8>(out: *const f32, distance: usize, add: bool) {
    // SAFETY: as the caller promises.
    unsafe {
        if add {
            load::<SUM>(out, distance);
        } else {
            asm!("tilezero tmm{sum}", sum = const SUM, options(nostack, nomem));
        }
    }
}

/// Computes a tile of `rows` rows, as many as [`tall`] gives, and of whole vectors.
///
/// # Safety
/// Within `with_registers`, where no tile has had other than `ROWS` or twice as many rows before, unless it had as many as this.
/// What the tile reads must be readable, `x` in blocks of `PAIRS` elements side by side and the panel in as many rows; what
/// it writes writable, and readable where it adds.
pub unsafe fn tile(rows: usize, vectors: usize, tile: Tile) {
    // SAFETY: as the caller promises.
    unsafe {
        if rows < ROWS {
            shape(rows);
        }
        for first in (0..vectors).step_by(2) {
            let (panel, out) = (tile.panel.add(first * LANES), tile.out.add(first * LANES));
            let part = Tile { panel, out, ..tile };
            match (rows > ROWS, vectors - first) {
                (false, 1) => part_of_tile::<false, false>(part),
                (false, _) => part_of_tile::<false, true>(part),
                (true, 1) => part_of_tile::<true, false>(part),
                (true, _) => part_of_tile::<true, true>(part),
            }
        }
    }
}

/// One vector or `TWO` of up to `ROWS` rows, or twice `ROWS` where there is a `LOWER` half: what is loaded
/// serves both.
///
/// # Safety
/// As for `tile`.
#[inline(always)]
unsafe fn part_of_tile<const LOWER: bool, const TWO: bool>(tile: Tile) {
    let Tile { mut x, mut panel, depth, out, strides, add } = tile;
    let [x_distance, distance] = [4 * strides[0], 4 * strides[3]];
    // Only used where there are rows.
    let lower = out.wrapping_add(ROWS * strides[3]);
    // SAFETY: as the caller promises.
    unsafe {
        begin_strip::<0, 1, TWO>(out, distance, add);
        if LOWER {
            begin_strip::<2, 3, TWO>(lower, distance, add);
        }
        for _ in 0..depth.div_ceil(PAIRS) {
            load::<4>(x, x_distance);
            load::<6>(panel, PANEL);
            multiply::<0, 4, 6>();
            if TWO {
                load::<7>(panel.add(LANES), PANEL);
                multiply::<1, 4, 7>();
            }
            if LOWER {
                load::<5>(x.add(ROWS * strides[0]), x_distance);
                multiply::<2, 5, 6>();
                if TWO {
                    multiply::<3, 5, 7>();
                }
            }
            (x, panel) = (x.wrapping_add(PAIRS), panel.wrapping_add(PAIRS * WIDE));
        }
        store_strip::<0, 1, TWO>(out, distance);
        if LOWER {
            store_strip::<2, 3, TWO>(lower, distance);
        }
    }
}

/// Begins the sums of one vector or two.
///
/// # Safety
/// As for `begin`, of as many vectors.
#[inline(always)]
unsafe fn begin_strip<const A: u8, const B: u8, const TWO: bool>(out: *const f32, distance: usize, add: bool) {
    // SAFETY: as the caller promises.
    unsafe {
        begin::<A>(out, distance, add);
        if TWO {
            begin::<B>(out.add(LANES), distance, add);
        }
    }
}

/// Writes them.
///
/// # Safety
/// As for `store`, of as many vectors.
#[inline(always)]
unsafe fn store_strip<const A: u8, const B: u8, const TWO: bool>(out: *mut f32, distance: usize) {
    // SAFETY: as the caller promises.
    unsafe {
        store::<A>(out, distance);
        if TWO {
            store::<B>(out.add(LANES), distance);
        }
    }
}

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
        shapes.rows[register] = if register == 7 { PAIRS } else { rows } as u8;
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
        match (rows > ROWS, vectors) {
            (false, 1) => strips::<1, false>(tile),
            (false, 2) => strips::<2, false>(tile),
            (false, _) => strips::<3, false>(tile),
            (true, 1) => strips::<1, true>(tile),
            (true, 2) => strips::<2, true>(tile),
            (true, _) => strips::<3, true>(tile),
        }
    }
}

/// Up to `ROWS` rows, or twice `ROWS` where there is a `LOWER` half: the panel's last vector then serves both halves without being
/// loaded again, and sums have time to arrive.
///
/// # Safety
/// As for `tile`.
#[inline(always)]
unsafe fn strips<const VECTORS: usize, const LOWER: bool>(tile: Tile) {
    let Tile { mut x, mut panel, depth, out, strides, add } = tile;
    let [x_distance, distance] = [4 * strides[0], 4 * strides[3]];
    // Only used where there are rows.
    let lower = out.wrapping_add(ROWS * strides[3]);
    // SAFETY: as the caller promises.
    unsafe {
        begin_strip::<0, 1, 2, VECTORS>(out, distance, add);
        if LOWER {
            begin_strip::<3, 4, 5, VECTORS>(lower, distance, add);
        }
        for _ in 0..depth.div_ceil(PAIRS) {
            load::<6>(x, x_distance);
            load::<7>(panel, PANEL);
            multiply::<0, 6, 7>();
            if VECTORS > 1 {
                load::<7>(panel.add(LANES), PANEL);
                multiply::<1, 6, 7>();
            }
            if VECTORS > 2 {
                load::<7>(panel.add(2 * LANES), PANEL);
                multiply::<2, 6, 7>();
            }
            if LOWER {
                load::<6>(x.add(ROWS * strides[0]), x_distance);
                if VECTORS > 2 {
                    multiply::<5, 6, 7>();
                    load::<7>(panel.add(LANES), PANEL);
                }
                if VECTORS > 1 {
                    multiply::<4, 6, 7>();
                    load::<7>(panel, PANEL);
                }
                multiply::<3, 6, 7>();
            }
            (x, panel) = (x.wrapping_add(PAIRS), panel.wrapping_add(PAIRS * WIDE));
        }
        store_strip::<0, 1, 2, VECTORS>(out, distance);
        if LOWER {
            store_strip::<3, 4, 5, VECTORS>(lower, distance);
        }
    }
}

/// Begins the sums of a strip of vectors.
///
/// # Safety
/// As for `begin`, of as many vectors.
#[inline(always)]
unsafe fn begin_strip<const A: u8, const B: u8, const C: u8, const VECTORS: usize>(
    out: *const f32,
    distance: usize,
    add: bool,
) {
    // SAFETY: as the caller promises.
    unsafe {
        begin::<A>(out, distance, add);
        if VECTORS > 1 {
            begin::<B>(out.add(LANES), distance, add);
        }
        if VECTORS > 2 {
            begin::<C>(out.add(2 * LANES), distance, add);
        }
    }
}

/// Writes them.
///
/// # Safety
/// As for `store`, of as many vectors.
#[inline(always)]
unsafe fn store_strip<const A: u8, const B: u8, const C: u8, const VECTORS: usize>(out: *mut f32, distance: usize) {
    // SAFETY: as the caller promises.
    unsafe {
        store::<A>(out, distance);
        if VECTORS > 1 {
            store::<B>(out.add(LANES), distance);
        }
        if VECTORS > 2 {
            store::<C>(out.add(2 * LANES), distance);
        }
    }
}

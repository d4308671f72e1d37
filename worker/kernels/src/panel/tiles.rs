//! The innermost loops: tiles of a product, for every number of rows and vectors.

use super::{TALL, WIDE, amx};
use crate::{
    brain::{self, Pairs},
    float::LANES,
    weight::Elements,
};
use std::arch::x86_64::*;

/// What a kernel computes: `out = x·panel`, or more of it where `add`, for rows of `x` and `depth` rows of a panel.
#[derive(Clone, Copy)]
pub struct Tile {
    pub x: *const f32,
    pub panel: *const f32,
    pub depth: usize,
    pub out: *mut f32,
    /// Distances between rows and terms of `x`, between terms of the panel, and between rows of `out`.
    pub strides: [usize; 4],
    pub add: bool,
}

/// # Safety
/// `depth` terms of as many rows of `x` as the kernel has, and `depth` rows of `WIDE` elements of the panel must be readable;
/// as many rows of `out`, as wide as the kernel's vectors, must be writable, and readable where `add`.
pub type Kernel = unsafe fn(Tile);

/// By rows and vectors, both less one.
pub type ByVectors = [[Kernel; WIDE / LANES]; TALL];

/// What computes tiles.
#[derive(Clone, Copy)]
pub enum Kernels {
    Vectors(&'static ByVectors),
    /// AMX, for pairs of bf16.
    Amx,
}

macro_rules! kernels {
    ($f:ident: $($rows:literal)+) => { [$([$f::<$rows, 1>, $f::<$rows, 2>, $f::<$rows, 3>, $f::<$rows, 4>]),+] };
}
const AVX512: ByVectors = kernels!(tile_avx512: 1 2 3 4 5 6);
const AVX2: ByVectors = kernels!(tile_avx2: 1 2 3 4 5 6);
const PAIRS: ByVectors = kernels!(tile_pairs: 1 2 3 4 5 6);

/// The kernels for such elements, where the machine has any.
pub fn kernels(elements: Elements<'_, f32>) -> Option<Kernels> {
    if !(is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")) {
        return None;
    }
    if elements.terms() == 2 {
        return Some(match brain::pairs().expect("pairs are made where they can be multiplied") {
            Pairs::Tiles => Kernels::Amx,
            Pairs::Vectors => Kernels::Vectors(&PAIRS),
        });
    }
    Some(Kernels::Vectors(if is_x86_feature_detected!("avx512f") { &AVX512 } else { &AVX2 }))
}

impl Kernels {
    /// Rows of the next tile, where so many are left.
    #[inline(always)]
    pub fn tall(self, left: usize) -> usize {
        match self {
            Self::Vectors(_) => left.min(TALL),
            Self::Amx => amx::tall(left),
        }
    }

    /// Terms that a block of them is filled up to with zeros.
    pub fn whole(self) -> usize {
        match self {
            Self::Vectors(_) => 1,
            Self::Amx => amx::PAIRS,
        }
    }

    /// Does `then`, which computes tiles from the first row to the last.
    ///
    /// # Safety
    /// `then` does not call this.
    #[inline(always)]
    pub unsafe fn with(self, then: impl FnOnce()) {
        match self {
            Self::Vectors(_) => then(),
            // SAFETY: these kernels are given where the machine is ready; the rest as the caller promises.
            Self::Amx => unsafe { amx::with_registers(then) },
        }
    }

    /// A tile of so many rows and vectors.
    ///
    /// # Safety
    /// As for `Kernel`, with `depth` rounded up to whole blocks; within `with`, and `rows` as `tall` gives it.
    #[inline(always)]
    pub unsafe fn run(self, [rows, vectors]: [usize; 2], tile: Tile) {
        // SAFETY: as the caller promises.
        unsafe {
            match self {
                Self::Vectors(kernels) => kernels[rows - 1][vectors - 1](tile),
                Self::Amx => amx::tile(rows, vectors, tile),
            }
        }
    }
}

/// A tile by AVX-512, whose sums grow by `$multiply(x, weights, sum)`.
macro_rules! tile_avx512 {
    ($(#[$about:meta])* $name:ident, $features:literal, $multiply:expr) => {
        $(#[$about])*
        #[target_feature(enable = $features)]
        unsafe fn $name<const ROWS: usize, const VECTORS: usize>(Tile { x, panel, depth, out, strides, add }: Tile) {
            let mut sums = [[_mm512_setzero_ps(); VECTORS]; ROWS];
            let mut add_term = |term: usize| {
                let mut weights = [_mm512_setzero_ps(); VECTORS];
                for (v, weights) in weights.iter_mut().enumerate() {
                    // SAFETY: as the caller promises.
                    *weights = unsafe { _mm512_loadu_ps(panel.add(term * strides[2] + v * LANES)) };
                }
                for (row, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: as the caller promises.
                    let x = _mm512_set1_ps(unsafe { *x.add(row * strides[0] + term * strides[1]) });
                    for (sum, weights) in sums.iter_mut().zip(weights) {
                        *sum = $multiply(x, weights, *sum);
                    }
                }
            };
            let mut term = 0;
            // Four at a time, so that counting them costs nothing.
            while term + 4 <= depth {
                (0..4).for_each(|i| add_term(term + i));
                term += 4;
            }
            (term..depth).for_each(add_term);
            for (row, sums) in sums.into_iter().enumerate() {
                for (v, sum) in sums.into_iter().enumerate() {
                    // SAFETY: as the caller promises.
                    unsafe {
                        let out = out.add(row * strides[3] + v * LANES);
                        _mm512_storeu_ps(out, if add { _mm512_add_ps(_mm512_loadu_ps(out), sum) } else { sum });
                    }
                }
            }
        }
    };
}

tile_avx512! {
    /// # Safety
    /// As for `Kernel`; the machine has AVX-512.
    tile_avx512, "avx512f", |x, weights, sum| _mm512_fmadd_ps(x, weights, sum)
}

tile_avx512! {
    /// With terms that are pairs of bf16 numbers.
    ///
    /// # Safety
    /// As for `Kernel`; the machine has AVX-512 BF16.
    tile_pairs, "avx512f,avx512bf16", |x, weights, sum| _mm512_dpbf16_ps(sum, bits(x), bits(weights))
}

/// 32 numbers of 16 bits.
#[target_feature(enable = "avx512f,avx512bf16")]
fn bits(pairs: __m512) -> __m512bh {
    // SAFETY: both are 64 bytes, and any bytes are numbers.
    unsafe { std::mem::transmute(pairs) }
}

/// One column of lanes at a time, since there are half as many registers, half as wide.
///
/// # Safety
/// As for `Kernel`; the machine has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
unsafe fn tile_avx2<const ROWS: usize, const VECTORS: usize>(tile: Tile) {
    for column in (0..VECTORS * LANES).step_by(LANES) {
        // SAFETY: as the caller promises.
        unsafe { strip_avx2::<ROWS>(Tile { panel: tile.panel.add(column), out: tile.out.add(column), ..tile }) }
    }
}

/// # Safety
/// As for `tile_avx2`, with `LANES` readable elements in each row of the panel, and as many of `out`.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn strip_avx2<const ROWS: usize>(Tile { x, panel, depth, out, strides, add }: Tile) {
    const HALF: usize = LANES / 2;
    let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
    for term in 0..depth {
        // SAFETY: as the caller promises; two vectors are `LANES` elements.
        let weights = unsafe {
            let panel = panel.add(term * strides[2]);
            [_mm256_loadu_ps(panel), _mm256_loadu_ps(panel.add(HALF))]
        };
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: as the caller promises.
            let x = _mm256_set1_ps(unsafe { *x.add(row * strides[0] + term * strides[1]) });
            *sums = [_mm256_fmadd_ps(x, weights[0], sums[0]), _mm256_fmadd_ps(x, weights[1], sums[1])];
        }
    }
    for (row, sums) in sums.into_iter().enumerate() {
        for (v, sum) in sums.into_iter().enumerate() {
            // SAFETY: as the caller promises.
            unsafe {
                let out = out.add(row * strides[3] + v * HALF);
                _mm256_storeu_ps(out, if add { _mm256_add_ps(_mm256_loadu_ps(out), sum) } else { sum });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: usize = 13;
    const STRIDE: usize = TERMS + 2;

    /// Small integers, so that sums are exact whatever their order; all rows and vectors are computed by each kernel.
    fn check(kernels: &ByVectors) {
        let x: Vec<f32> = (0..TALL * STRIDE).map(|i| (i % 17) as f32 - 8.0).collect();
        let panel: Vec<f32> = (0..TERMS * WIDE).map(|i| (i % 23) as f32 - 11.0).collect();
        for (rows, kernels) in kernels.iter().enumerate() {
            for (vectors, kernel) in kernels.iter().enumerate() {
                let mut sums = [[f32::NAN; WIDE]; TALL];
                let (x_at, panel_at, out) = (x.as_ptr(), panel.as_ptr(), sums.as_mut_ptr().cast());
                for add in [false, true] {
                    // SAFETY: `x` has eight rows, the panel all terms, and `sums` is as large as the largest tile; the caller
                    // has asked for the instructions.
                    unsafe {
                        kernel(Tile {
                            x: x_at,
                            panel: panel_at,
                            depth: TERMS,
                            out,
                            strides: [STRIDE, 1, WIDE, WIDE],
                            add,
                        })
                    };
                }
                for (row, sums) in sums.iter().enumerate().take(rows + 1) {
                    for (column, sum) in sums.iter().enumerate().take((vectors + 1) * LANES) {
                        let terms = (0..TERMS).map(|t| x[row * STRIDE + t] * panel[t * WIDE + column]);
                        assert_eq!(
                            *sum,
                            2.0 * terms.sum::<f32>(),
                            "{} rows, {} vectors: {row}, {column}",
                            rows + 1,
                            vectors + 1
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn every_kernel_gives_the_product() {
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            check(&AVX2);
        }
        if is_x86_feature_detected!("avx512f") {
            check(&AVX512);
        }
    }
}

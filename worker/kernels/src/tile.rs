//! Products of matrices too small for `gemm`, whose set-up costs more than a 16 × 16 product.

use crate::{
    dispatch::Isa,
    float::{Float, LANES},
};
use std::ops::Range;

/// Rows of one tile: with one vector of `LANES` f32 each, enough independent sums to hide the latency of AVX-512's
/// multiply-add.
pub const TILE_ROWS: usize = 8;

/// A tile of a product: `TILE_ROWS` rows of one vector.
pub type Sums<T> = [[T; LANES]; TILE_ROWS];

/// A matrix in any order: (elements, distance between rows, distance between columns).
#[derive(Clone, Copy)]
pub struct Left<'a, T>(pub &'a [T], pub usize, pub usize);

/// What of a product is wanted for a tile of rows: these terms of the sums, and this many columns.
pub struct Wanted {
    pub terms: Range<usize>,
    pub columns: usize,
}

/// `out = a·b` for `rows` rounded up to whole tiles; `b` and `out` are rows of `strides.0` and `strides.1` elements,
/// multiples of `LANES`. `wanted` says for the first row of each tile what is needed of it; columns are rounded up to
/// whole vectors.
#[inline(always)]
pub fn product<T: Float, I: Isa>(
    out: &mut [T],
    a: Left<'_, T>,
    b: &[T],
    strides: (usize, usize),
    rows: usize,
    wanted: impl Fn(usize) -> Wanted,
) {
    tiles::<T, I>(out, a, b, strides, rows, wanted, |out, sums| out.copy_from_slice(sums));
}

/// `out += a·b`, of the same terms and columns for every row.
#[inline(always)]
pub fn add_product<T: Float, I: Isa>(
    out: &mut [T],
    a: Left<'_, T>,
    b: &[T],
    strides: (usize, usize),
    rows: usize,
    (terms, columns): (usize, usize),
) {
    let wanted = |_| Wanted { terms: 0..terms, columns };
    tiles::<T, I>(out, a, b, strides, rows, wanted, |out, sums| {
        for (out, &sum) in out.iter_mut().zip(sums) {
            *out += sum;
        }
    });
}

/// Hands each row of each tile to `store`.
#[inline(always)]
fn tiles<T: Float, I: Isa>(
    out: &mut [T],
    a: Left<'_, T>,
    b: &[T],
    strides: (usize, usize),
    rows: usize,
    wanted: impl Fn(usize) -> Wanted,
    store: impl Fn(&mut [T], &[T; LANES]),
) {
    for row in (0..rows).step_by(TILE_ROWS) {
        let Wanted { terms, columns } = wanted(row);
        for column in (0..columns).step_by(LANES) {
            let sums = tile::<T, I>(a, b, strides.0, row, column, terms.clone());
            for (r, sums) in sums.iter().enumerate() {
                let start = (row + r) * strides.1 + column;
                store(&mut out[start..start + LANES], sums);
            }
        }
    }
}

#[inline(always)]
fn tile<T: Float, I: Isa>(
    Left(a, row_stride, column_stride): Left<'_, T>,
    b: &[T],
    b_stride: usize,
    row: usize,
    column: usize,
    terms: Range<usize>,
) -> Sums<T> {
    let Some(last) = terms.end.checked_sub(1).filter(|_| !terms.is_empty()) else {
        return [[T::zero(); LANES]; TILE_ROWS];
    };
    assert!((row + TILE_ROWS - 1) * row_stride + last * column_stride < a.len());
    assert!(last * b_stride + column + LANES <= b.len());
    let operands = Operands {
        a: a[row * row_stride + terms.start * column_stride..].as_ptr(),
        row_stride,
        column_stride,
        b: b[terms.start * b_stride + column..].as_ptr(),
        b_stride,
        terms: terms.len(),
    };
    // SAFETY: the assertions cover the last row and the last term; `I` is the instruction set that was dispatched to.
    unsafe { I::tile(operands) }
}

/// What a tile is computed from: sums over `terms` columns of `TILE_ROWS` rows of `a` times rows of `b`.
#[derive(Clone, Copy)]
pub struct Operands<T> {
    a: *const T,
    row_stride: usize,
    column_stride: usize,
    b: *const T,
    b_stride: usize,
    terms: usize,
}

impl<T: Float> Operands<T> {
    /// The plain loop.
    ///
    /// # Safety
    /// `a` must be readable at `r·row_stride + t·column_stride`, `b` for `LANES` elements from `t·b_stride`, for all
    /// `r` below `TILE_ROWS` and `t` below `terms`.
    #[inline(always)]
    pub unsafe fn tile<I: Isa>(self) -> Sums<T> {
        let mut sums = [[T::zero(); LANES]; TILE_ROWS];
        for term in 0..self.terms {
            for (r, sums) in sums.iter_mut().enumerate() {
                // SAFETY: as the caller promises.
                let a = unsafe { *self.a.add(r * self.row_stride + term * self.column_stride) };
                for (lane, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: as the caller promises.
                    *sum = I::mul_add(a, unsafe { *self.b.add(term * self.b_stride + lane) }, *sum);
                }
            }
        }
        sums
    }
}

#[cfg(target_arch = "x86_64")]
impl Operands<f32> {
    /// Written by hand, since LLVM vectorises the plain loop along the rows, with gathers.
    ///
    /// # Safety
    /// As for `tile`; the machine has AVX-512.
    #[inline]
    #[target_feature(enable = "avx512f,avx2,fma")]
    pub unsafe fn tile_avx512(self) -> Sums<f32> {
        use std::arch::x86_64::*;
        let mut sums = [_mm512_setzero_ps(); TILE_ROWS];
        for term in 0..self.terms {
            // SAFETY: as the caller promises.
            let b = unsafe { _mm512_loadu_ps(self.b.add(term * self.b_stride)) };
            for (r, sum) in sums.iter_mut().enumerate() {
                // SAFETY: as the caller promises.
                let a = unsafe { *self.a.add(r * self.row_stride + term * self.column_stride) };
                *sum = _mm512_fmadd_ps(_mm512_set1_ps(a), b, *sum);
            }
        }
        let mut out = [[0.0; LANES]; TILE_ROWS];
        for (out, sum) in out.iter_mut().zip(sums) {
            // SAFETY: a row of `out` is one vector.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sum) };
        }
        out
    }

    /// Half the rows at a time, since there are half as many registers, half as wide.
    ///
    /// # Safety
    /// As for `tile`; the machine has AVX2 and FMA.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn tile_avx2(self) -> Sums<f32> {
        use std::arch::x86_64::*;
        let mut out = [[0.0; LANES]; TILE_ROWS];
        for (half, out) in out.chunks_exact_mut(TILE_ROWS / 2).enumerate() {
            let mut sums = [[_mm256_setzero_ps(); 2]; TILE_ROWS / 2];
            for term in 0..self.terms {
                // SAFETY: as the caller promises; two vectors are `LANES` elements.
                let b = unsafe {
                    let b = self.b.add(term * self.b_stride);
                    [_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(LANES / 2))]
                };
                for (r, sums) in sums.iter_mut().enumerate() {
                    let row = half * TILE_ROWS / 2 + r;
                    // SAFETY: as the caller promises.
                    let a = unsafe { _mm256_set1_ps(*self.a.add(row * self.row_stride + term * self.column_stride)) };
                    *sums = [_mm256_fmadd_ps(a, b[0], sums[0]), _mm256_fmadd_ps(a, b[1], sums[1])];
                }
            }
            for (out, sums) in out.iter_mut().zip(sums) {
                // SAFETY: a row of `out` is two vectors.
                unsafe {
                    _mm256_storeu_ps(out.as_mut_ptr(), sums[0]);
                    _mm256_storeu_ps(out.as_mut_ptr().add(LANES / 2), sums[1]);
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::Plain;

    const ROWS: usize = 24;
    const TERMS: usize = 13;
    const COLUMNS: usize = 2 * LANES;

    /// (a, b, a·b) in small integers: exact whatever the order of the sums.
    fn example() -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let a: Vec<f32> = (0..ROWS * TERMS).map(|i| (i % 17) as f32 - 8.0).collect();
        let b: Vec<f32> = (0..TERMS * COLUMNS).map(|i| (i % 23) as f32 - 11.0).collect();
        let at = |i: usize| (0..TERMS).map(|t| a[i / COLUMNS * TERMS + t] * b[t * COLUMNS + i % COLUMNS]).sum();
        let product = (0..ROWS * COLUMNS).map(at).collect();
        (a, b, product)
    }

    fn check<I: Isa>(left: impl Fn(&[f32]) -> (Vec<f32>, usize, usize)) {
        let (a, b, want) = example();
        let (a, row, column) = left(&a);
        let mut out = vec![f32::NAN; ROWS * COLUMNS];
        let everything = |_| Wanted { terms: 0..TERMS, columns: COLUMNS };
        product::<f32, I>(&mut out, Left(&a, row, column), &b, (COLUMNS, COLUMNS), ROWS, everything);
        assert_eq!(out, want);
        product::<f32, I>(&mut out, Left(&a, row, column), &b, (COLUMNS, COLUMNS), ROWS, |_| Wanted {
            terms: 3..3,
            columns: COLUMNS,
        });
        assert!(out.iter().all(|x| *x == 0.0), "an empty sum");
        for _ in 0..2 {
            let shape = (TERMS, COLUMNS);
            add_product::<f32, I>(&mut out, Left(&a, row, column), &b, (COLUMNS, COLUMNS), ROWS, shape);
        }
        assert!(out.iter().zip(&want).all(|(out, want)| *out == 2.0 * want), "a sum on top");
    }

    fn plain_and_transposed<I: Isa>() {
        check::<I>(|a| (a.to_vec(), TERMS, 1));
        check::<I>(|a| ((0..a.len()).map(|i| a[i % ROWS * TERMS + i / ROWS]).collect(), 1, ROWS));
    }

    #[test]
    fn every_instruction_set_gives_the_product() {
        plain_and_transposed::<Plain>();
        #[cfg(target_arch = "x86_64")]
        {
            use crate::dispatch::{Avx2, Avx512};
            if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
                plain_and_transposed::<Avx2>();
            }
            if std::arch::is_x86_feature_detected!("avx512f") {
                plain_and_transposed::<Avx512>();
            }
        }
    }
}

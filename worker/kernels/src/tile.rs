//! Products of matrices too small for `gemm`, whose set-up costs more than a 16 × 16 product.

use crate::{
    dispatch::Isa,
    float::{Float, LANES},
};
use std::ops::Range;

/// Rows of one tile: with one vector of `LANES` f32 each, enough independent sums to hide the latency of AVX-512's
/// multiply-add.
pub const TILE_ROWS: usize = 8;

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
    tiles::<T, I>(out, a, b, strides, rows, wanted, false);
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
    tiles::<T, I>(out, a, b, strides, rows, |_| Wanted { terms: 0..terms, columns }, true);
}

#[inline(always)]
fn tiles<T: Float, I: Isa>(
    out: &mut [T],
    Left(a, row_stride, column_stride): Left<'_, T>,
    b: &[T],
    (b_stride, out_stride): (usize, usize),
    rows: usize,
    wanted: impl Fn(usize) -> Wanted,
    add: bool,
) {
    for row in (0..rows).step_by(TILE_ROWS) {
        let Wanted { terms, columns } = wanted(row);
        let last = terms.end.wrapping_sub(1);
        for column in (0..columns).step_by(LANES) {
            let out = &mut out[row * out_stride + column..][..(TILE_ROWS - 1) * out_stride + LANES];
            assert!(terms.is_empty() || (row + TILE_ROWS - 1) * row_stride + last * column_stride < a.len());
            assert!(terms.is_empty() || last * b_stride + column + LANES <= b.len());
            let operands = Operands {
                a: a.as_ptr().wrapping_add(row * row_stride + terms.start * column_stride),
                row_stride,
                column_stride,
                b: b.as_ptr().wrapping_add(terms.start * b_stride + column),
                b_stride,
                terms: terms.len(),
                out: out.as_mut_ptr(),
                out_stride,
                add,
            };
            // SAFETY: the assertions cover the last row and the last term, and `out` has a vector of each row; `I` is the
            // instruction set that was dispatched to.
            unsafe { I::tile(operands) }
        }
    }
}

/// A tile, `TILE_ROWS` rows of one vector: sums over `terms` columns of rows of `a` times rows of `b`, written to `out` or added
/// to what is there.
#[derive(Clone, Copy)]
pub struct Operands<T> {
    a: *const T,
    row_stride: usize,
    column_stride: usize,
    b: *const T,
    b_stride: usize,
    terms: usize,
    out: *mut T,
    out_stride: usize,
    add: bool,
}

impl<T: Float> Operands<T> {
    /// The same in another type, which elements must be.
    #[inline(always)]
    pub fn cast<U>(self) -> Operands<U> {
        let Self { a, row_stride, column_stride, b, b_stride, terms, out, out_stride, add } = self;
        let (a, b, out) = (a.cast(), b.cast(), out.cast());
        Operands { a, row_stride, column_stride, b, b_stride, terms, out, out_stride, add }
    }

    /// The plain loop.
    ///
    /// # Safety
    /// `a` must be readable at `r·row_stride + t·column_stride`, `b` for `LANES` elements from `t·b_stride`, and `out`
    /// be writable for `LANES` elements from `r·out_stride`, for all `r` below `TILE_ROWS` and `t` below `terms`.
    #[inline(always)]
    pub unsafe fn tile<I: Isa>(self) {
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
        for (r, sums) in sums.iter().enumerate() {
            // SAFETY: as the caller promises.
            let out = unsafe { &mut *self.out.add(r * self.out_stride).cast::<[T; LANES]>() };
            for (out, &sum) in out.iter_mut().zip(sums) {
                *out = if self.add { *out + sum } else { sum };
            }
        }
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
    pub unsafe fn tile_avx512(self) {
        use std::arch::x86_64::*;
        let rows: [*const f32; TILE_ROWS] = std::array::from_fn(|r| self.a.wrapping_add(r * self.row_stride));
        // SAFETY: as the caller promises. Addresses cost as much as sums where no distance is known.
        let sums = unsafe {
            match (self.row_stride, self.column_stride) {
                (_, 1) => self.sums_avx512(|r, term| *rows[r].add(term)),
                (1, _) => self.sums_avx512(|r, term| *self.a.add(term * self.column_stride).add(r)),
                _ => self.sums_avx512(|r, term| *rows[r].add(term * self.column_stride)),
            }
        };
        for (r, sum) in sums.into_iter().enumerate() {
            // SAFETY: as the caller promises.
            unsafe {
                let out = self.out.add(r * self.out_stride);
                _mm512_storeu_ps(out, if self.add { _mm512_add_ps(_mm512_loadu_ps(out), sum) } else { sum });
            }
        }
    }

    /// # Safety
    /// As for `tile_avx512`; `a` gives the element of a row and term.
    #[inline]
    #[target_feature(enable = "avx512f,avx2,fma")]
    unsafe fn sums_avx512(self, a: impl Fn(usize, usize) -> f32) -> [std::arch::x86_64::__m512; TILE_ROWS] {
        use std::arch::x86_64::*;
        let mut sums = [_mm512_setzero_ps(); TILE_ROWS];
        for term in 0..self.terms {
            // SAFETY: as the caller promises.
            let b = unsafe { _mm512_loadu_ps(self.b.add(term * self.b_stride)) };
            for (r, sum) in sums.iter_mut().enumerate() {
                *sum = _mm512_fmadd_ps(_mm512_set1_ps(a(r, term)), b, *sum);
            }
        }
        sums
    }

    /// Half the rows at a time, since there are half as many registers, half as wide.
    ///
    /// # Safety
    /// As for `tile`; the machine has AVX2 and FMA.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn tile_avx2(self) {
        use std::arch::x86_64::*;
        for half in 0..2 {
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
            for (r, sums) in sums.into_iter().enumerate() {
                for (side, sum) in sums.into_iter().enumerate() {
                    // SAFETY: as the caller promises; a row is two vectors.
                    unsafe {
                        let out = self.out.add((half * TILE_ROWS / 2 + r) * self.out_stride + side * LANES / 2);
                        _mm256_storeu_ps(out, if self.add { _mm256_add_ps(_mm256_loadu_ps(out), sum) } else { sum });
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::with_each_isa;

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
        with_each_isa!(plain_and_transposed);
    }
}

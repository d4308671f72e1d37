//! Many small matrices at once, one in each lane: an element of a matrix is a vector, of which each lane holds the element of
//! its own. Nothing goes across lanes, and no size has to fit a vector.

pub mod places;

use crate::{
    dispatch::Isa,
    float::{Float, LANES},
};

/// An element of `LANES` matrices.
pub type Vector<T> = [T; LANES];

/// Rows and columns of a tile: with 16 sums, each term is 16 multiply-adds for 8 loads.
pub const TILE: usize = 4;

/// A factor of a product: (elements, distance between its rows or columns, distance between its terms).
#[derive(Clone, Copy)]
pub struct Factor<'a, T>(pub &'a [Vector<T>], pub usize, pub usize);

impl<T> Factor<'_, T> {
    /// From `TILE` rows or columns on, where so many terms of them are there.
    #[inline(always)]
    fn tile(&self, first: usize, terms: usize) -> *const Vector<T> {
        let Self(elements, apart, term) = *self;
        assert!((first + TILE - 1) * apart + (terms - 1) * term < elements.len());
        // SAFETY: as asserted.
        unsafe { elements.as_ptr().add(first * apart) }
    }
}

/// `out = a·b`, or `out += a·b` where it `adds`: (rows, columns) of them, in rows of `wide`, with so many terms, of which there
/// is at least one. Rows and columns are whole tiles. The sums are made in order, from what is there or from 0.
#[inline(always)]
pub fn product<T: Float, I: Isa>(
    (out, wide): (&mut [Vector<T>], usize),
    [a, b]: [Factor<'_, T>; 2],
    [rows, columns, terms]: [usize; 3],
    adds: bool,
) {
    for row in (0..rows).step_by(TILE) {
        for column in (0..columns).step_by(TILE) {
            let place = &mut out[row * wide + column..][..(TILE - 1) * wide + TILE];
            let tile = Operands {
                a: a.tile(row, terms),
                b: b.tile(column, terms),
                apart: [a.1, b.1],
                step: [a.2, b.2],
                terms,
                out: place.as_mut_ptr(),
                wide,
                adds,
            };
            // SAFETY: all terms of both factors' tiles are there, and so is the place; `I` is the instruction set that was
            // dispatched to.
            unsafe { I::lanes(tile) }
        }
    }
}

/// A tile of `TILE` rows and columns. Distances are in vectors.
#[derive(Clone, Copy)]
pub struct Operands<T> {
    a: *const Vector<T>,
    b: *const Vector<T>,
    /// Between rows of `a` and columns of `b`.
    apart: [usize; 2],
    /// Between terms.
    step: [usize; 2],
    terms: usize,
    out: *mut Vector<T>,
    wide: usize,
    adds: bool,
}

impl<T: Float> Operands<T> {
    /// The same in another type, which elements must be.
    #[inline(always)]
    pub fn cast<U>(self) -> Operands<U> {
        let Self { a, b, apart, step, terms, out, wide, adds } = self;
        Operands { a: a.cast(), b: b.cast(), apart, step, terms, out: out.cast(), wide, adds }
    }

    /// The plain loop.
    ///
    /// # Safety
    /// `terms` vectors of `TILE` rows of `a` and columns of `b` must be readable, and `TILE` vectors of as many rows of `out` be
    /// writable, and readable where it adds.
    #[inline(always)]
    pub unsafe fn tile<I: Isa>(self) {
        for row in 0..TILE {
            for column in 0..TILE {
                // SAFETY: as the caller promises.
                let out = unsafe { &mut *self.out.add(row * self.wide + column) };
                let mut sums = if self.adds { *out } else { [T::zero(); LANES] };
                for term in 0..self.terms {
                    // SAFETY: as the caller promises.
                    let (a, b) = unsafe {
                        let a = &*self.a.add(row * self.apart[0] + term * self.step[0]);
                        (a, &*self.b.add(column * self.apart[1] + term * self.step[1]))
                    };
                    for (sum, (&a, &b)) in sums.iter_mut().zip(a.iter().zip(b)) {
                        *sum = I::mul_add(a, b, *sum);
                    }
                }
                *out = sums;
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl Operands<f32> {
    /// Written by hand, so that all sums stay in registers.
    ///
    /// # Safety
    /// As for `tile`; the machine has AVX-512.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub unsafe fn tile_avx512(self) {
        use std::arch::x86_64::*;
        let Self { a, b, apart, step, terms, out, wide, adds } = self;
        // SAFETY: as the caller promises.
        let load = |at: *const Vector<f32>| unsafe { _mm512_loadu_ps(at.cast()) };
        let place = |row: usize, column: usize| out.wrapping_add(row * wide + column);
        let mut sums = [[_mm512_setzero_ps(); TILE]; TILE];
        if adds {
            sums = std::array::from_fn(|row| std::array::from_fn(|column| load(place(row, column))));
        }
        for term in 0..terms {
            let (a, b) = (a.wrapping_add(term * step[0]), b.wrapping_add(term * step[1]));
            let b: [_; TILE] = std::array::from_fn(|column| load(b.wrapping_add(column * apart[1])));
            for (row, sums) in sums.iter_mut().enumerate() {
                let a = load(a.wrapping_add(row * apart[0]));
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum = _mm512_fmadd_ps(a, b, *sum);
                }
            }
        }
        for (row, sums) in sums.into_iter().enumerate() {
            for (column, sum) in sums.into_iter().enumerate() {
                // SAFETY: as the caller promises.
                unsafe { _mm512_storeu_ps(place(row, column).cast(), sum) };
            }
        }
    }

    /// Half the lanes and half the rows at a time, since there are half as many registers, half as wide.
    ///
    /// # Safety
    /// As for `tile`; the machine has AVX2 and FMA.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn tile_avx2(self) {
        use std::arch::x86_64::*;
        let Self { a, b, apart, step, terms, out, wide, adds } = self;
        for (half, first) in [(0, 0), (0, TILE / 2), (LANES / 2, 0), (LANES / 2, TILE / 2)] {
            let at = |vector: *const Vector<f32>| vector.cast::<f32>().wrapping_add(half);
            // SAFETY: as the caller promises.
            let load = |vector: *const Vector<f32>| unsafe { _mm256_loadu_ps(at(vector)) };
            let place = |row: usize, column: usize| out.wrapping_add((first + row) * wide + column);
            let mut sums = [[_mm256_setzero_ps(); TILE]; TILE / 2];
            if adds {
                sums = std::array::from_fn(|row| std::array::from_fn(|column| load(place(row, column))));
            }
            for term in 0..terms {
                let (a, b) = (a.wrapping_add(term * step[0]), b.wrapping_add(term * step[1]));
                let b: [_; TILE] = std::array::from_fn(|column| load(b.wrapping_add(column * apart[1])));
                for (row, sums) in sums.iter_mut().enumerate() {
                    let a = load(a.wrapping_add((first + row) * apart[0]));
                    for (sum, b) in sums.iter_mut().zip(b) {
                        *sum = _mm256_fmadd_ps(a, b, *sum);
                    }
                }
            }
            for (row, sums) in sums.into_iter().enumerate() {
                for (column, sum) in sums.into_iter().enumerate() {
                    // SAFETY: as the caller promises.
                    unsafe { _mm256_storeu_ps(at(place(row, column)).cast_mut(), sum) };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::with_each_isa;

    const TERMS: usize = 5;

    /// In small integers: exact whatever the order of the sums.
    fn vectors(len: usize, modulus: usize) -> Vec<Vector<f32>> {
        let number = |i: usize| (i % modulus) as f32 - (modulus / 2) as f32;
        (0..len).map(|i| std::array::from_fn(|lane| number(i * LANES + lane))).collect()
    }

    fn products<I: Isa>() {
        let [rows, columns] = [2 * TILE, TILE];
        let wide = columns + 1;
        let (a, b) = (vectors(rows * TERMS, 17), vectors(columns * TERMS, 23));
        // Rows of terms beside terms of columns, and the other way round.
        let ways = [[(TERMS, 1), (1, columns)], [(1, rows), (TERMS, 1)]];
        for [(a_row, a_term), (b_column, b_term)] in ways {
            let factors = [Factor(&a, a_row, a_term), Factor(&b, b_column, b_term)];
            let mut out = vec![[f32::NAN; LANES]; rows * wide];
            for (times, adds) in [(1.0, false), (2.0, true)] {
                product::<f32, I>((&mut out, wide), factors, [rows, columns, TERMS], adds);
                for (i, out) in out.iter().enumerate() {
                    let (row, column) = (i / wide, i % wide);
                    for (lane, &out) in out.iter().enumerate() {
                        let term =
                            |t: usize| a[row * a_row + t * a_term][lane] * b[column * b_column + t * b_term][lane];
                        if column < columns {
                            assert_eq!(out, times * (0..TERMS).map(term).sum::<f32>(), "{row}, {column}, {lane}");
                        } else {
                            assert!(out.is_nan(), "written beside the product");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same() {
        with_each_isa!(products);
    }
}

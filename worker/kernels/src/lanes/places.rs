//! Matrices that lie in memory one after the other, and as vectors of which each lane holds one.

use super::{LANES, TILE, Vector};
use crate::{dispatch::Isa, float::Float};
use std::mem::MaybeUninit;

/// Where each lane's matrix begins in memory, and the distance between rows, which are the same for all.
#[derive(Clone, Copy)]
pub struct Places {
    pub first: [usize; LANES],
    pub stride: usize,
}

impl Places {
    /// The same, so many elements further on.
    #[inline(always)]
    pub fn plus(mut self, elements: usize) -> Self {
        self.first.iter_mut().for_each(|first| *first += elements);
        self
    }

    /// Panics unless rows of so many columns are within `len` elements.
    #[inline(always)]
    fn check(&self, [rows, columns]: [usize; 2], len: usize) {
        let reach = rows.saturating_sub(1) * self.stride + columns;
        assert!(self.first.iter().all(|first| first + reach <= len));
    }
}

/// Where a row begins, of which the elements of each lane begin where [`Places::first`] says. The compiler is not told how rows
/// follow each other: it would keep an address for each lane, and add to all of them in memory.
#[inline(always)]
#[expect(clippy::pointers_in_nomem_asm_block, reason = "nothing is read or written")]
fn row_at<T>(elements: *const T, distance: usize) -> *const T {
    let mut row = elements.wrapping_add(distance);
    // SAFETY: no instruction at all.
    unsafe { std::arch::asm!("/* {0} */", inout(reg) row, options(pure, nomem, nostack, preserves_flags)) }
    row
}

/// Lays out (rows, columns) of each lane's matrix as vectors, in rows of `wide`.
#[inline(always)]
pub fn gather<T: Float, I: Isa>(
    (to, wide): (&mut [Vector<T>], usize),
    from: &[T],
    at: &Places,
    [rows, columns]: [usize; 2],
) {
    at.check([rows, columns], from.len());
    for (row, to) in to.chunks_exact_mut(wide).take(rows).enumerate() {
        let from = row_at(from.as_ptr(), row * at.stride);
        let (whole, rest) = to[..columns].as_chunks_mut::<TILE>();
        for (i, to) in whole.iter_mut().enumerate() {
            // SAFETY: as many elements are there, as checked, as `to` has vectors.
            unsafe { I::gather(|lane| from.add(at.first[lane] + i * TILE), to.as_mut_ptr()) }
        }
        for (column, to) in (columns / TILE * TILE..).zip(rest) {
            // SAFETY: as above.
            to.iter_mut().zip(at.first).for_each(|(to, first)| *to = unsafe { *from.add(first + column) });
        }
    }
}

/// The opposite: writes (rows, columns) of vectors, in rows of `wide`, where each lane's matrix lies. Lanes that lie in the same
/// place must hold the same.
#[inline(always)]
pub fn scatter<T: Float, I: Isa>(
    to: &mut [MaybeUninit<T>],
    at: &Places,
    (from, wide): (&[Vector<T>], usize),
    [rows, columns]: [usize; 2],
) {
    at.check([rows, columns], to.len());
    for (row, from) in from.chunks_exact(wide).take(rows).enumerate() {
        let to = row_at(to.as_mut_ptr(), row * at.stride).cast_mut().cast::<T>();
        let (whole, rest) = from[..columns].as_chunks::<TILE>();
        for (i, from) in whole.iter().enumerate() {
            // SAFETY: as many elements are there, as checked, as `from` has vectors.
            unsafe { I::scatter(from.as_ptr(), |lane| to.add(at.first[lane] + i * TILE)) }
        }
        for (column, from) in (columns / TILE * TILE..).zip(rest) {
            // SAFETY: as above.
            from.iter().zip(at.first).for_each(|(from, first)| unsafe { *to.add(first + column) = *from });
        }
    }
}

/// The plain loop: `TILE` elements of each lane as as many vectors.
///
/// # Safety
/// As many elements of each of `LANES` lanes must be readable, and as many vectors writable.
#[inline(always)]
pub unsafe fn gather_plain<T: Float>(from: impl Fn(usize) -> *const T, to: *mut Vector<T>) {
    for lane in 0..LANES {
        for column in 0..TILE {
            // SAFETY: as the caller promises.
            unsafe { (*to.add(column))[lane] = *from(lane).add(column) };
        }
    }
}

/// The plain loop: `TILE` vectors as as many elements of each lane.
///
/// # Safety
/// As many vectors must be readable, and as many elements of each of `LANES` lanes writable.
#[inline(always)]
pub unsafe fn scatter_plain<T: Float>(from: *const Vector<T>, to: impl Fn(usize) -> *mut T) {
    for lane in 0..LANES {
        for column in 0..TILE {
            // SAFETY: as the caller promises.
            unsafe { *to(lane).add(column) = (*from.add(column))[lane] };
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::{gather_avx2, gather_avx512, scatter_avx2, scatter_avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{LANES, TILE, Vector};
    use std::arch::x86_64::*;

    /// Of four vectors, in each quarter, rows to columns.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn turned_avx512([a, b, c, d]: [__m512; TILE]) -> [__m512; TILE] {
        let (ab, cd) = (_mm512_unpacklo_ps(a, b), _mm512_unpacklo_ps(c, d));
        let (ab_right, cd_right) = (_mm512_unpackhi_ps(a, b), _mm512_unpackhi_ps(c, d));
        [
            _mm512_shuffle_ps::<0b01_00_01_00>(ab, cd),
            _mm512_shuffle_ps::<0b11_10_11_10>(ab, cd),
            _mm512_shuffle_ps::<0b01_00_01_00>(ab_right, cd_right),
            _mm512_shuffle_ps::<0b11_10_11_10>(ab_right, cd_right),
        ]
    }

    /// # Safety
    /// As for `gather_plain`; the machine has AVX-512.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub unsafe fn gather_avx512(from: impl Fn(usize) -> *const f32, to: *mut Vector<f32>) {
        // SAFETY: as the caller promises.
        let four = |lane: usize| unsafe { _mm_loadu_ps(from(lane)) };
        // Every fourth lane, so that each quarter of the result holds four lanes that follow each other.
        let every = |lane: usize| {
            let lanes = _mm512_castps128_ps512(four(lane));
            let lanes = _mm512_insertf32x4::<1>(lanes, four(lane + 4));
            let lanes = _mm512_insertf32x4::<2>(lanes, four(lane + 8));
            _mm512_insertf32x4::<3>(lanes, four(lane + 12))
        };
        for (i, vector) in turned_avx512([every(0), every(1), every(2), every(3)]).into_iter().enumerate() {
            // SAFETY: as the caller promises.
            unsafe { _mm512_storeu_ps(to.add(i).cast(), vector) };
        }
    }

    /// # Safety
    /// As for `scatter_plain`; the machine has AVX-512.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub unsafe fn scatter_avx512(from: *const Vector<f32>, to: impl Fn(usize) -> *mut f32) {
        // SAFETY: as the caller promises.
        let vector = |i: usize| unsafe { _mm512_loadu_ps(from.add(i).cast()) };
        let turned = turned_avx512([vector(0), vector(1), vector(2), vector(3)]);
        for (lane, lanes) in turned.into_iter().enumerate() {
            // SAFETY: as the caller promises.
            unsafe {
                _mm_storeu_ps(to(lane), _mm512_castps512_ps128(lanes));
                _mm_storeu_ps(to(lane + 4), _mm512_extractf32x4_ps::<1>(lanes));
                _mm_storeu_ps(to(lane + 8), _mm512_extractf32x4_ps::<2>(lanes));
                _mm_storeu_ps(to(lane + 12), _mm512_extractf32x4_ps::<3>(lanes));
            }
        }
    }

    /// # Safety
    /// As for `gather_plain`; the machine has AVX2.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub unsafe fn gather_avx2(from: impl Fn(usize) -> *const f32, to: *mut Vector<f32>) {
        for lane in (0..LANES).step_by(TILE) {
            // SAFETY: as the caller promises.
            let four = |i: usize| unsafe { _mm_loadu_ps(from(lane + i)) };
            let (mut a, mut b, mut c, mut d) = (four(0), four(1), four(2), four(3));
            _MM_TRANSPOSE4_PS(&mut a, &mut b, &mut c, &mut d);
            for (i, four) in [a, b, c, d].into_iter().enumerate() {
                // SAFETY: as the caller promises.
                unsafe { _mm_storeu_ps(to.add(i).cast::<f32>().add(lane), four) };
            }
        }
    }

    /// # Safety
    /// As for `scatter_plain`; the machine has AVX2.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub unsafe fn scatter_avx2(from: *const Vector<f32>, to: impl Fn(usize) -> *mut f32) {
        for lane in (0..LANES).step_by(TILE) {
            // SAFETY: as the caller promises.
            let four = |i: usize| unsafe { _mm_loadu_ps(from.add(i).cast::<f32>().add(lane)) };
            let (mut a, mut b, mut c, mut d) = (four(0), four(1), four(2), four(3));
            _MM_TRANSPOSE4_PS(&mut a, &mut b, &mut c, &mut d);
            for (i, four) in [a, b, c, d].into_iter().enumerate() {
                // SAFETY: as the caller promises.
                unsafe { _mm_storeu_ps(to(lane + i), four) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::with_each_isa;

    fn there_and_back<I: Isa>() {
        for columns in [3, 8, 19] {
            let (rows, stride) = (3, columns + 2);
            let from: Vec<f32> = (0..LANES * rows * stride).map(|i| i as f32).collect();
            let first = std::array::from_fn(|lane| (LANES - 1 - lane) * rows * stride + 1);
            let (at, wide) = (Places { first, stride }, columns + 1);
            let mut vectors = vec![[f32::NAN; LANES]; rows * wide];
            gather::<f32, I>((&mut vectors, wide), &from, &at, [rows, columns]);
            let mut back = vec![-1.0; from.len()];
            scatter::<f32, I>(crate::buffer::unread(&mut back), &at, (&vectors, wide), [rows, columns]);
            for (i, vector) in vectors.iter().enumerate().filter(|(i, _)| i % wide < columns) {
                let want = first.map(|first| from[first + i / wide * stride + i % wide]);
                assert_eq!(*vector, want);
            }
            for (i, &back) in back.iter().enumerate() {
                let inside = (1..=columns).contains(&(i % stride));
                assert_eq!(back, if inside { from[i] } else { -1.0 }, "{columns} columns, {i}");
            }
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same() {
        with_each_isa!(there_and_back);
    }
}

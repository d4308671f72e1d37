//! Transposing blocks of eight by eight, without which laying out a matrix anew costs as much as multiplying with it.

use crate::{
    dispatch::Isa,
    float::{Float, LANES},
};

/// Rows and columns of a block.
pub const SIDE: usize = LANES / 2;

/// `to` = the transpose of `from`: rows of `strides.0` elements, (`rows`, `columns`) of them, to rows of `strides.1`.
/// Rows and columns are rounded up to whole blocks.
#[inline(always)]
pub fn transpose<T: Float, I: Isa>(to: &mut [T], from: &[T], (rows, columns): (usize, usize), strides: (usize, usize)) {
    let extent = |stride: usize| (SIDE - 1) * stride + SIDE;
    for row in (0..rows).step_by(SIDE) {
        for column in (0..columns).step_by(SIDE) {
            let from = &from[row * strides.0 + column..][..extent(strides.0)];
            let to = &mut to[column * strides.1 + row..][..extent(strides.1)];
            let from = std::array::from_fn(|i| from[i * strides.0..].as_ptr());
            // SAFETY: `from` and `to` have eight rows of eight elements; `I` is the instruction set that was
            // dispatched to.
            unsafe { I::transpose(from, to.as_mut_ptr(), strides.1) };
        }
    }
}

/// The plain loop: eight rows of eight, as eight columns at a distance.
///
/// # Safety
/// Eight elements must be readable at each of `rows`, and writable at each of eight distances from `to`.
#[inline(always)]
pub unsafe fn plain<T: Float>(rows: [*const T; SIDE], to: *mut T, distance: usize) {
    for (i, row) in rows.into_iter().enumerate() {
        for column in 0..SIDE {
            // SAFETY: as the caller promises.
            unsafe { *to.add(column * distance + i) = *row.add(column) };
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::{Element, InMemory, avx2};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::SIDE;
    use crate::weight::Brain;
    use std::arch::x86_64::*;

    /// What can be transposed to f32.
    pub trait Element: Copy {
        fn widened(self) -> f32;

        /// # Safety
        /// Four must be readable.
        unsafe fn four(from: *const Self) -> __m128;
    }

    impl Element for f32 {
        #[inline(always)]
        fn widened(self) -> f32 {
            self
        }

        #[inline(always)]
        unsafe fn four(from: *const Self) -> __m128 {
            // SAFETY: as the caller promises.
            unsafe { _mm_loadu_ps(from) }
        }
    }

    impl Element for Brain {
        #[inline(always)]
        fn widened(self) -> f32 {
            self.value()
        }

        /// The halves are put above zeros.
        #[inline(always)]
        unsafe fn four(from: *const Self) -> __m128 {
            // SAFETY: as the caller promises; SSE2 is part of the target.
            unsafe { _mm_castsi128_ps(_mm_unpacklo_epi16(_mm_setzero_si128(), _mm_loadl_epi64(from.cast()))) }
        }
    }

    /// Two of bf16 in the bits of an f32, the first in its upper half.
    impl Element for [Brain; 2] {
        #[inline(always)]
        fn widened(self) -> f32 {
            f32::from_bits(u32::from(self[0].0) << 16 | u32::from(self[1].0))
        }

        /// In memory the first is in the lower half.
        #[inline(always)]
        unsafe fn four(from: *const Self) -> __m128 {
            // SAFETY: as the caller promises; SSE2 is part of the target.
            unsafe {
                let pairs = _mm_loadu_si128(from.cast());
                _mm_castsi128_ps(_mm_or_si128(_mm_slli_epi32::<16>(pairs), _mm_srli_epi32::<16>(pairs)))
            }
        }
    }

    /// Two of bf16 in the bits of an f32, as they lie in memory.
    #[derive(Clone, Copy)]
    #[repr(transparent)]
    pub struct InMemory([Brain; 2]);

    impl InMemory {
        pub fn of(pairs: &[[Brain; 2]]) -> &[Self] {
            // SAFETY: the same in memory.
            unsafe { std::slice::from_raw_parts(pairs.as_ptr().cast(), pairs.len()) }
        }
    }

    impl Element for InMemory {
        #[inline(always)]
        fn widened(self) -> f32 {
            f32::from_bits(u32::from(self.0[1].0) << 16 | u32::from(self.0[0].0))
        }

        #[inline(always)]
        unsafe fn four(from: *const Self) -> __m128 {
            // SAFETY: as the caller promises; SSE is part of the target.
            unsafe { _mm_loadu_ps(from.cast()) }
        }
    }

    /// As `plain`.
    ///
    /// # Safety
    /// As for `plain`; the machine has AVX2.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub unsafe fn avx2<E: Element>(rows: [*const E; SIDE], to: *mut f32, distance: usize) {
        // SAFETY: as the caller promises.
        unsafe {
            // Four elements of row i beside four of row i + 4, first the left halves, then the right.
            for half in 0..2 {
                let (left, offset) = (|i: usize| E::four(rows[i].add(4 * half)), 4 * half * distance);
                let pair = |i: usize| _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(left(i)), left(i + 4));
                let (a, b, c, d) = (pair(0), pair(1), pair(2), pair(3));
                let (ab, cd) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
                let (ab_right, cd_right) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
                let to = to.add(offset);
                _mm256_storeu_ps(to, _mm256_shuffle_ps::<0b01_00_01_00>(ab, cd));
                _mm256_storeu_ps(to.add(distance), _mm256_shuffle_ps::<0b11_10_11_10>(ab, cd));
                _mm256_storeu_ps(to.add(2 * distance), _mm256_shuffle_ps::<0b01_00_01_00>(ab_right, cd_right));
                _mm256_storeu_ps(to.add(3 * distance), _mm256_shuffle_ps::<0b11_10_11_10>(ab_right, cd_right));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::Plain;

    fn check<T: Float, I: Isa>() {
        let ((rows, columns), (wide, long)) = ((24, 16), (19, 27));
        let from: Vec<T> = (0..rows * wide).map(|i| T::of(i as f64)).collect();
        let mut to = vec![T::of(-1.0); columns * long];
        transpose::<T, I>(&mut to, &from, (rows - 3, columns - 1), (wide, long));
        for (i, &to) in to.iter().enumerate() {
            let (column, row) = (i / long, i % long);
            assert!(to == if row < rows { from[row * wide + column] } else { T::of(-1.0) }, "{row}, {column}: {to}");
        }
    }

    #[test]
    fn every_instruction_set_transposes() {
        check::<f32, Plain>();
        check::<f64, Plain>();
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            check::<f32, crate::dispatch::Avx2>();
            check::<f64, crate::dispatch::Avx2>();
        }
    }
}

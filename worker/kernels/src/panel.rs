//! Products with a weight in f32 on x86-64, for any number of rows.
//!
//! A panel of the weight, 48 columns of it, is laid out anew (and widened from bf16) for the innermost loop, used for
//! all rows at hand, and forgotten: for many rows the laying out is lost in the work, for few it hides behind the
//! memory. Each element of the result is a sum over blocks of a fixed depth, in order, so that it does not depend on which rows
//! and columns are computed together, nor on the kind of vectors.

use crate::{
    float::LANES,
    transpose::{self, Element, SIDE},
    weight::{Block, COLUMNS, Elements, Order},
};
use std::{arch::x86_64::*, ops::Range};

/// Columns of a panel: three vectors, so that with `TALL` rows the sums take 24 of AVX-512's 32 registers.
const WIDE: usize = COLUMNS;
/// Rows of a tile.
const TALL: usize = 8;
/// Terms of one sum, at most: 48 KiB of a panel, in the second-level cache. Fewer would leave more sums to add up.
const DEPTH: usize = 256;

/// A tile of a product.
type Sums = [[f32; WIDE]; TALL];

/// `out = x·panel`, or more of it where `add`, for rows of `x` and `depth` rows of a panel. `strides` are the distances between
/// rows and terms of `x`, and between rows of `out`.
///
/// # Safety
/// `depth` terms of as many rows of `x` as the kernel has, and `depth` rows of `WIDE` elements of the panel must be readable;
/// as many rows of `out`, as wide as the kernel's vectors, must be writable, and readable where `add`.
type Kernel = unsafe fn(x: *const f32, panel: *const f32, depth: usize, out: *mut f32, strides: [usize; 3], add: bool);

/// By rows and vectors, both less one.
type Kernels = [[Kernel; 3]; TALL];

macro_rules! kernels {
    ($f:ident: $($rows:literal)+) => { [$([$f::<$rows, 1>, $f::<$rows, 2>, $f::<$rows, 3>]),+] };
}
const AVX512: Kernels = kernels!(tile_avx512: 1 2 3 4 5 6 7 8);
const AVX2: Kernels = kernels!(tile_avx2: 1 2 3 4 5 6 7 8);

fn kernels() -> Option<&'static Kernels> {
    if !(is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")) {
        return None;
    }
    Some(if is_x86_feature_detected!("avx512f") { &AVX512 } else { &AVX2 })
}

/// A vector's worth of memory, where vectors like to begin.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line {
    _elements: [f32; LANES],
}

/// Computes a block of a product; false where the machine lacks the instructions.
pub fn product(block: &Block<'_, f32>) -> bool {
    let Some(kernels) = kernels() else { return false };
    let depth = block.weight.depth;
    let deep = depth.div_ceil(depth.div_ceil(DEPTH)).next_multiple_of(LANES / 2);
    let mut panel = vec![Line { _elements: [0.0; LANES] }; deep.min(depth) * WIDE / LANES];
    for start in (0..depth).step_by(deep) {
        let terms = start..depth.min(start + deep);
        for first in block.columns.clone().step_by(WIDE) {
            let columns = first..block.columns.end.min(first + WIDE);
            // SAFETY: the machine has AVX2, as it has kernels.
            unsafe {
                match block.weight.elements {
                    Elements::Same(elements) => lay_out(elements, block, terms.clone(), columns.clone(), &mut panel),
                    Elements::Brain(elements) => lay_out(elements, block, terms.clone(), columns.clone(), &mut panel),
                }
                multiply(block, kernels, terms.clone(), columns, &panel);
            }
        }
    }
    true
}

/// Adds the product of all rows with a panel to the result.
#[target_feature(enable = "avx2")]
fn multiply(block: &Block<'_, f32>, kernels: &Kernels, terms: Range<usize>, columns: Range<usize>, panel: &[Line]) {
    let depth = block.weight.depth;
    assert!(terms.len() * WIDE <= panel.len() * LANES && terms.end <= depth);
    let (panel, more) = (panel.as_ptr().cast(), terms.start > 0);
    for first in block.rows.clone().step_by(TALL) {
        let tall = TALL.min(block.rows.end - first);
        let kernel = kernels[tall - 1][columns.len().div_ceil(LANES) - 1];
        let x = block.x.part([first, terms.start], [tall, terms.len()]).as_ptr();
        let [row, term] = [block.x.1, block.x.2];
        if columns.len().is_multiple_of(LANES) {
            let (out, distance) = block.place(first..first + tall, columns.clone());
            // SAFETY: `x` holds as many rows as the kernel reads, each up to the last of the terms; the panel was checked; the
            // place is as large as the kernel's tile, and the first terms wrote it.
            unsafe { kernel(x, panel, terms.len(), out, [row, term, distance], more) };
        } else {
            let mut sums: Sums = [[0.0; WIDE]; TALL];
            // SAFETY: as above, with a place that no tile is larger than.
            unsafe { kernel(x, panel, terms.len(), sums.as_mut_ptr().cast(), [row, term, WIDE], false) };
            for (row, sums) in sums.iter().enumerate().take(tall) {
                block.put(first + row, columns.clone(), &sums[..columns.len()], more);
            }
        }
        if !more {
            (first..first + tall).for_each(|row| block.add_rest(row, columns.clone()));
        }
    }
}

/// Lays out the weights of some terms and columns as rows of `WIDE`. Columns that are missing are left as they are, and
/// what is computed from them is not used.
#[target_feature(enable = "avx2")]
fn lay_out<E: Element>(
    elements: &[E],
    block: &Block<'_, f32>,
    terms: Range<usize>,
    columns: Range<usize>,
    panel: &mut [Line],
) {
    let weight = &block.weight;
    // SAFETY: a line is an array of its elements.
    let panel = unsafe { std::slice::from_raw_parts_mut(panel.as_mut_ptr().cast::<f32>(), panel.len() * LANES) };
    match weight.order {
        Order::ByTerm => {
            for (term, panel) in terms.zip(panel.chunks_exact_mut(WIDE)) {
                let weights = &elements[term * weight.columns..][columns.clone()];
                // A known length makes this a few vectors instead of a call.
                match <&[E; WIDE]>::try_from(weights) {
                    Ok(weights) => (0..WIDE).for_each(|i| panel[i] = weights[i].widened()),
                    Err(_) => panel.iter_mut().zip(weights).for_each(|(to, from)| *to = from.widened()),
                }
            }
        }
        Order::ByColumn => {
            for (i, first) in columns.clone().step_by(SIDE).enumerate() {
                let rows = elements[first * weight.depth..columns.end.min(first + SIDE) * weight.depth]
                    .chunks_exact(weight.depth)
                    .map(|row| &row[terms.clone()]);
                lay_out_columns(rows, weight.depth, &mut panel[i * SIDE..]);
            }
        }
    }
}

/// Up to `SIDE` columns of a panel from as many rows, which lie at a distance.
#[inline(always)]
fn lay_out_columns<'a, E: Element + 'a>(
    rows: impl ExactSizeIterator<Item = &'a [E]>,
    distance: usize,
    panel: &mut [f32],
) {
    let mut columns: [&[E]; SIDE] = [&[]; SIDE];
    let count = rows.len();
    columns.iter_mut().zip(rows).for_each(|(column, row)| *column = row);
    let terms = columns[0].len();
    let whole = if count == SIDE { terms / SIDE * SIDE } else { 0 };
    for term in (0..whole).step_by(SIDE) {
        let to = &mut panel[term * WIDE..][..(SIDE - 1) * WIDE + SIDE];
        let from = columns.map(|column| column[term..term + SIDE].as_ptr());
        if term % LANES == 0 {
            // The columns after these, likely the next to be laid out, come from memory when there are few rows.
            for from in from {
                // SAFETY: a hint, whatever the address; SSE is part of the target.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(SIDE * distance).cast()) };
            }
        }
        // SAFETY: each column has eight elements from `term`, and `to` has eight rows of eight, `WIDE` apart. Only
        // called with AVX2.
        unsafe { transpose::avx2(from, to.as_mut_ptr(), WIDE) };
    }
    for (i, column) in columns.iter().enumerate().take(count) {
        for (term, value) in column.iter().enumerate().skip(whole) {
            panel[term * WIDE + i] = value.widened();
        }
    }
}

/// # Safety
/// As for `Kernel`; the machine has AVX-512.
#[target_feature(enable = "avx512f")]
unsafe fn tile_avx512<const ROWS: usize, const VECTORS: usize>(
    x: *const f32,
    panel: *const f32,
    depth: usize,
    out: *mut f32,
    strides: [usize; 3],
    add: bool,
) {
    let mut sums = [[_mm512_setzero_ps(); VECTORS]; ROWS];
    for term in 0..depth {
        let mut weights = [_mm512_setzero_ps(); VECTORS];
        for (v, weights) in weights.iter_mut().enumerate() {
            // SAFETY: as the caller promises.
            *weights = unsafe { _mm512_loadu_ps(panel.add(term * WIDE + v * LANES)) };
        }
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: as the caller promises.
            let x = _mm512_set1_ps(unsafe { *x.add(row * strides[0] + term * strides[1]) });
            for (sum, weights) in sums.iter_mut().zip(weights) {
                *sum = _mm512_fmadd_ps(x, weights, *sum);
            }
        }
    }
    for (row, sums) in sums.into_iter().enumerate() {
        for (v, sum) in sums.into_iter().enumerate() {
            // SAFETY: as the caller promises.
            unsafe {
                let out = out.add(row * strides[2] + v * LANES);
                _mm512_storeu_ps(out, if add { _mm512_add_ps(_mm512_loadu_ps(out), sum) } else { sum });
            }
        }
    }
}

/// Four rows and one column of lanes at a time, since there are half as many registers, half as wide.
///
/// # Safety
/// As for `Kernel`; the machine has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
unsafe fn tile_avx2<const ROWS: usize, const VECTORS: usize>(
    x: *const f32,
    panel: *const f32,
    depth: usize,
    out: *mut f32,
    strides: [usize; 3],
    add: bool,
) {
    for column in (0..VECTORS * LANES).step_by(LANES) {
        for first in (0..ROWS).step_by(4) {
            // SAFETY: as the caller promises.
            unsafe {
                let (x, panel) = (x.add(first * strides[0]), panel.add(column));
                let out = out.add(first * strides[2] + column);
                match ROWS - first {
                    1 => strip_avx2::<1>(x, panel, depth, out, strides, add),
                    2 => strip_avx2::<2>(x, panel, depth, out, strides, add),
                    3 => strip_avx2::<3>(x, panel, depth, out, strides, add),
                    _ => strip_avx2::<4>(x, panel, depth, out, strides, add),
                }
            }
        }
    }
}

/// # Safety
/// As for `tile_avx2`, with `LANES` readable elements in each row of the panel, and as many of `out`.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn strip_avx2<const ROWS: usize>(
    x: *const f32,
    panel: *const f32,
    depth: usize,
    out: *mut f32,
    strides: [usize; 3],
    add: bool,
) {
    const HALF: usize = LANES / 2;
    let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
    for term in 0..depth {
        // SAFETY: as the caller promises; two vectors are `LANES` elements.
        let weights = unsafe {
            let panel = panel.add(term * WIDE);
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
                let out = out.add(row * strides[2] + v * HALF);
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
    fn check(kernels: &Kernels) {
        let x: Vec<f32> = (0..TALL * STRIDE).map(|i| (i % 17) as f32 - 8.0).collect();
        let panel: Vec<f32> = (0..TERMS * WIDE).map(|i| (i % 23) as f32 - 11.0).collect();
        for (rows, kernels) in kernels.iter().enumerate() {
            for (vectors, kernel) in kernels.iter().enumerate() {
                let mut sums: Sums = [[f32::NAN; WIDE]; TALL];
                let out = sums.as_mut_ptr().cast();
                for add in [false, true] {
                    // SAFETY: `x` has eight rows, the panel all terms, and `sums` is as large as the largest tile; the caller
                    // has asked for the instructions.
                    unsafe { kernel(x.as_ptr(), panel.as_ptr(), TERMS, out, [STRIDE, 1, WIDE], add) };
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

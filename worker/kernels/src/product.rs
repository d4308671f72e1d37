//! Matrix products, by the `gemm` crate on one thread each: larger ones are split into pieces of a fixed size, so that
//! the sums are the same on any number of threads.

use crate::{
    buffer::filled,
    float::Float,
    par::{self, Shared},
};
use gemm::{Parallelism, gemm};
use std::mem::MaybeUninit;

/// A matrix in memory: (elements, row stride, column stride).
#[derive(Clone, Copy)]
pub struct View<T>(pub *const T, pub usize, pub usize);

/// `out = a·b` for `a` (rows, depth), `b` (depth, columns) and `out` with rows `out_stride` apart.
///
/// # Safety
/// The views must cover the shapes and `out` must be writable over (rows, columns), by nobody else meanwhile.
pub unsafe fn multiply<T: Float>(out: *mut T, out_stride: usize, shape: [usize; 3], a: View<T>, b: View<T>) {
    let [rows, depth, columns] = shape;
    // SAFETY: as the caller promises; `out` is not read.
    unsafe {
        gemm(
            rows,
            columns,
            depth,
            out,
            1,
            out_stride as isize,
            false,
            a.0,
            a.2 as isize,
            a.1 as isize,
            b.0,
            b.2 as isize,
            b.1 as isize,
            T::zero(),
            T::one(),
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// Rows that are multiplied, and then worked on, at a time: about 1 MiB of f32 in the wider of the two matrices, which
/// stays in the second-level cache.
pub fn rows_at_a_time(inputs: usize, outputs: usize) -> usize {
    ((1 << 18) / inputs.max(outputs).max(1)).clamp(64, 1024) / 64 * 64
}

/// `out = x·W`, or `x·Wᵀ` where `transposed`; `x` (rows, depth) and `out` (rows, columns) are contiguous, and so is
/// `W`, as (depth, columns) or (columns, depth).
pub fn rows_times<'a, T: Float>(
    out: &'a mut [MaybeUninit<T>],
    x: &[T],
    weight: &[T],
    depth: usize,
    transposed: bool,
) -> &'a mut [T] {
    let (rows, columns) = (x.len() / depth, weight.len() / depth);
    assert!(rows * columns == out.len() && rows * depth == x.len() && columns * depth == weight.len());
    let weight = if transposed { View(weight.as_ptr(), 1, depth) } else { View(weight.as_ptr(), columns, 1) };
    // SAFETY: the lengths were just checked against the shapes, and `out` is ours alone.
    unsafe { multiply(out.as_mut_ptr().cast(), columns, [rows, depth, columns], View(x.as_ptr(), depth, 1), weight) };
    // SAFETY: the product has written every element.
    unsafe { out.assume_init_mut() }
}

/// `xᵀ·g` for `x` (rows, inputs) and `g` (rows, outputs): (inputs, outputs).
///
/// The larger side is cut into four, each a sum over all rows.
pub fn gradient_of_weight<T: Float>(x: &[T], g: &[T], inputs: usize, outputs: usize) -> Vec<T> {
    let rows = x.len() / inputs;
    assert!(rows * inputs == x.len() && rows * outputs == g.len());
    let block = inputs.max(outputs).div_ceil(4).next_multiple_of(16);
    let fill = |out: &mut [MaybeUninit<T>]| {
        let out = Shared::new(out.as_mut_ptr().cast::<T>());
        let (xs, gs) = (Shared::new(x.as_ptr().cast_mut()), Shared::new(g.as_ptr().cast_mut()));
        // Over no rows, `gemm` writes zeros.
        par::each(rows * inputs.max(outputs), (0..inputs.max(outputs)).step_by(block), |start| {
            let len = block.min(inputs.max(outputs) - start);
            let (i, o, shape) =
                if inputs > outputs { (start, 0, [len, rows, outputs]) } else { (0, start, [inputs, rows, len]) };
            // SAFETY: the lengths were checked above; blocks are disjoint, and within the (inputs, outputs) elements.
            unsafe {
                let (x, g) = (View(xs.at(i).cast_const(), 1, inputs), View(gs.at(o).cast_const(), outputs, 1));
                multiply(out.at(i * outputs + o), outputs, shape, x, g);
            }
        });
    };
    // SAFETY: the blocks cover the whole matrix.
    unsafe { filled(inputs * outputs, fill).0 }
}

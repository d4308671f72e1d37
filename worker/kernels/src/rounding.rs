//! Rounding to bf16, to the nearest and to even where two are as near, in the orders that products want.

use crate::{
    Precision,
    brain::Pairs,
    buffer::{filled, unread},
    dispatch::dispatch,
    par,
    precision::{Terms, nearest},
    transpose::{SIDE, transpose},
    weight::Brain,
};
use std::mem::MaybeUninit;

/// Elements that are rounded at a time.
const CHUNK: usize = 1 << 14;

/// What is rounded, or was.
pub trait Number: Copy + Sync {
    /// Two in the bits of one f32, the first in its upper half.
    fn in_upper_half(x: &[[Self; 2]], out: &mut [MaybeUninit<f32>]);

    /// One after the other.
    fn in_order(x: &[Self], out: &mut [MaybeUninit<Brain>]);
}

impl Number for f32 {
    fn in_upper_half(x: &[[Self; 2]], out: &mut [MaybeUninit<f32>]) {
        round_pairs::<f32>(x, out);
    }

    fn in_order(x: &[Self], out: &mut [MaybeUninit<Brain>]) {
        round_brains::<f32>(x, out);
    }
}

impl Number for Brain {
    fn in_upper_half(x: &[[Self; 2]], out: &mut [MaybeUninit<f32>]) {
        pair_brains::<f32>(x, out);
    }

    fn in_order(x: &[Self], out: &mut [MaybeUninit<Brain>]) {
        out.iter_mut().zip(x).for_each(|(out, x)| _ = out.write(*x));
    }
}

/// Rows of `depth` terms in pairs, in the order that these are multiplied in, each given `distance` pairs: AVX-512 BF16 adds
/// up the upper half first, and to AMX both are the same, so that they may lie as a weight's do in memory.
pub fn pairs<N: Number>(x: &[N], depth: usize, distance: usize, order: Pairs) -> Vec<f32> {
    let (rows, at_a_time) = (x.len() / depth, CHUNK.div_ceil(depth));
    let fill = |out: &mut [MaybeUninit<f32>]| {
        let jobs = out.chunks_mut(at_a_time * distance).zip(x.chunks(at_a_time * depth));
        par::each(x.len(), jobs, |(out, x)| {
            pair_rows(x, depth, distance, out, |x, out| match order {
                Pairs::Vectors => N::in_upper_half(x.as_chunks().0, out),
                Pairs::Tiles => N::in_order(x, halves(out)),
            });
        });
    };
    // SAFETY: chunks of as many rows; `pair_rows` writes all of each.
    unsafe { filled(rows * distance, fill).0 }
}

/// Pairs of the terms of rows, by `pair`, and zeros behind them.
fn pair_rows<N>(
    x: &[N],
    depth: usize,
    distance: usize,
    out: &mut [MaybeUninit<f32>],
    pair: impl Fn(&[N], &mut [MaybeUninit<f32>]),
) {
    if 2 * distance == depth {
        return pair(x, out);
    }
    for (out, x) in out.chunks_exact_mut(distance).zip(x.chunks_exact(depth)) {
        let (pairs, rest) = out.split_at_mut(depth / 2);
        pair(x, pairs);
        rest.fill(MaybeUninit::new(0.0));
    }
}

/// The same memory as numbers of bf16.
fn halves(pairs: &mut [MaybeUninit<f32>]) -> &mut [MaybeUninit<Brain>] {
    // SAFETY: an f32 has room for two, which want less alignment; any bits are an f32.
    unsafe { std::slice::from_raw_parts_mut(pairs.as_mut_ptr().cast(), 2 * pairs.len()) }
}

/// Pairs as they lie in memory, where they lie as an f32 may.
pub fn as_pairs(x: &[Brain]) -> Option<&[f32]> {
    // SAFETY: any 32 bits are an f32.
    match unsafe { x.align_to::<f32>() } {
        ([], pairs, []) => Some(pairs),
        _ => None,
    }
}

/// Every number as the nearest of bf16.
pub fn brains(x: &[f32]) -> Vec<Brain> {
    let fill = |out: &mut [MaybeUninit<Brain>]| {
        par::each(x.len(), out.chunks_mut(CHUNK).zip(x.chunks(CHUNK)), |(out, x)| round_brains::<f32>(x, out));
    };
    // SAFETY: chunks of as many elements; `round_brains` writes all of each.
    unsafe { filled(x.len(), fill).0 }
}

/// The same, as f32.
pub fn rounded(x: &[f32]) -> Vec<f32> {
    let fill = |out: &mut [MaybeUninit<f32>]| {
        par::each(x.len(), out.chunks_mut(CHUNK).zip(x.chunks(CHUNK)), |(out, x)| {
            round::<f32>(x, out, Precision::Bf16.dropped());
        });
    };
    // SAFETY: chunks of as many elements; `round` writes all of each.
    unsafe { filled(x.len(), fill).0 }
}

pub fn widened(x: &[Brain]) -> Vec<f32> {
    let fill = |out: &mut [MaybeUninit<f32>]| {
        par::each(x.len(), out.chunks_mut(CHUNK).zip(x.chunks(CHUNK)), |(out, x)| widen::<f32>(x, out));
    };
    // SAFETY: chunks of as many elements; `widen` writes all of each.
    unsafe { filled(x.len(), fill).0 }
}

/// Pairs of the terms of an even number: `x` (n, depth) along to rows of `distance`, or (depth, n) across to (depth / 2, n).
pub fn pair(x: &[f32], terms: Terms, [depth, distance]: [usize; 2], out: &mut [f32]) {
    let out = unread(out);
    match terms {
        Terms::Along => {
            pair_rows(x, depth, distance, out, |x, out| round_pairs::<f32>(x.as_chunks().0, out));
        }
        Terms::Across(columns) => {
            for (out, two) in out.chunks_exact_mut(columns).zip(x.chunks_exact(2 * columns)) {
                let (first, second) = two.split_at(columns);
                round_rows::<f32>(first, second, out);
            }
        }
    }
}

/// The same of (depth, n), across, to n rows of `distance`, and as many more as make their number one of whole blocks of `SIDE`.
pub fn pair_along(x: &[f32], columns: usize, distance: usize, out: &mut [f32]) {
    round_to_rows::<f32>(x, columns, distance, out);
}

/// Two numbers of bf16 in the bits of an f32, the first in its upper half.
#[inline(always)]
fn both(first: Brain, second: Brain) -> f32 {
    f32::from_bits(first.value().to_bits() | u32::from(second.0))
}

macro_rules! each {
    ($(#[$about:meta])* $vis:vis fn $name:ident($x:ty) -> $out:ty: $of:expr) => {
        dispatch! {
            #[allow(clippy::extra_unused_type_parameters, reason = "dispatched functions have one")]
            $(#[$about])*
            $vis fn $name<T: Float, M: Isa>(x: &[$x], out: &mut [MaybeUninit<$out>]) {
                for (out, x) in out.iter_mut().zip(x) {
                    out.write($of(*x));
                }
            }
        }
    };
}
each! { pub fn round_brains(f32) -> Brain: Brain::nearest }
each! { fn widen(Brain) -> f32: |x: Brain| x.value() }
each! { fn round_pairs([f32; 2]) -> f32: |[first, second]: [f32; 2]| both(Brain::nearest(first), Brain::nearest(second)) }
each! { fn pair_brains([Brain; 2]) -> f32: |[first, second]: [Brain; 2]| both(first, second) }

dispatch! {
    /// Numbers as f32 that lack so many of its bits.
    #[allow(clippy::extra_unused_type_parameters, reason = "dispatched functions have one")]
    pub fn round<T: Float, M: Isa>(x: &[f32], out: &mut [MaybeUninit<f32>], dropped: u32) {
        for (out, x) in out.iter_mut().zip(x) {
            out.write(nearest(*x, dropped));
        }
    }
}

dispatch! {
    #[allow(clippy::extra_unused_type_parameters, reason = "dispatched functions have one")]
    fn round_rows<T: Float, M: Isa>(first: &[f32], second: &[f32], out: &mut [MaybeUninit<f32>]) {
        for (out, (first, second)) in out.iter_mut().zip(first.iter().zip(second)) {
            out.write(both(Brain::nearest(*first), Brain::nearest(*second)));
        }
    }
}

dispatch! {
    #[allow(clippy::extra_unused_type_parameters, reason = "dispatched functions have one")]
    fn round_to_rows<T: Float, M: Isa>(x: &[f32], columns: usize, distance: usize, out: &mut [f32]) {
        let wide = columns.next_multiple_of(SIDE);
        let mut block = vec![0.0; SIDE * wide];
        for at in (0..distance).step_by(SIDE) {
            for (pair, row) in (at..).zip(block.chunks_exact_mut(wide)) {
                match x.get(2 * pair * columns..2 * (pair + 1) * columns) {
                    Some(two) => {
                        let (first, second) = two.split_at(columns);
                        for (row, (first, second)) in row.iter_mut().zip(first.iter().zip(second)) {
                            *row = both(Brain::nearest(*first), Brain::nearest(*second));
                        }
                    }
                    None => row.fill(0.0),
                }
            }
            transpose::<f32, M>(&mut out[at..], &block, (SIDE, columns), (wide, distance));
        }
    }
}

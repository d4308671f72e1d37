//! Products of f32 with a weight in bf16: factors of 16 bits, sums of 32.
//!
//! The rows are rounded to bf16, to the nearest and to even where two are as near; products of two such numbers are exact in f32.
//! With AVX-512 BF16 two terms are multiplied at a time, twice as many as in f32. Without it the rounded numbers are
//! multiplied in f32, in the same order and with the same bytes for a result (numbers below 2⁻¹²⁶ aside, which the
//! instruction takes for 0).

use crate::{
    buffer::{filled, unread},
    dispatch::dispatch,
    par,
    precision::Terms,
    weight::{self, Added, Brain, Elements, Order, Weight},
};
use std::mem::MaybeUninit;

/// Elements that are rounded at a time.
const CHUNK: usize = 1 << 14;

/// `x·W` and what is `added`, for `x` of rows of `weight.depth`, which are rounded.
pub fn product(x: &[f32], weight: Weight<'_, f32>, added: Added<'_, f32>) -> Vec<f32> {
    match paired(weight) {
        Some(paired) => weight::product(&rounded_pairs(x), paired, added),
        None => weight::product(&rounded(x), weight, added),
    }
}

/// The weight as pairs of terms, where the machine multiplies such.
fn paired(weight: Weight<'_, f32>) -> Option<Weight<'_, f32>> {
    match weight.elements {
        Elements::Brain(brains)
            if multiplies_pairs() && weight.order == Order::ByColumn && weight.depth.is_multiple_of(2) =>
        {
            let (pairs, _) = brains.as_chunks();
            Some(Weight { elements: Elements::Pairs(pairs), depth: weight.depth / 2, ..weight })
        }
        _ => None,
    }
}

/// Has the machine AVX-512 BF16?
pub fn multiplies_pairs() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512f");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// Every number as the nearest of bf16.
fn rounded(x: &[f32]) -> Vec<f32> {
    let fill = |out: &mut [MaybeUninit<f32>]| {
        par::each(x.len(), out.chunks_mut(CHUNK).zip(x.chunks(CHUNK)), |(out, x)| round::<f32>(x, out));
    };
    // SAFETY: chunks of as many elements; `round` writes all of each.
    unsafe { filled(x.len(), fill).0 }
}

/// The same, two in the bits of one f32: the first in the upper half, which the instruction adds up first.
fn rounded_pairs(x: &[f32]) -> Vec<f32> {
    let (pairs, _) = x.as_chunks::<2>();
    let fill = |out: &mut [MaybeUninit<f32>]| {
        par::each(x.len(), out.chunks_mut(CHUNK).zip(pairs.chunks(CHUNK)), |(out, x)| round_pairs::<f32>(x, out));
    };
    // SAFETY: chunks of as many elements; `round_pairs` writes all of each.
    unsafe { filled(pairs.len(), fill).0 }
}

dispatch! {
    #[allow(clippy::extra_unused_type_parameters, reason = "dispatched functions have one")]
    fn round<T: Float, M: Isa>(x: &[f32], out: &mut [MaybeUninit<f32>]) {
        for (out, x) in out.iter_mut().zip(x) {
            out.write(Brain::nearest(*x).value());
        }
    }
}

/// Pairs of the terms of an even number: `x` (n, terms) along, or (terms, n) across, to half as many elements.
pub fn pair(x: &[f32], terms: Terms, out: &mut [f32]) {
    let out = unread(out);
    match terms {
        Terms::Along => round_pairs::<f32>(x.as_chunks().0, out),
        Terms::Across(columns) => {
            for (out, two) in out.chunks_exact_mut(columns).zip(x.chunks_exact(2 * columns)) {
                let (first, second) = two.split_at(columns);
                round_rows::<f32>(first, second, out);
            }
        }
    }
}

/// Two numbers of bf16 in the bits of an f32, the first in its upper half.
#[inline(always)]
fn both(first: f32, second: f32) -> f32 {
    f32::from_bits(Brain::nearest(first).value().to_bits() | u32::from(Brain::nearest(second).0))
}

dispatch! {
    #[allow(clippy::extra_unused_type_parameters, reason = "dispatched functions have one")]
    fn round_pairs<T: Float, M: Isa>(x: &[[f32; 2]], out: &mut [MaybeUninit<f32>]) {
        for (out, [first, second]) in out.iter_mut().zip(x) {
            out.write(both(*first, *second));
        }
    }
}

dispatch! {
    #[allow(clippy::extra_unused_type_parameters, reason = "dispatched functions have one")]
    fn round_rows<T: Float, M: Isa>(first: &[f32], second: &[f32], out: &mut [MaybeUninit<f32>]) {
        for (out, (first, second)) in out.iter_mut().zip(first.iter().zip(second)) {
            out.write(both(*first, *second));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(seed: u32, count: usize) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn rounding_is_to_the_nearest_and_to_even() {
        let with = |bits: u32| Brain::nearest(f32::from_bits(bits)).0;
        assert_eq!(with(0x3f80_7fff), 0x3f80);
        assert_eq!(with(0x3f80_8000), 0x3f80, "a tie, and the lower is even");
        assert_eq!(with(0x3f81_8000), 0x3f82, "a tie, and the upper is even");
        assert_eq!(with(0x3f80_8001), 0x3f81);
        assert_eq!(with(0x7f7f_ffff), 0x7f80, "the largest becomes infinite");
        assert_eq!(with(0xff80_0000), 0xff80);
        assert!(Brain::nearest(f32::from_bits(0x7f80_0001)).value().is_nan(), "whose upper half is infinity's");
        for x in numbers(5, 10_000) {
            let near = Brain::nearest(x).value();
            assert!((near - x).abs() <= x.abs() / 256.0 && Brain::nearest(near).value() == near, "{x} to {near}");
        }
    }

    /// Any number of rows and columns, and depths that are one sum, several, and more than a panel holds.
    #[test]
    fn pairs_give_the_bytes_that_single_terms_give() {
        if !multiplies_pairs() {
            eprintln!("\nSKIPPED: this processor has no AVX-512 BF16\n");
            return;
        }
        for (rows, depth, columns) in [(1, 2, 1), (3, 6, 50), (8, 576, 96), (17, 1034, 49), (9, 7000, 5), (2, 4096, 48)]
        {
            let x = numbers(1, rows * depth);
            let brains: Vec<Brain> = numbers(2, columns * depth).into_iter().map(Brain::nearest).collect();
            let weight = Weight { elements: Elements::Brain(&brains), depth, columns, order: Order::ByColumn };
            let residual = numbers(3, rows * columns);
            for added in [Added::Nothing, Added::Bias(&residual[..columns]), Added::Residual(&residual)] {
                let bits = |out: Vec<f32>| out.into_iter().map(f32::to_bits).collect::<Vec<_>>();
                let fast = bits(product(&x, weight, added));
                assert_eq!(fast, bits(weight::product(&rounded(&x), weight, added)), "{rows} × {depth} × {columns}");
            }
        }
    }
}

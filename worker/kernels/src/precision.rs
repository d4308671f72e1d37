//! How many bits the factors of a product have.

use crate::{brain, dispatch::dispatch, weight::Elements};
use std::cell::RefCell;

/// What the factors of products with weights are rounded to, to the nearest and to even where two are as near. Sums are
/// f32, and so is everything else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// They stay as they are.
    #[default]
    F32,
    /// The 19 bits of NVIDIA's tensor cores: the exponent of f32, 10 bits behind the point.
    Tf32,
    /// bfloat16: the same exponent, 7 bits behind the point.
    Bf16,
}

/// How the terms of sums follow each other in a matrix of factors.
#[derive(Clone, Copy)]
pub(crate) enum Terms {
    /// Within a row.
    Along,
    /// From row to row, each of so many elements.
    Across(usize),
}

thread_local! {
    /// Rounded factors of the product at hand.
    static FACTORS: RefCell<[Vec<f32>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
}

impl Precision {
    /// Bits of an f32 that are dropped.
    #[inline(always)]
    fn dropped(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::Tf32 => 13,
            Self::Bf16 => 16,
        }
    }

    /// The nearest number that it has, of two as near the even one. NaN stays NaN.
    #[inline(always)]
    pub fn nearest(self, x: f32) -> f32 {
        match self {
            Self::F32 => x,
            _ => nearest(x, self.dropped()),
        }
    }

    /// `then` of both factors of a product of `depth` terms as they are multiplied, the second as a weight's elements.
    pub(crate) fn rounded<R>(
        self,
        factors: [(&[f32], Terms); 2],
        depth: usize,
        then: impl FnOnce(&[f32], Elements<'_, f32>) -> R,
    ) -> R {
        let [(a, _), (b, _)] = factors;
        if self == Self::F32 {
            return then(a, Elements::Same(b));
        }
        let pairs = self == Self::Bf16 && depth.is_multiple_of(2) && brain::multiplies_pairs();
        let len = |factor: &[f32]| if pairs { factor.len() / 2 } else { factor.len() };
        FACTORS.with_borrow_mut(|room| {
            for (to, (from, terms)) in room.iter_mut().zip(factors) {
                to.resize(len(from).max(to.len()), 0.0);
                let to = &mut to[..len(from)];
                if pairs { brain::pair(from, terms, to) } else { round::<f32>(from, to, self.dropped()) }
            }
            let [x, y] = room;
            let (x, y) = (&x[..len(a)], &y[..len(b)]);
            match self {
                Self::Bf16 if pairs => then(x, Elements::PairBits(y)),
                Self::Bf16 => then(x, Elements::Widened(y)),
                Self::F32 | Self::Tf32 => then(x, Elements::Same(y)),
            }
        })
    }
}

#[inline(always)]
fn nearest(x: f32, dropped: u32) -> f32 {
    let bits = x.to_bits();
    // Half of the last place that is kept, less one where that is even already. A NaN stays one, with few bits too.
    let near = bits.wrapping_add((1 << (dropped - 1)) - 1 + (bits >> dropped & 1));
    f32::from_bits((if x.is_nan() { bits | 0x40_0000 } else { near }) >> dropped << dropped)
}

dispatch! {
    #[allow(clippy::extra_unused_type_parameters, reason = "dispatched functions have one")]
    fn round<T: Float, M: Isa>(from: &[f32], to: &mut [f32], dropped: u32) {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = nearest(*from, dropped));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weight::{self, Brain, Left, Order, Weight};

    #[test]
    fn numbers_are_rounded_to_the_nearest_and_to_even() {
        let tf32 = |bits: u32| Precision::Tf32.nearest(f32::from_bits(bits)).to_bits();
        assert_eq!(tf32(0x3f80_0fff), 0x3f80_0000);
        assert_eq!(tf32(0x3f80_1000), 0x3f80_0000, "a tie, and the lower is even");
        assert_eq!(tf32(0x3f80_3000), 0x3f80_4000, "a tie, and the upper is even");
        assert_eq!(tf32(0x3f80_1001), 0x3f80_2000);
        assert_eq!(tf32(0xff80_0000), 0xff80_0000);
        assert!(Precision::Tf32.nearest(f32::NAN).is_nan());
        let mut state = 1_u32;
        for _ in 0..100_000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let x = f32::from_bits(state);
            if !x.is_nan() {
                assert_eq!(Precision::F32.nearest(x).to_bits(), x.to_bits());
                assert_eq!(Precision::Bf16.nearest(x).to_bits(), Brain::nearest(x).value().to_bits(), "{x}");
                let near = f64::from(Precision::Tf32.nearest(x));
                assert!(
                    x.is_infinite()
                        || near.is_infinite()
                        || (near - f64::from(x)).abs() <= f64::from(x.abs()) / 2048.0
                        || x.is_subnormal()
                );
            }
        }
    }

    #[test]
    fn factors_are_those_of_this_product_alone() {
        for len in [5, 3, 9] {
            let a: Vec<f32> = (0..len).map(|i| 1.0 + i as f32 / 4096.0).collect();
            Precision::Tf32.rounded([(&a, Terms::Along), (&a[1..], Terms::Along)], 1, |x, y| {
                let Elements::Same(y) = y else { panic!("not numbers of f32") };
                assert_eq!(x.len(), len);
                assert_eq!(&x[1..], y);
                assert!(x.iter().zip(&a).all(|(x, a)| *x == Precision::Tf32.nearest(*a)));
            });
        }
    }
    /// Of all orders of both factors, and depths that are one sum and several.
    #[test]
    fn pairs_give_the_bytes_that_single_terms_give() {
        if !brain::multiplies_pairs() {
            eprintln!("\nSKIPPED: this processor has no AVX-512 BF16\n");
            return;
        }
        let numbers = |seed: u32, len: usize| -> Vec<f32> {
            (0..len as u32).map(|i| ((i + seed).wrapping_mul(2_654_435_761) >> 8) as f32 / 8_388_608.0 - 1.0).collect()
        };
        for (rows, depth, columns) in [(1, 2, 1), (9, 300, 50), (17, 1034, 49), (240, 64, 192), (64, 640, 256)] {
            let (x, w) = (numbers(1, rows * depth), numbers(2, depth * columns));
            for (order, of_w) in [(Order::ByTerm, Terms::Across(columns)), (Order::ByColumn, Terms::Along)] {
                for of_x in [Terms::Along, Terms::Across(rows)] {
                    let product = |x: &[f32], elements: Elements<'_, f32>| {
                        let depth = depth / elements.terms();
                        let x = match of_x {
                            Terms::Along => Left(x, depth, 1),
                            Terms::Across(_) => Left(x, 1, rows),
                        };
                        let mut out = vec![f32::NAN; rows * columns];
                        weight::alone(x, rows, Weight { elements, depth, columns, order }, &mut out);
                        out.into_iter().map(f32::to_bits).collect::<Vec<_>>()
                    };
                    let paired = Precision::Bf16.rounded([(&x, of_x), (&w, of_w)], depth, |x, w| {
                        assert!(matches!(w, Elements::PairBits(_)));
                        product(x, w)
                    });
                    let near = |x: &[f32]| x.iter().map(|x| Precision::Bf16.nearest(*x)).collect::<Vec<_>>();
                    let single = product(&near(&x), Elements::Widened(&near(&w)));
                    assert_eq!(paired, single, "{rows} × {depth} × {columns}");
                }
            }
        }
    }
}

//! How many bits the factors of a product have.

use crate::{
    brain::{self, Pairs},
    buffer::unread,
    rounding,
    transpose::SIDE,
    weight::{Elements, Left},
};
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

impl Terms {
    /// A first factor of `depth` terms that is used as it is.
    fn left(self, x: &[f32], depth: usize) -> Left<'_, f32> {
        match self {
            Self::Along => Left(x, depth, 1),
            Self::Across(rows) => Left(x, 1, rows),
        }
    }
}

thread_local! {
    /// Rounded factors of the product at hand.
    static FACTORS: RefCell<[Vec<f32>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
}

impl Precision {
    /// Bits of an f32 that are dropped.
    #[inline(always)]
    pub(crate) fn dropped(self) -> u32 {
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
        then: impl FnOnce(Left<'_, f32>, Elements<'_, f32>) -> R,
    ) -> R {
        let [(a, of_a), (b, of_b)] = factors;
        if self == Self::F32 {
            return then(of_a.left(a, depth), Elements::Same(b));
        }
        let pairs = if self == Self::Bf16 && depth.is_multiple_of(2) { brain::pairs() } else { None };
        FACTORS.with_borrow_mut(|[x, y]| {
            let Some(pairs) = pairs else {
                for (to, from) in [(&mut *x, a), (&mut *y, b)] {
                    rounding::round::<f32>(from, unread(room(to, from.len())), self.dropped());
                }
                let (x, y) = (of_a.left(&x[..a.len()], depth), &y[..b.len()]);
                return then(x, if self == Self::Bf16 { Elements::Widened(y) } else { Elements::Same(y) });
            };
            let x = pair_left(pairs, (a, of_a), depth, x);
            rounding::pair(b, of_b, [depth, depth / 2], room(y, b.len() / 2));
            then(x, Elements::PairBits(&y[..b.len() / 2]))
        })
    }
}

/// As many elements of what is kept from product to product.
fn room(kept: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if kept.len() < len {
        kept.resize(len, 0.0);
    }
    &mut kept[..len]
}

/// The pairs of the first factor, in `to`.
fn pair_left<'a>(pairs: Pairs, (x, terms): (&[f32], Terms), depth: usize, to: &'a mut Vec<f32>) -> Left<'a, f32> {
    let distance = pairs.room(depth);
    match (terms, pairs) {
        (Terms::Across(rows), Pairs::Tiles) => {
            let to = room(to, rows.next_multiple_of(SIDE) * distance);
            rounding::pair_along(x, rows, distance, to);
            Left(to, distance, 1)
        }
        (Terms::Across(rows), Pairs::Vectors) => {
            let to = room(to, x.len() / 2);
            rounding::pair(x, terms, [depth, distance], to);
            Left(to, 1, rows)
        }
        (Terms::Along, _) => {
            let to = room(to, x.len() / depth * distance);
            rounding::pair(x, terms, [depth, distance], to);
            Left(to, distance, 1)
        }
    }
}

#[inline(always)]
pub(crate) fn nearest(x: f32, dropped: u32) -> f32 {
    let bits = x.to_bits();
    // Half of the last place that is kept, less one where that is even already. A NaN stays one, with few bits too.
    let near = bits.wrapping_add((1 << (dropped - 1)) - 1 + (bits >> dropped & 1));
    f32::from_bits((if x.is_nan() { bits | 0x40_0000 } else { near }) >> dropped << dropped)
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
            Precision::Tf32.rounded([(&a, Terms::Along), (&a[1..], Terms::Along)], 1, |Left(x, ..), y| {
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
        brain::tests::each_way(|way| way.into_iter().for_each(gives_the_bytes_of_single_terms));
    }

    fn gives_the_bytes_of_single_terms(pairs: Pairs) {
        let numbers = |seed: u32, len: usize| -> Vec<f32> {
            (0..len as u32).map(|i| ((i + seed).wrapping_mul(2_654_435_761) >> 8) as f32 / 8_388_608.0 - 1.0).collect()
        };
        let near = |x: &[f32]| x.iter().map(|x| Precision::Bf16.nearest(*x)).collect::<Vec<_>>();
        let turned = |x: &[f32], rows: usize| -> Vec<f32> {
            (0..x.len()).map(|i| x[i % (x.len() / rows) * rows + i / (x.len() / rows)]).collect()
        };
        for (rows, depth, columns) in [(1, 2, 1), (9, 300, 50), (17, 1034, 49), (240, 64, 192), (64, 640, 256)] {
            let (x, w) = (numbers(1, rows * depth), numbers(2, depth * columns));
            for (order, of_w) in [(Order::ByTerm, Terms::Across(columns)), (Order::ByColumn, Terms::Along)] {
                for of_x in [Terms::Along, Terms::Across(rows)] {
                    let product = |x: Left<'_, f32>, elements: Elements<'_, f32>| {
                        let depth = depth / elements.terms();
                        let mut out = vec![f32::NAN; rows * columns];
                        // Some at a time, and the rest.
                        let weight = Weight { elements, depth, columns, order };
                        weight::alone(x, weight, &mut out, 10, |_, _| {});
                        out
                    };
                    let paired = Precision::Bf16.rounded([(&x, of_x), (&w, of_w)], depth, |x, w| {
                        assert!(matches!(w, Elements::PairBits(_)));
                        product(x, w)
                    });
                    let (x, w) = (near(&x), near(&w));
                    let single = match pairs {
                        Pairs::Vectors => product(of_x.left(&x, depth), Elements::Widened(&w)),
                        Pairs::Tiles => {
                            let x = if let Terms::Along = of_x { x } else { turned(&x, rows) };
                            let w = if let Terms::Along = of_w { w } else { turned(&w, columns) };
                            brain::in_blocks(&x, &w, depth, weight::Added::Nothing)
                        }
                    };
                    let bits = |out: Vec<f32>| out.into_iter().map(f32::to_bits).collect::<Vec<_>>();
                    assert_eq!(bits(paired), bits(single), "{rows} × {depth} × {columns}");
                }
            }
        }
    }
}

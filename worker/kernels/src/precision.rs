//! How many bits the factors of a product have.

use crate::dispatch::dispatch;
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

    /// `then` of both factors as they are multiplied.
    pub(crate) fn rounded<R>(self, [a, b]: [&[f32]; 2], then: impl FnOnce([&[f32]; 2]) -> R) -> R {
        if self == Self::F32 {
            return then([a, b]);
        }
        FACTORS.with_borrow_mut(|factors| {
            for (to, from) in factors.iter_mut().zip([a, b]) {
                to.resize(from.len().max(to.len()), 0.0);
                round::<f32>(from, &mut to[..from.len()], self.dropped());
            }
            let [x, y] = factors;
            then([&x[..a.len()], &y[..b.len()]])
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
    use crate::weight::Brain;

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
            Precision::Tf32.rounded([&a, &a[1..]], |[x, y]| {
                assert_eq!(x.len(), len);
                assert_eq!(&x[1..], y);
                assert!(x.iter().zip(&a).all(|(x, a)| *x == Precision::Tf32.nearest(*a)));
            });
        }
    }
}

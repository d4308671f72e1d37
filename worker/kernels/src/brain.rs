//! Products of f32 with a weight in bf16: factors of 16 bits, sums of 32.
//!
//! The rows are rounded to bf16, to the nearest and to even where two are as near; products of two such numbers are exact in f32.
//! With AVX-512 BF16 two terms are multiplied at a time, twice as many as in f32. Without it the rounded numbers are
//! multiplied in f32, in the same order and with the same bytes for a result (numbers below 2⁻¹²⁶ aside, which the
//! instruction takes for 0). With AMX sixteen times as many are, in an order of its own.

use crate::{
    rounding,
    weight::{self, Added, Brain, Elements, Left, Order, Weight},
};
use std::borrow::Cow;

/// What a weight in bf16 is multiplied with.
#[derive(Clone, Copy)]
pub enum Factor<'a> {
    /// Is rounded.
    Wide(&'a [f32]),
    Rounded(&'a [Brain]),
}

impl Factor<'_> {
    pub fn len(self) -> usize {
        match self {
            Self::Wide(x) => x.len(),
            Self::Rounded(x) => x.len(),
        }
    }
}

/// `x·W` and what is `added`, for `x` of rows of `weight.depth`.
pub fn product(x: Factor<'_>, weight: Weight<'_, f32>, added: Added<'_, f32>) -> Vec<f32> {
    let rows = x.len() / weight.depth;
    let Some((pairs, weight)) = paired(weight) else {
        let x = match x {
            Factor::Wide(x) => rounding::rounded(x),
            Factor::Rounded(x) => rounding::widened(x),
        };
        return weight::product(Left(&x, weight.depth, 1), rows, weight, added);
    };
    let depth = 2 * weight.depth;
    let x = pairs.rows(x, depth);
    weight::product(Left(&x, pairs.room(depth), 1), rows, weight, added)
}

/// The weight as pairs of terms, where the machine multiplies such.
pub(crate) fn paired(weight: Weight<'_, f32>) -> Option<(Pairs, Weight<'_, f32>)> {
    match weight.elements {
        Elements::Brain(brains) if weight.order == Order::ByColumn && weight.depth.is_multiple_of(2) => {
            let (elements, _) = brains.as_chunks();
            Some((pairs()?, Weight { elements: Elements::Pairs(elements), depth: weight.depth / 2, ..weight }))
        }
        _ => None,
    }
}

/// What multiplies pairs of bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairs {
    /// AMX.
    Tiles,
    /// AVX-512 BF16.
    Vectors,
}

impl Pairs {
    /// Pairs that an `x` of so many terms has in each row, those behind its own being zeros.
    pub fn room(self, depth: usize) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Tiles => (depth / 2).next_multiple_of(crate::panel::amx::PAIRS),
            _ => depth / 2,
        }
    }

    /// Rows of `depth` terms in pairs, with that room: a copy, unless they lie so in memory.
    pub fn rows(self, x: Factor<'_>, depth: usize) -> Cow<'_, [f32]> {
        let distance = self.room(depth);
        match x {
            Factor::Wide(x) => rounding::pairs(x, depth, distance, self).into(),
            Factor::Rounded(x) => match rounding::as_pairs(x) {
                Some(x) if self == Self::Tiles && 2 * distance == depth => x.into(),
                _ => rounding::pairs(x, depth, distance, self).into(),
            },
        }
    }
}

/// The fastest that the machine has. Where Intel's processors have no AMX, multiplying in f32 is faster than
/// AVX-512 BF16, and gives the same bytes.
pub fn pairs() -> Option<Pairs> {
    #[cfg(test)]
    if let Some(way) = tests::WAY.get() {
        return way;
    }
    #[cfg(target_arch = "x86_64")]
    if crate::panel::amx::ready() {
        return Some(Pairs::Tiles);
    } else if is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512f") && !by_intel() {
        return Some(Pairs::Vectors);
    }
    None
}

#[cfg(target_arch = "x86_64")]
fn by_intel() -> bool {
    let name = std::arch::x86_64::__cpuid(0);
    [name.ebx, name.edx, name.ecx].map(u32::to_le_bytes).concat() == b"GenuineIntel"
}

/// Products as AMX sums them up, one by one: `x` (rows, depth) and `weight` (columns, depth) of numbers of bf16.
#[cfg(test)]
pub fn in_blocks(x: &[f32], weight: &[f32], depth: usize, added: Added<'_, f32>) -> Vec<f32> {
    const TERMS: usize = 32;
    /// After which a bias is added.
    const FIRST: usize = 3072;
    let columns = weight.len() / depth;
    let sum = |i: usize| {
        let (x, weight) = (&x[i / columns * depth..][..depth], &weight[i % columns * depth..][..depth]);
        let mut sum = 0.0;
        for (block, (x, weight)) in x.chunks(TERMS).zip(weight.chunks(TERMS)).enumerate() {
            let mut halves = [0.0; 2];
            // Such products are exact, so that one rounding is as two.
            x.iter().zip(weight).enumerate().for_each(|(i, (x, weight))| halves[i % 2] += x * weight);
            sum += halves[0] + halves[1];
            if let Added::Bias(bias) = added
                && (block + 1) * TERMS == FIRST.min(depth.next_multiple_of(TERMS))
            {
                sum += bias[i % columns];
            }
        }
        if let Added::Residual(residual) = added { sum + residual[i] } else { sum }
    };
    (0..x.len() / depth * columns).map(sum).collect()
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::cell::Cell;

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

    thread_local! {
        /// How pairs are multiplied on this thread, whatever is fastest.
        pub static WAY: Cell<Option<Option<Pairs>>> = const { Cell::new(None) };
    }

    /// Does `check` for all ways that the machine has, each on a thread that knows no other.
    pub fn each_way(check: impl Fn(Option<Pairs>) + Send + Sync) {
        let mut ways = vec![None];
        #[cfg(target_arch = "x86_64")]
        {
            ways.extend(crate::panel::amx::ready().then_some(Some(Pairs::Tiles)));
            ways.extend(is_x86_feature_detected!("avx512bf16").then_some(Some(Pairs::Vectors)));
        }
        if ways.len() == 1 {
            std::io::Write::write_fmt(
                &mut std::io::stderr(),
                format_args!("\nSKIPPED: this processor has neither AMX nor AVX-512 BF16\n"),
            )
            .unwrap();
        }
        for way in ways {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
            pool.install(|| {
                WAY.set(Some(way));
                check(way);
            });
        }
    }

    #[test]
    fn pairs_give_the_bytes_that_single_terms_give() {
        each_way(gives_the_bytes_of_single_terms);
    }

    /// Any number of rows and columns, and depths that are one sum, several, and more than a panel holds.
    fn gives_the_bytes_of_single_terms(way: Option<Pairs>) {
        let shapes = [
            (1, 2, 1),
            (3, 6, 50),
            (8, 576, 96),
            (17, 1034, 49),
            (9, 7000, 5),
            (2, 4096, 48),
            (70, 64, 97),
            (48, 96, 32),
        ];
        for (rows, depth, columns) in shapes {
            let x = numbers(1, rows * depth);
            let brains: Vec<Brain> = numbers(2, columns * depth).into_iter().map(Brain::nearest).collect();
            let weight = Weight { elements: Elements::Brain(&brains), depth, columns, order: Order::ByColumn };
            let residual = numbers(3, rows * columns);
            for added in [Added::Nothing, Added::Bias(&residual[..columns]), Added::Residual(&residual)] {
                let bits = |out: Vec<f32>| out.into_iter().map(f32::to_bits).collect::<Vec<_>>();
                let fast = bits(product(Factor::Wide(&x), weight, added));
                let single = match way {
                    None | Some(Pairs::Vectors) => {
                        weight::product(Left(&rounding::rounded(&x), depth, 1), rows, weight, added)
                    }
                    Some(Pairs::Tiles) => {
                        let values: Vec<f32> = brains.iter().map(|brain| brain.value()).collect();
                        in_blocks(&rounding::rounded(&x), &values, depth, added)
                    }
                };
                assert_eq!(fast, bits(single), "{way:?}: {rows} × {depth} × {columns}");
                let before = rounding::brains(&x);
                assert_eq!(fast, bits(product(Factor::Rounded(&before), weight, added)), "{way:?}: rounded before");
            }
        }
    }

    /// A row's bytes do not depend on those beside it.
    #[test]
    fn rows_alone_give_the_bytes_that_they_give_together() {
        let (rows, depth, columns) = (77, 3200, 50);
        let x = numbers(1, rows * depth);
        let brains: Vec<Brain> = numbers(2, columns * depth).into_iter().map(Brain::nearest).collect();
        let weight = Weight { elements: Elements::Brain(&brains), depth, columns, order: Order::ByColumn };
        let together = product(Factor::Wide(&x), weight, Added::Nothing);
        for at_a_time in [1, 5, 16, 30, 32, 33] {
            let apart = x.chunks(at_a_time * depth).flat_map(|x| product(Factor::Wide(x), weight, Added::Nothing));
            assert!(apart.eq(together.iter().copied()), "{at_a_time} at a time");
        }
    }
}

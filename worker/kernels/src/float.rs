//! The two element types and the elementary functions, branch-free so that loops over them vectorise.

use crate::{
    brain::{self, Factor},
    dispatch::Isa,
    lanes::Vector,
    weight::{self, Added, Block, Left, Weight},
};
use candle_core::{CpuStorage, Result, WithDType};
use std::{cell::Cell, ops::Range, thread::LocalKey};

/// Partial sums kept side by side: one AVX-512 register of f32. Fixed, so that every machine adds in the same order.
pub const LANES: usize = 16;

/// f32 for work, f64 for gradient checks.
pub trait Float: WithDType {
    fn fused_mul_add(self, b: Self, c: Self) -> Self;
    fn square_root(self) -> Self;
    /// e to the power `self`, which is first clamped to [−87, 88] for f32. NaN stays NaN.
    fn exponential<I: Isa>(self) -> Self;

    /// NaN stays NaN.
    fn hyperbolic_tangent<I: Isa>(self) -> Self;

    /// Vectors that a thread keeps for its next use, whatever they hold.
    fn room() -> &'static LocalKey<Cell<Vec<Vector<Self>>>>;

    /// The elements of a storage of this type.
    fn elements_mut(storage: &mut CpuStorage) -> Result<&mut [Self]>;

    /// Computes a piece of a product by panels (see [`crate::panel`]); false where there is no such way.
    #[inline(always)]
    fn by_panels(_: &Block<'_, Self>) -> bool {
        false
    }

    /// The same of blocks of one product, one after the other, each then told of (see [`crate::panel::products`]).
    #[inline(always)]
    fn all_by_panels<'a>(
        _: impl Iterator<Item = Block<'a, Self>>,
        _: &Weight<'a, Self>,
        _: impl FnMut(Range<usize>),
    ) -> bool {
        false
    }

    /// A product with a weight in bf16.
    fn by_brains(x: &[Self], weight: Weight<'_, Self>, added: Added<'_, Self>) -> Vec<Self> {
        let (x, rows) = Left::of(x, weight.depth);
        weight::product(x, rows, weight, added)
    }

    #[inline(always)]
    fn of(value: f64) -> Self {
        Self::from_f64(value)
    }

    /// NaN stays NaN, unlike with `max` and `min`.
    #[inline(always)]
    fn clamped(self, low: Self, high: Self) -> Self {
        let x = if self < low { low } else { self };
        if x > high { high } else { x }
    }
}

impl Float for f32 {
    fn room() -> &'static LocalKey<Cell<Vec<Vector<Self>>>> {
        thread_local!(static ROOM: Cell<Vec<Vector<f32>>> = const { Cell::new(Vec::new()) });
        &ROOM
    }

    fn by_brains(x: &[Self], weight: Weight<'_, Self>, added: Added<'_, Self>) -> Vec<Self> {
        brain::product(Factor::Wide(x), weight, added)
    }

    #[cfg(target_arch = "x86_64")]
    fn by_panels(block: &Block<'_, Self>) -> bool {
        crate::panel::product(block)
    }

    #[cfg(target_arch = "x86_64")]
    fn all_by_panels<'a>(
        blocks: impl Iterator<Item = Block<'a, Self>>,
        weight: &Weight<'a, Self>,
        then: impl FnMut(Range<usize>),
    ) -> bool {
        crate::panel::products(blocks, weight, then)
    }

    fn elements_mut(storage: &mut CpuStorage) -> Result<&mut [Self]> {
        match storage {
            CpuStorage::F32(data) => Ok(data),
            _ => candle_core::bail!("expected elements of type f32"),
        }
    }

    #[inline(always)]
    fn fused_mul_add(self, b: Self, c: Self) -> Self {
        self.mul_add(b, c)
    }

    #[inline(always)]
    fn square_root(self) -> Self {
        self.sqrt()
    }

    /// Cephes' expf: x = n·ln 2 + r, |r| ≤ ln 2 / 2, a polynomial in r, and n put into the exponent. Within 2 ulp.
    #[inline(always)]
    fn exponential<I: Isa>(self) -> Self {
        /// Adding 1.5·2²³ rounds to an integer and leaves it in the low bits.
        const ROUND: f32 = 12_582_912.0;
        /// ln 2 in two parts; the first has few bits, so that n times it is exact.
        const LN_2: (f32, f32) = (0.693_359_4, -2.121_944_4e-4);
        const POLYNOMIAL: [f32; 5] = [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
        let x = self.clamped(-87.0, 88.0);
        let shifted = I::mul_add(x, std::f32::consts::LOG2_E, ROUND);
        let n = shifted - ROUND;
        let r = I::mul_add(n, -LN_2.1, I::mul_add(n, -LN_2.0, x));
        let mut p = 1.987_569_1e-4;
        for c in POLYNOMIAL {
            p = I::mul_add(p, r, c);
        }
        let e = I::mul_add(p, r * r, r) + 1.0;
        e * f32::from_bits(shifted.to_bits().wrapping_add(127) << 23)
    }

    /// Cephes' tanhf: a polynomial below 0.625, where 1 − 2/(e²ˣ + 1) would cancel. Within 3 ulp.
    #[inline(always)]
    fn hyperbolic_tangent<I: Isa>(self) -> Self {
        const POLYNOMIAL: [f32; 4] = [2.063_909e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1];
        let (size, square) = (self.abs(), self * self);
        let mut p = -5.704_988_7e-3;
        for c in POLYNOMIAL {
            p = I::mul_add(p, square, c);
        }
        let small = I::mul_add(p * square, self, self);
        let large = 1.0 - 2.0 / ((size + size).exponential::<I>() + 1.0);
        if size < 0.625 { small } else { large.copysign(self) }
    }
}

impl Float for f64 {
    fn room() -> &'static LocalKey<Cell<Vec<Vector<Self>>>> {
        thread_local!(static ROOM: Cell<Vec<Vector<f64>>> = const { Cell::new(Vec::new()) });
        &ROOM
    }

    fn elements_mut(storage: &mut CpuStorage) -> Result<&mut [Self]> {
        match storage {
            CpuStorage::F64(data) => Ok(data),
            _ => candle_core::bail!("expected elements of type f64"),
        }
    }

    #[inline(always)]
    fn fused_mul_add(self, b: Self, c: Self) -> Self {
        self.mul_add(b, c)
    }

    #[inline(always)]
    fn square_root(self) -> Self {
        self.sqrt()
    }

    #[inline(always)]
    fn exponential<I: Isa>(self) -> Self {
        self.exp()
    }

    #[inline(always)]
    fn hyperbolic_tangent<I: Isa>(self) -> Self {
        self.tanh()
    }
}

/// Adds partial sums as a tree: always in the same order.
#[inline(always)]
pub fn tree_sum<T: Float>(lanes: &[T; LANES]) -> T {
    let mut lanes = *lanes;
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// The same, by hand: of a tree that it sees through, the compiler takes vectors of two for the loop that fed it.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
pub fn tree_avx2(lanes: &[f32; LANES]) -> f32 {
    use std::arch::x86_64::*;
    // SAFETY: there are two vectors of eight.
    let [low, high] = unsafe { [_mm256_loadu_ps(lanes.as_ptr()), _mm256_loadu_ps(lanes.as_ptr().add(LANES / 2))] };
    let eight = _mm256_add_ps(low, high);
    let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

/// Said in a loop over vectors, keeps the compiler from making vectors across them, with gathers and scatters, of what is to
/// be one instruction for each.
#[inline(always)]
pub fn one_by_one() {
    // SAFETY: no instruction at all; but the compiler does not know that it may be done for several vectors at once.
    unsafe { std::arch::asm!("", options(nomem, nostack, preserves_flags)) }
}

/// `f` of the elements that some vectors have in a lane, for each lane.
#[inline(always)]
pub fn by_lane<T: Float, const N: usize>(vectors: [&[T; LANES]; N], f: impl Fn([T; N]) -> T) -> [T; LANES] {
    let mut out = [T::zero(); LANES];
    for lane in 0..LANES {
        out[lane] = f(vectors.map(|vector| vector[lane]));
    }
    out
}

/// `a + b` by lane.
#[inline(always)]
fn plus<T: Float>(a: &[T; LANES], b: &[T; LANES]) -> [T; LANES] {
    by_lane([a, b], |[a, b]| a + b)
}

/// Of each lane the sum over vectors, added up as [`Isa::sum`] adds up the elements of one.
///
/// Written out, since the compiler makes a loop over the vectors one of gathers and scatters.
#[inline(always)]
pub fn tree_of_lanes<T: Float>(v: &[[T; LANES]; LANES]) -> [T; LANES] {
    let [a, b, c, d] = [plus(&v[0], &v[8]), plus(&v[1], &v[9]), plus(&v[2], &v[10]), plus(&v[3], &v[11])];
    let [e, f, g, h] = [plus(&v[4], &v[12]), plus(&v[5], &v[13]), plus(&v[6], &v[14]), plus(&v[7], &v[15])];
    let [a, b, c, d] = [plus(&a, &e), plus(&b, &f), plus(&c, &g), plus(&d, &h)];
    plus(&plus(&a, &c), &plus(&b, &d))
}

/// `Σ term(…)` over the elements of equally long slices, in `LANES` partial sums, which `tree` adds up.
///
/// Elements are taken a vector at a time, since the compiler vectorises nothing across those that are read one by one.
#[inline(always)]
pub fn lane_sum<S: Float, T: Float, const N: usize>(
    slices: [&[S]; N],
    term: impl Fn([S; N]) -> T,
    tree: impl Fn(&[T; LANES]) -> T,
) -> T {
    let len = slices[0].len();
    assert!(slices.iter().all(|s| s.len() == len));
    let parts = slices.map(|slice| slice.as_chunks::<LANES>());
    let mut lanes = [T::zero(); LANES];
    for i in 0..len / LANES {
        // SAFETY: each slice has as many whole vectors.
        let vectors: [&[S; LANES]; N] = std::array::from_fn(|k| unsafe { parts[k].0.get_unchecked(i) });
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += term(std::array::from_fn(|k| vectors[k][lane]));
        }
    }
    if len.is_multiple_of(LANES) {
        return tree(&lanes);
    }
    // Others, so that those above, of which none is asked for by its number, never leave their register.
    let mut all = lanes;
    for (i, sum) in all.iter_mut().enumerate().take(len % LANES) {
        // SAFETY: so many are left of each slice.
        *sum += term(std::array::from_fn(|k| unsafe { *parts[k].1.get_unchecked(i) }));
    }
    tree(&all)
}

/// The largest element, in `LANES` partial maxima; where there is a NaN, that or another.
#[inline(always)]
pub fn lane_max<T: Float>(x: &[T]) -> T {
    let larger = |a: T, b: T| if b > a { b } else { a };
    let mut lanes = [x[0]; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for chunk in whole {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, x);
        }
    }
    rest.iter().chain(&lanes).fold(x[0], |a, &b| larger(a, b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::Plain;

    #[test]
    fn exponential_is_within_float_accuracy_and_keeps_nan() {
        for i in -87_000..88_000 {
            let x = i as f32 / 1_000.0;
            let want = f64::from(x).exp();
            assert!((f64::from(x.exponential::<Plain>()) / want - 1.0).abs() < 2.5e-7, "exp({x})");
        }
        assert_eq!((0f32.exponential::<Plain>(), 0f64.exponential::<Plain>()), (1.0, 1.0));
        assert!(f32::NAN.exponential::<Plain>().is_nan());
        assert!(f32::MAX.exponential::<Plain>().is_finite() && f32::NEG_INFINITY.exponential::<Plain>() < 1e-37);
    }

    #[test]
    fn hyperbolic_tangent_is_within_float_accuracy_and_keeps_nan() {
        for i in -100_000..100_000 {
            let x = i as f32 / 5_000.0;
            let want = f64::from(x).tanh();
            let got = f64::from(x.hyperbolic_tangent::<Plain>());
            assert!((got - want).abs() <= 2.5e-7 * want.abs(), "tanh({x}) = {got}, not {want}");
        }
        assert_eq!((1e30f32.hyperbolic_tangent::<Plain>(), (-1e30f32).hyperbolic_tangent::<Plain>()), (1.0, -1.0));
        assert!(f32::NAN.hyperbolic_tangent::<Plain>().is_nan());
    }

    /// Of numbers whose sum depends on the order, and in all ways that the machine has.
    #[test]
    fn sums_are_the_same_tree_everywhere() {
        let numbers = |i: usize| ((i * 2_654_435_761) % 1_000_003) as f32 / 1_000.0;
        let vectors: [[f32; LANES]; LANES] =
            std::array::from_fn(|v| std::array::from_fn(|lane| numbers(v * LANES + lane)));
        let column = |lane: usize| std::array::from_fn(|v| vectors[v][lane]);
        let want: [f32; LANES] = std::array::from_fn(|lane| tree_sum(&column(lane)));
        assert_ne!(want, std::array::from_fn(|lane| column(lane).iter().sum::<f32>()), "any order gives it");
        assert_eq!(tree_of_lanes(&vectors), want);
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the machine has AVX2.
            assert_eq!(std::array::from_fn(|lane| unsafe { tree_avx2(&column(lane)) }), want);
        }
    }

    #[test]
    fn lane_sums_cover_whole_vectors_and_the_rest() {
        for n in [0, 1, 15, 16, 17, 100] {
            let x: Vec<f64> = (1..=n).map(f64::from).collect();
            assert_eq!(Plain::sum([&x, &x], |[a, b]| a * b), x.iter().map(|x| x * x).sum::<f64>());
            assert!((0..x.len()).all(|i| lane_max(&[&x[i..], &x[..i]].concat()) == f64::from(n)));
        }
    }
}

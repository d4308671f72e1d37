//! Matrix products of S runs, as plain data.

use super::Bytes;
use crate::Precision;

/// A matrix of each run, row-major and dense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operand<B> {
    pub place: B,
    /// From the matrix of one run to that of the next, in elements.
    pub stride: usize,
    /// Does memory hold its transpose?
    pub transposed: bool,
}

impl<B> Operand<B> {
    /// The same with memory held by something else.
    pub fn map<C>(&self, place: impl Fn(&B) -> C) -> Operand<C> {
        Operand { place: place(&self.place), stride: self.stride, transposed: self.transposed }
    }

    /// A matrix as it stands.
    pub fn plain(place: B, stride: usize) -> Self {
        Self { place, stride, transposed: false }
    }

    /// One whose transpose stands there.
    pub fn transposed(place: B, stride: usize) -> Self {
        Self { place, stride, transposed: true }
    }
}

/// (m, k) times (k, n), for each of the runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// S.
    pub runs: usize,
    pub precision: Precision,
}

/// `out = left · right` of each run, f32 in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Product<B> {
    of: Extent,
    factors: [Operand<B>; 2],
    out: Operand<B>,
}

impl<B: Bytes> Product<B> {
    /// `out` has its run's matrix every `stride` elements.
    ///
    /// # Panics
    /// Where a matrix does not fit its place, one is empty, or those of `out` overlap.
    pub fn new(of: Extent, factors: [Operand<B>; 2], out: (B, usize)) -> Self {
        let product = Self { of, factors, out: Operand::plain(out.0, out.1) };
        assert!(
            [of.m, of.n, of.k, of.runs].iter().all(|&n| i32::try_from(n).is_ok_and(|n| n > 0)),
            "no product {of:?}"
        );
        assert!(of.runs == 1 || product.out.stride >= of.m * of.n, "results of {of:?} overlap");
        for (operand, reach) in product.places() {
            assert!(operand.bytes() >= reach, "{of:?}: a matrix needs {reach} bytes of {}", operand.bytes());
        }
        product
    }
}

impl<B> Product<B> {
    /// The same with memory held by something else.
    pub fn map<C>(&self, place: impl Fn(&B) -> C) -> Product<C> {
        let factors = self.factors.each_ref().map(|factor| factor.map(&place));
        Product { of: self.of, factors, out: self.out.map(&place) }
    }

    pub fn extent(&self) -> Extent {
        self.of
    }

    pub fn factors(&self) -> &[Operand<B>; 2] {
        &self.factors
    }

    pub fn out(&self) -> &Operand<B> {
        &self.out
    }

    /// Elements of a run's left, right and resulting matrix.
    pub fn elements(&self) -> [usize; 3] {
        let Extent { m, n, k, .. } = self.of;
        [m * k, k * n, m * n]
    }

    /// The three places, each with the bytes from its beginning that are reached: left, right, result.
    pub fn places(&self) -> [(&B, usize); 3] {
        let [left, right] = &self.factors;
        let reach = |operand: &Operand<B>, len: usize| {
            let before = operand.stride.checked_mul(self.of.runs - 1);
            let elements = before.and_then(|before| before.checked_add(len));
            elements.and_then(|n| n.checked_mul(size_of::<f32>())).expect("matrices fit the address space")
        };
        let [a, b, out] = self.elements();
        [(&left.place, reach(left, a)), (&right.place, reach(right, b)), (&self.out.place, reach(&self.out, out))]
    }

    /// Bytes of all matrices, one that all runs share once.
    pub fn bytes(&self) -> usize {
        let strides = [self.factors[0].stride, self.factors[1].stride, self.out.stride];
        let of = |(elements, stride)| if stride == 0 { elements } else { self.of.runs * elements };
        self.elements().into_iter().zip(strides).map(of).sum::<usize>() * size_of::<f32>()
    }

    /// Multiplications and additions.
    pub fn operations(&self) -> usize {
        2 * self.of.runs * self.of.m * self.of.n * self.of.k
    }
}

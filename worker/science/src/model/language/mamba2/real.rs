//! The two element types of the loops: f32 for work, f64 to check them.

use candle_core::WithDType;

pub trait Real: WithDType {
    /// Numbers nearer to zero than this are slow to calculate with on most processors.
    const SMALLEST: Self;

    fn exponential(self) -> Self;
    /// ln(1 + self).
    fn logarithm_1p(self) -> Self;
    fn square_root(self) -> Self;

    fn of(value: f64) -> Self {
        Self::from_f64(value)
    }

    /// x·σ(x).
    fn silu(self) -> Self {
        self / (Self::one() + (Self::zero() - self).exponential())
    }

    /// ln(1 + eˣ); above 20 the two are the same in f32 (PyTorch's threshold).
    fn softplus(self) -> Self {
        if self > Self::of(20.0) { self } else { self.exponential().logarithm_1p() }
    }
}

macro_rules! real {
    ($t:ty) => {
        impl Real for $t {
            const SMALLEST: Self = <$t>::MIN_POSITIVE;

            fn exponential(self) -> Self {
                self.exp()
            }

            fn logarithm_1p(self) -> Self {
                self.ln_1p()
            }

            fn square_root(self) -> Self {
                self.sqrt()
            }
        }
    };
}
real!(f32);
real!(f64);

/// `Σ a·b` in sixteen partial sums that are added in a fixed order, so that the loop vectorises.
pub fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    const LANES: usize = 16;
    let mut sums = [T::zero(); LANES];
    let (a_whole, a_rest) = a.as_chunks::<LANES>();
    let (b_whole, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_whole.iter().zip(b_whole) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    for (lane, (a, b)) in a_rest.iter().zip(b_rest).enumerate() {
        sums[lane] += *a * *b;
    }
    sums.into_iter().fold(T::zero(), |sum, x| sum + x)
}

/// `y += factor·x`.
pub fn add_scaled<T: Real>(y: &mut [T], factor: T, x: &[T]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += factor * *x;
    }
}

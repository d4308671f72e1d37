//! Sums over whole tensors.

use crate::{
    buffer::{by_dtype, read},
    dispatch::dispatch,
    par,
};
use candle_core::{Result, Tensor};

/// Elements summed at a time.
const CHUNK: usize = 1 << 14;

/// `Σ x²`, in f64 and in a fixed order: for the global norm of gradients.
pub fn sum_of_squares(x: &Tensor) -> Result<f64> {
    let x = &x.contiguous()?;
    by_dtype!(x.dtype(), "sum_of_squares", T => {
        read!(x: T);
        let mut partials = vec![0.0; x.len().div_ceil(CHUNK)];
        par::each(x.len() / 8, partials.iter_mut().zip(x.chunks(CHUNK)), |(sum, x)| *sum = squares(x));
        Ok(partials.iter().sum())
    })
}

dispatch! {
    pub(crate) fn squares<T: Float, I: Isa>(x: &[T]) -> f64 {
        I::sum([x], |[x]| x.to_f64() * x.to_f64())
    }
}

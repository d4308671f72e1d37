//! `gelu(x·W + b)` with GELU in its tanh form, as in GPT-2.
//!
//! The forward also keeps GELU's slope where gradients are wanted: it shares the exponential, and the backward is then
//! one multiplication.

use crate::{
    buffer::{by_dtype, element_type, elements, filled, read, stored},
    dispatch::{Isa, dispatch},
    float::Float,
    linear::{Gradients, Size, backward_rows, check_shapes, forward, gradients},
    product, reference,
};
use candle_core::{CpuStorage, CustomOp3, Device, Layout, Result, Shape, Tensor};
use std::{mem::MaybeUninit, sync::OnceLock};

/// `gelu(x·W + b)`: shapes as in [`linear`](crate::linear()).
pub fn linear_gelu(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    check_shapes("linear_gelu", x, weight, bias)?;
    if !x.device().is_cpu() {
        return reference::linear_gelu(&x.contiguous()?, &weight.contiguous()?, bias);
    }
    let slope = if x.track_op() || weight.track_op() || bias.track_op() {
        Slope::Kept(OnceLock::new())
    } else {
        Slope::Unwanted
    };
    x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, LinearGelu { slope })
}

/// GELU's derivative at each output.
enum Slope {
    Unwanted,
    /// Set by the forward.
    Kept(OnceLock<Tensor>),
}

struct LinearGelu {
    slope: Slope,
}

impl CustomOp3 for LinearGelu {
    fn name(&self) -> &'static str {
        "linear_gelu"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        by_dtype!(element_type(x), self.name(), T => {
            let bias = elements::<T>(bias, bias_layout)?;
            let (x, weight) = (elements(x, x_layout)?, elements(weight, weight_layout)?);
            let size = Size::new(x_layout, weight_layout)?;
            let out = match &self.slope {
                Slope::Unwanted => forward(size, x, weight, std::iter::repeat(()), |(), out| bias_gelu(out, bias)),
                Slope::Kept(cell) => {
                    let fill = |slope: &mut [MaybeUninit<T>]| {
                        let slopes = slope.chunks_mut(size.chunk() * size.outputs);
                        forward(size, x, weight, slopes, |slope, out| bias_gelu_with_slope(out, bias, slope))
                    };
                    // SAFETY: the chunks of `slope` are those of the output, and each is written where the output is.
                    let (slope, out) = unsafe { filled(size.output_elements(), fill) };
                    let kept = cell.set(Tensor::from_vec(slope, size.output_elements(), &Device::Cpu)?);
                    debug_assert!(kept.is_ok(), "an op is applied once");
                    out
                }
            };
            Ok((stored(out), size.output_shape(x_layout)))
        })
    }

    fn bwd(&self, x: &Tensor, weight: &Tensor, bias: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Gradients> {
        let Slope::Kept(slope) = &self.slope else { return Ok((None, None, None)) };
        let Some(slope) = slope.get() else { candle_core::bail!("linear_gelu: backward without a forward") };
        let grad = &grad.contiguous()?;
        by_dtype!(x.dtype(), self.name(), T => backward::<T>(x, weight, bias.track_op(), slope, grad))
    }
}

fn backward<T: Float>(x: &Tensor, weight: &Tensor, bias: bool, slope: &Tensor, grad: &Tensor) -> Result<Gradients> {
    let (x_tensor, weight_tensor) = (x, weight);
    let size = Size::new(x.layout(), weight.layout())?;
    read!(x, weight, slope, grad: T);
    let len = size.chunk() * size.outputs;
    let fill = |inner: &mut [MaybeUninit<T>]| {
        let jobs = inner.chunks_mut(len).zip(slope.chunks(len)).zip(grad.chunks(len));
        backward_rows(size, weight, x_tensor.track_op(), jobs, |((inner, slope), grad)| multiplied(grad, slope, inner))
    };
    // SAFETY: every chunk is written by `multiplied`.
    let (inner, (dx, dbias)) = unsafe { filled(size.output_elements(), fill) };
    let dweight = weight_tensor.track_op().then(|| product::gradient_of_weight(x, &inner, size.inputs, size.outputs));
    gradients(x_tensor, weight_tensor, dx, dweight, bias.then_some(dbias))
}

/// GELU and its derivative.
///
/// `x/2·(1 + tanh u)` is `x·σ(2u)`, with `u = √(2/π)·(x + 0.044715 x³)`: one exponential, and no cancellation for
/// negative `x`. Beyond ±9.5 σ is 1 or below 10⁻³³: clamping there keeps every intermediate finite and normal.
#[inline(always)]
pub(crate) fn gelu<T: Float, I: Isa>(x: T) -> (T, T) {
    /// 2·√(2/π)
    const FACTOR: f64 = 1.595_769_121_605_730_7;
    const CUBIC: f64 = 0.044715 * FACTOR;
    let c = x.clamped(T::of(-9.5), T::of(9.5));
    let square = c * c;
    let twice_u = c * I::mul_add(T::of(CUBIC), square, T::of(FACTOR));
    let e = (T::zero() - twice_u).exponential::<I>();
    let sigma = T::one() / (T::one() + e);
    let twice_du = I::mul_add(T::of(3.0 * CUBIC), square, T::of(FACTOR));
    // σ' = σ·(1 − σ), and 1 − σ = e·σ without cancellation.
    let slope = I::mul_add(c * sigma * (e * sigma), twice_du, sigma);
    (x * sigma, slope)
}

dispatch! {
    /// Replaces each row by the GELU of it plus `bias`.
    fn bias_gelu<T: Float, I: Isa>(rows: &mut [T], bias: &[T]) {
        for row in rows.chunks_exact_mut(bias.len()) {
            for (value, &bias) in row.iter_mut().zip(bias) {
                *value = gelu::<T, I>(*value + bias).0;
            }
        }
    }
}

dispatch! {
    /// Replaces each row by the GELU of it plus `bias`; writes the derivative to `slopes`.
    pub(crate) fn bias_gelu_with_slope<T: Float, I: Isa>(rows: &mut [T], bias: &[T], slopes: &mut [MaybeUninit<T>]) {
        assert_eq!(rows.len(), slopes.len());
        for (row, slopes) in rows.chunks_exact_mut(bias.len()).zip(slopes.chunks_exact_mut(bias.len())) {
            for ((value, &bias), slope) in row.iter_mut().zip(bias).zip(slopes) {
                let (y, dy) = gelu::<T, I>(*value + bias);
                *value = y;
                slope.write(dy);
            }
        }
    }
}

dispatch! {
    fn multiply<T: Float, I: Isa>(a: &[T], b: &[T], out: &mut [MaybeUninit<T>]) {
        for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
            out.write(a * b);
        }
    }
}

/// `a·b` by element, in `out`.
fn multiplied<'a, T: Float>(a: &[T], b: &[T], out: &'a mut [MaybeUninit<T>]) -> &'a [T] {
    assert!(a.len() == out.len() && b.len() == out.len());
    multiply(a, b, out);
    // SAFETY: `multiply` has written as many elements as the shortest of the three has, and they are equally long.
    unsafe { out.assume_init_ref() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::Plain;

    /// The definition, in f64.
    fn exact(x: f64) -> f64 {
        0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
    }

    #[test]
    fn gelu_is_within_float_accuracy_of_its_definition_everywhere() {
        for i in -80_000..80_000 {
            let x = i as f32 / 10_000.0;
            let want = exact(x.into());
            let scale = want.abs().max(1e-3 * f64::from(x).abs()).max(1e-30);
            let got = gelu::<f32, Plain>(x).0;
            assert!((f64::from(got) - want).abs() / scale < 2e-6, "gelu({x}) = {got}, not {want}");
        }
    }

    #[test]
    fn slope_is_the_derivative() {
        for i in -900..900 {
            let x = f64::from(i) / 100.0;
            let numeric = (exact(x + 1e-5) - exact(x - 1e-5)) / 2e-5;
            assert!((gelu::<f64, Plain>(x).1 - numeric).abs() < 1e-9, "at {x}");
            assert!((f64::from(gelu::<f32, Plain>(x as f32).1) - numeric).abs() < 2e-6, "at {x}");
        }
    }

    #[test]
    fn extremes_saturate_and_nan_stays() {
        for big in [20.0, 1e4, 1e30, f32::MAX] {
            assert_eq!(gelu::<f32, Plain>(big), (big, 1.0));
            let (y, slope) = gelu::<f32, Plain>(-big);
            assert!(y <= 0.0 && y.abs() <= 1e-33 * big && slope.abs() < 1e-30, "{y} {slope} at {}", -big);
        }
        let (y, slope) = gelu::<f32, Plain>(f32::NAN);
        assert!(y.is_nan() && slope.is_nan());
    }
}

//! Root mean square norm over the last dimension, forward and backward row by row and without temporaries.

use crate::{
    buffer::{
        Rows, by_dtype, element_type, elements, filled, in_rows, read, read_rows, rows, stored, stored_brains, unread,
    },
    cuda,
    dispatch::{Isa, dispatch},
    float::Float,
    linear::sum_partials,
    par, reference,
    rounded::without_gradient,
    rounding::round_brains,
    weight::Brain,
};
#[cfg(feature = "candle-cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use std::mem::MaybeUninit;

/// Rows worked on at a time, and summed into one partial gradient of the weight.
const ROWS: usize = 32;

/// `x / √(mean(x²) + eps) · weight` over the last dimension: `x` (…, d), `weight` (d), which multiplies as it is
/// (Gemma's callers add 1). Rows of `x` may lie apart.
///
/// # Errors
/// Shapes that do not fit; types other than f32 and f64.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    check(x, weight)?;
    if cuda::is_candles(x) {
        return reference::rms_norm(x, weight, eps);
    }
    let x = if x.device().is_cpu() { in_rows(x, 1)? } else { x.contiguous()? };
    x.apply_op2(&weight.contiguous()?, RmsNorm { eps })
}

/// The same in bf16, rounded when it is computed: of f32 only, without a gradient.
///
/// # Errors
/// As for [`rms_norm`]; inputs that gradients are wanted of.
pub fn rms_norm_rounded(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    without_gradient("rms_norm_rounded", &[x, weight])?;
    check(x, weight)?;
    in_rows(x, 1)?.apply_op2_no_bwd(&weight.contiguous()?, &RmsNormRounded { eps })
}

fn check(x: &Tensor, weight: &Tensor) -> Result<()> {
    let d = x.dims().last().copied().unwrap_or(0);
    if d == 0 || weight.dims() != [d] {
        candle_core::bail!("rms_norm: x (…, d) and weight (d) do not fit: {:?}, {:?}", x.dims(), weight.dims());
    }
    Ok(())
}

struct RmsNormRounded {
    eps: f64,
}

impl CustomOp2 for RmsNormRounded {
    fn name(&self) -> &'static str {
        "rms_norm_rounded"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, weight: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, weight) = (rows::<f32>(x, xl, 1)?, elements(weight, wl)?);
        let fill = |out: &mut [MaybeUninit<Brain>]| {
            let jobs = out.chunks_mut(ROWS * x.width).enumerate();
            par::each(x.count * x.width / 4, jobs, |(i, out)| {
                let mut normed = vec![0.0; x.width];
                for (row, out) in (i * ROWS..).zip(out.chunks_exact_mut(x.width)) {
                    forward(x, row, weight, self.eps as f32, unread(&mut normed));
                    round_brains::<f32>(&normed, out);
                }
            });
        };
        // SAFETY: `out` holds as many rows as `x`, as long as `weight`; each is written.
        let (out, ()) = unsafe { filled(x.count * x.width, fill) };
        Ok((stored_brains(out), xl.shape().clone()))
    }
}

struct RmsNorm {
    eps: f64,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        by_dtype!(element_type(x), self.name(), T => {
            let (x, weight) = (rows::<T>(x, x_layout, 1)?, elements(weight, weight_layout)?);
            let fill = |out: &mut [MaybeUninit<T>]| {
                let jobs = out.chunks_mut(ROWS * x.width).enumerate();
                par::each(x.count * x.width / 4, jobs, |(i, out)| {
                    forward(x, i * ROWS, weight, T::of(self.eps), out);
                });
            };
            // SAFETY: `out` holds as many rows as `x`, as long as `weight`; each is written.
            let (out, ()) = unsafe { filled(x.count * x.width, fill) };
            Ok((stored(out), x_layout.shape().clone()))
        })
    }

    #[cfg(feature = "candle-cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        xl: &Layout,
        weight: &CudaStorage,
        wl: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        cuda::tensors::rms_norm(self.eps, (x, xl), (weight, wl))
    }

    fn bwd(&self, x: &Tensor, weight: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = &grad.contiguous()?;
        #[cfg(feature = "candle-cuda")]
        if x.device().is_cuda() {
            return cuda::tensors::rms_norm_backward(self.eps, [x, weight, grad]);
        }
        by_dtype!(x.dtype(), self.name(), T => backward::<T>(x, weight, self.eps, grad))
    }
}

fn backward<T: Float>(
    x: &Tensor,
    weight: &Tensor,
    eps: f64,
    grad: &Tensor,
) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let (shape, device, d) = (x.shape(), x.device(), weight.dim(0)?);
    let (wants_x, wants_weight) = (x.track_op(), weight.track_op());
    read_rows!(x: T, 1);
    read!(weight, grad: T);
    let jobs = x.count.div_ceil(ROWS);
    let mut sums = vec![T::zero(); if wants_weight { jobs * d } else { 0 }];
    let fill = |dx: &mut [MaybeUninit<T>]| {
        let mut dx = dx.chunks_mut(ROWS * d);
        let mut sums = sums.chunks_mut(d);
        let jobs = grad.chunks(ROWS * d).enumerate().map(|(i, grad)| (i * ROWS, grad, dx.next(), sums.next()));
        par::each(x.count * d / 4, jobs, |(start, grad, dx, sums)| {
            if let Some(dx) = dx {
                input_slopes(x, start, weight, grad, T::of(eps), dx);
            }
            if let Some(sums) = sums {
                weight_slopes(x, start, grad, T::of(eps), sums);
            }
        });
    };
    // SAFETY: `dx` is empty or as long as `grad`, which holds rows as long as `weight`; each row is written.
    let (dx, ()) = unsafe { filled(if wants_x { grad.len() } else { 0 }, fill) };
    Ok((
        wants_x.then(|| Tensor::from_vec(dx, shape, device)).transpose()?,
        wants_weight.then(|| Tensor::from_vec(sum_partials(&sums, d), d, device)).transpose()?,
    ))
}

/// 1/√(mean(x²) + eps) of a row.
#[inline(always)]
fn factor<T: Float, I: Isa>(row: &[T], eps: T) -> T {
    let mean = I::sum([row], |[x]| x * x) / T::of(row.len() as f64);
    T::one() / (mean + eps).square_root()
}

dispatch! {
    /// The rows of `x` from `start`, as many as `out` has.
    fn forward<T: Float, I: Isa>(x: Rows<'_, T>, start: usize, weight: &[T], eps: T, out: &mut [MaybeUninit<T>]) {
        for (i, out) in out.chunks_exact_mut(weight.len()).enumerate() {
            let row = x.row(start + i);
            let scale = factor::<T, I>(row, eps);
            for ((out, &x), &weight) in out.iter_mut().zip(row).zip(weight) {
                out.write(x * scale * weight);
            }
        }
    }
}

dispatch! {
    /// With x̂ the normalised row and h = grad·weight: dx = (h − x̂·mean(h·x̂)) / √(mean(x²) + eps).
    fn input_slopes<T: Float, I: Isa>(
        x: Rows<'_, T>,
        start: usize,
        weight: &[T],
        grad: &[T],
        eps: T,
        dx: &mut [MaybeUninit<T>],
    ) {
        let d = weight.len();
        for (i, (g, dx)) in grad.chunks_exact(d).zip(dx.chunks_exact_mut(d)).enumerate() {
            let row = x.row(start + i);
            let scale = factor::<T, I>(row, eps);
            let mean = I::sum([g, weight, row], |[g, w, x]| g * w * (x * scale)) / T::of(d as f64);
            for (((dx, &g), &w), &x) in dx.iter_mut().zip(g).zip(weight).zip(row) {
                dx.write((g * w - x * scale * mean) * scale);
            }
        }
    }
}

dispatch! {
    /// Adds `grad·x̂` to `sums`, row by row.
    fn weight_slopes<T: Float, I: Isa>(x: Rows<'_, T>, start: usize, grad: &[T], eps: T, sums: &mut [T]) {
        for (i, g) in grad.chunks_exact(sums.len()).enumerate() {
            let row = x.row(start + i);
            let scale = factor::<T, I>(row, eps);
            for ((sum, &g), &x) in sums.iter_mut().zip(g).zip(row) {
                *sum = I::mul_add(g, x * scale, *sum);
            }
        }
    }
}

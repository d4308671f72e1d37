//! Layer norm over the last dimension, forward and backward in one pass over each row and without temporaries.

use crate::{
    buffer::{by_dtype, element_type, elements, filled, read, stored},
    cuda,
    dispatch::{Isa, dispatch},
    float::Float,
    linear::{Gradients, sum_partials},
    par, reference,
};
#[cfg(feature = "candle-cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use std::mem::MaybeUninit;

/// Rows worked on at a time, and summed into one partial gradient of weight and bias.
const ROWS: usize = 128;

/// `(x − mean) / √(variance + eps) · weight + bias` over the last dimension: `x` (…, d), `weight` and `bias` (d), with
/// the biased variance.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let d = x.dims().last().copied().unwrap_or(0);
    if d == 0 || weight.dims() != [d] || bias.dims() != [d] {
        candle_core::bail!(
            "layer_norm: x (…, d), weight (d) and bias (d) do not fit: {:?}, {:?}, {:?}",
            x.dims(),
            weight.dims(),
            bias.dims()
        );
    }
    if cuda::is_candles(x) {
        return reference::layer_norm(x, weight, bias, eps);
    }
    x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, LayerNorm { eps })
}

struct LayerNorm {
    eps: f64,
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
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
            let (x, weight) = (elements::<T>(x, x_layout)?, elements(weight, weight_layout)?);
            let (bias, len) = (elements(bias, bias_layout)?, ROWS * weight.len());
            let fill = |out: &mut [MaybeUninit<T>]| {
                let jobs = out.chunks_mut(len).zip(x.chunks(len));
                par::each(x.len() / 4, jobs, |(out, x)| forward(x, weight, bias, T::of(self.eps), out));
            };
            // SAFETY: `x` is as long as `out` and made of rows as long as `weight`; each row is written.
            let (out, ()) = unsafe { filled(x.len(), fill) };
            Ok((stored(out), x_layout.shape().clone()))
        })
    }

    #[cfg(feature = "candle-cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
        bias: &CudaStorage,
        bias_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        cuda::tensors::layer_norm(self.eps, (x, x_layout), (weight, weight_layout), (bias, bias_layout))
    }

    fn bwd(&self, x: &Tensor, weight: &Tensor, bias: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Gradients> {
        let grad = &grad.contiguous()?;
        #[cfg(feature = "candle-cuda")]
        if x.device().is_cuda() {
            return cuda::tensors::layer_norm_backward(self.eps, [x, weight, bias, grad]);
        }
        by_dtype!(x.dtype(), self.name(), T => backward::<T>(x, weight, bias, self.eps, grad))
    }
}

fn backward<T: Float>(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64, grad: &Tensor) -> Result<Gradients> {
    let (shape, device, d) = (x.shape(), x.device(), weight.dim(0)?);
    let wants = [x.track_op(), weight.track_op(), bias.track_op()];
    read!(x, weight, grad: T);
    let len = ROWS * d;
    let mut sums = vec![T::zero(); x.len().div_ceil(len) * 2 * d];
    let fill = |dx: &mut [MaybeUninit<T>]| {
        let jobs = dx.chunks_mut(len).zip(x.chunks(len)).zip(grad.chunks(len)).zip(sums.chunks_mut(2 * d));
        par::each(x.len() / 4, jobs, |(((dx, x), grad), sums)| backward_rows(x, weight, grad, T::of(eps), dx, sums));
    };
    // SAFETY: `x` and `grad` are as long as `dx` and made of rows as long as `weight`; each row is written.
    let (dx, ()) = unsafe { filled(x.len(), fill) };
    let mut dweight = sum_partials(&sums, 2 * d);
    let dbias = dweight.split_off(d);
    let tensor =
        |wanted: bool, data: Vec<T>, shape: &Shape| wanted.then(|| Tensor::from_vec(data, shape, device)).transpose();
    Ok((tensor(wants[0], dx, shape)?, tensor(wants[1], dweight, &d.into())?, tensor(wants[2], dbias, &d.into())?))
}

#[inline(always)]
fn mean<T: Float, I: Isa>(row: &[T]) -> T {
    I::sum([row], |[x]| x) / T::of(row.len() as f64)
}

/// 1/√(variance + eps) of a row.
#[inline(always)]
fn scale<T: Float, I: Isa>(row: &[T], mean: T, eps: T) -> T {
    let variance = I::sum([row], |[x]| (x - mean) * (x - mean)) / T::of(row.len() as f64);
    T::one() / (variance + eps).square_root()
}

dispatch! {
    pub(crate) fn forward<T: Float, I: Isa>(x: &[T], weight: &[T], bias: &[T], eps: T, out: &mut [MaybeUninit<T>]) {
        let d = weight.len();
        for (x, out) in x.chunks(TOGETHER * d).zip(out.chunks_mut(TOGETHER * d)) {
            let mut moments = [(T::zero(), T::zero()); TOGETHER];
            for ((mean, _), x) in moments.iter_mut().zip(x.chunks_exact(d)) {
                *mean = self::mean::<T, I>(x);
            }
            for ((mean, scale), x) in moments.iter_mut().zip(x.chunks_exact(d)) {
                *scale = self::scale::<T, I>(x, *mean, eps);
            }
            for (((mean, scale), x), out) in moments.into_iter().zip(x.chunks_exact(d)).zip(out.chunks_exact_mut(d)) {
                for (((&x, &weight), &bias), out) in x.iter().zip(weight).zip(bias).zip(out) {
                    out.write(I::mul_add((x - mean) * scale, weight, bias));
                }
            }
        }
    }
}

dispatch! {
    /// `sums` holds the weight's gradient and, after it, the bias'. Writes dx.
    fn backward_rows<T: Float, I: Isa>(
        x: &[T],
        weight: &[T],
        grad: &[T],
        eps: T,
        dx: &mut [MaybeUninit<T>],
        sums: &mut [T],
    ) {
        let (dweight, dbias) = sums.split_at_mut(weight.len());
        each_row::<T, I, _>(x, weight, grad, eps, dx, [dweight, dbias], |dx, value| {
            dx.write(value);
        });
    }
}

dispatch! {
    /// The same, adding to dx, and with the two gradients apart.
    pub(crate) fn add_backward_rows<T: Float, I: Isa>(
        x: &[T],
        weight: &[T],
        grad: &[T],
        eps: T,
        dx: &mut [T],
        dparameters: [&mut [T]; 2],
    ) {
        each_row::<T, I, _>(x, weight, grad, eps, dx, dparameters, |dx, value| *dx += value);
    }
}

/// What the gradient of a row needs of all of it: its mean, 1/√(variance + eps), mean(h) and mean(h·x̂).
#[derive(Clone, Copy)]
struct Row<T> {
    mean: T,
    scale: T,
    mean_h: T,
    mean_hx: T,
}

/// Rows whose sums are made before anything is written: each waits long for its own, and a processor that sees a write not
/// far from where it is to read does not begin with the next.
const TOGETHER: usize = 8;

/// With x̂ the normalised row and h = grad·weight: dx = (h − mean(h) − x̂·mean(h·x̂)) / √(variance + eps), given to `put`.
#[inline(always)]
fn each_row<T: Float, I: Isa, D>(
    x: &[T],
    weight: &[T],
    grad: &[T],
    eps: T,
    dx: &mut [D],
    [dweight, dbias]: [&mut [T]; 2],
    put: impl Fn(&mut D, T),
) {
    let (d, n) = (weight.len(), T::of(weight.len() as f64));
    let (dweight, dbias) = (&mut dweight[..d], &mut dbias[..d]);
    for ((x, g), dx) in x.chunks(TOGETHER * d).zip(grad.chunks(TOGETHER * d)).zip(dx.chunks_mut(TOGETHER * d)) {
        // One kind of sum after the other, since none waits for that of another row.
        let mut rows = [Row { mean: T::zero(), scale: T::zero(), mean_h: T::zero(), mean_hx: T::zero() }; TOGETHER];
        let each = || x.chunks_exact(d).zip(g.chunks_exact(d));
        for (row, (x, _)) in rows.iter_mut().zip(each()) {
            row.mean = mean::<T, I>(x);
        }
        for (row, (x, _)) in rows.iter_mut().zip(each()) {
            row.scale = scale::<T, I>(x, row.mean, eps);
        }
        for (row, (_, g)) in rows.iter_mut().zip(each()) {
            row.mean_h = I::sum([g, weight], |[g, w]| g * w) / n;
        }
        for (row, (x, g)) in rows.iter_mut().zip(each()) {
            row.mean_hx = I::sum([g, weight, x], |[g, w, x]| g * w * ((x - row.mean) * row.scale)) / n;
        }
        for (((row, x), g), dx) in rows.iter().zip(x.chunks_exact(d)).zip(g.chunks_exact(d)).zip(dx.chunks_exact_mut(d))
        {
            // Without indices: where one may be out of bounds, the last vector is left to a loop of single elements.
            let elements = x.iter().zip(g).zip(weight).zip(dx).zip(dweight.iter_mut().zip(dbias.iter_mut()));
            for ((((&x, &g), &w), dx), (dweight, dbias)) in elements {
                let normal = (x - row.mean) * row.scale;
                *dweight = I::mul_add(g, normal, *dweight);
                *dbias += g;
                put(dx, (g * w - row.mean_h - normal * row.mean_hx) * row.scale);
            }
        }
    }
}

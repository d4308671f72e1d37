//! `residual + x·W + b`.
//!
//! candle's custom ops take three arguments, so there are two: `residual + b`, and the product added to that.

use crate::{
    buffer::{by_dtype, element_type, elements, filled, read, stored},
    dispatch::dispatch,
    linear::{Gradients, Size, check_shapes, column_sums, forward, plain_backward, sum_partials},
    par, reference,
};
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};
use std::mem::MaybeUninit;

/// `residual + x·W + b`: shapes as in [`linear`](crate::linear()), `residual` (…, outputs).
pub fn linear_residual(x: &Tensor, weight: &Tensor, bias: &Tensor, residual: &Tensor) -> Result<Tensor> {
    check_shapes("linear_residual", x, weight, bias)?;
    let fits = residual.rank() == x.rank()
        && residual.dims().last() == bias.dims().first()
        && residual.dims().iter().zip(x.dims()).rev().skip(1).all(|(r, x)| r == x);
    if !fits {
        candle_core::bail!("linear_residual: residual {:?} does not fit x {:?}", residual.dims(), x.dims());
    }
    if !x.device().is_cpu() {
        return reference::linear_residual(&x.contiguous()?, &weight.contiguous()?, bias, residual);
    }
    let base = residual.contiguous()?.apply_op2(&bias.contiguous()?, BiasAdded)?;
    x.contiguous()?.apply_op3(&weight.contiguous()?, &base, ProductAdded)
}

/// Rows of which the bias' gradient is summed at a time; fixed, so that the sum is the same on any number of threads.
const ROWS: usize = 256;

pub(crate) struct BiasAdded;

impl CustomOp2 for BiasAdded {
    fn name(&self) -> &'static str {
        "bias_added"
    }

    fn cpu_fwd(
        &self,
        residual: &CpuStorage,
        residual_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        by_dtype!(element_type(residual), self.name(), T => {
            let (residual, bias) = (elements::<T>(residual, residual_layout)?, elements(bias, bias_layout)?);
            let len = ROWS * bias.len();
            let fill = |out: &mut [MaybeUninit<T>]| {
                let jobs = out.chunks_mut(len).zip(residual.chunks(len));
                par::each(residual.len() / 8, jobs, |(out, residual)| rows_plus(residual, bias, out));
            };
            // SAFETY: `residual` is as long as `out` and made of rows as long as `bias`; each chunk is written.
            let (out, ()) = unsafe { filled(residual.len(), fill) };
            Ok((stored(out), residual_layout.shape().clone()))
        })
    }

    fn bwd(
        &self,
        residual: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let dbias = if bias.track_op() {
            by_dtype!(grad.dtype(), self.name(), T => {
                let (columns, grad) = (bias.dim(0)?, &grad);
                read!(grad: T);
                let mut sums = vec![T::from(0u8); (grad.len() / columns).div_ceil(ROWS) * columns];
                let jobs = sums.chunks_mut(columns).zip(grad.chunks(ROWS * columns));
                par::each(grad.len() / 8, jobs, |(sums, grad)| column_sums(grad, sums));
                Some(Tensor::from_vec(sum_partials(&sums, columns), columns, bias.device())?)
            })
        } else {
            None
        };
        Ok((residual.track_op().then_some(grad), dbias))
    }
}

struct ProductAdded;

impl CustomOp3 for ProductAdded {
    fn name(&self) -> &'static str {
        "product_added"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        base: &CpuStorage,
        base_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        by_dtype!(element_type(x), self.name(), T => {
            let base = elements::<T>(base, base_layout)?;
            let (x, weight) = (elements(x, x_layout)?, elements(weight, weight_layout)?);
            let size = Size::new(x_layout, weight_layout)?;
            let bases = base.chunks(size.chunk() * size.outputs);
            let out = forward(size, x, weight, bases, |base, out| add(out, base));
            Ok((stored(out), base_layout.shape().clone()))
        })
    }

    fn bwd(&self, x: &Tensor, weight: &Tensor, base: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Gradients> {
        let grad = grad.contiguous()?;
        let (dx, dweight, _) = by_dtype!(x.dtype(), self.name(), T => plain_backward::<T>(x, weight, false, &grad))?;
        Ok((dx, dweight, base.track_op().then_some(grad)))
    }
}

dispatch! {
    /// Writes `rows` with `bias` added to each row.
    fn rows_plus<T: Float, I: Isa>(rows: &[T], bias: &[T], out: &mut [MaybeUninit<T>]) {
        for (out, row) in out.chunks_exact_mut(bias.len()).zip(rows.chunks_exact(bias.len())) {
            for ((out, &value), &bias) in out.iter_mut().zip(row).zip(bias) {
                out.write(value + bias);
            }
        }
    }
}

dispatch! {
    pub(crate) fn add<T: Float, I: Isa>(out: &mut [T], other: &[T]) {
        for (out, &other) in out.iter_mut().zip(other) {
            *out += other;
        }
    }
}

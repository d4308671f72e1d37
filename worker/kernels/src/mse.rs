//! Mean squared error.

use crate::{
    buffer::{by_dtype, element_type, elements, read, stored},
    dispatch::{Isa, Plain},
    float::Float,
    reference,
};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, WithDType};

/// Mean of `(pred − target)²` over all elements, as a scalar. `target` gets no gradient.
pub fn mse_at(pred: &Tensor, target: &Tensor) -> Result<Tensor> {
    if pred.dims() != target.dims() || pred.elem_count() == 0 {
        candle_core::bail!("mse_at: pred {:?} and target {:?} must be alike and not empty", pred.dims(), target.dims());
    }
    if !pred.device().is_cpu() {
        return reference::mse_at(pred, &target.detach());
    }
    pred.contiguous()?.apply_op2(&target.detach().contiguous()?, MeanSquaredError)
}

struct MeanSquaredError;

impl CustomOp2 for MeanSquaredError {
    fn name(&self) -> &'static str {
        "mse_at"
    }

    fn cpu_fwd(
        &self,
        pred: &CpuStorage,
        pred_layout: &Layout,
        target: &CpuStorage,
        target_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        by_dtype!(element_type(pred), self.name(), T => {
            let (pred, target) = (elements::<T>(pred, pred_layout)?, elements::<T>(target, target_layout)?);
            let total: f64 = Plain::sum([pred, target], |[pred, target]| {
                let error = pred.to_f64() - target.to_f64();
                error * error
            });
            Ok((stored(vec![T::of(total / pred.len() as f64)]), ().into()))
        })
    }

    fn bwd(
        &self,
        pred: &Tensor,
        target: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (shape, device) = (pred.shape(), pred.device());
        by_dtype!(pred.dtype(), self.name(), T => {
            read!(pred, target, grad: T);
            let factor = T::of(2.0 / pred.len() as f64) * grad[0];
            let errors: Vec<T> = pred.iter().zip(target).map(|(p, t)| (p - t) * factor).collect();
            Ok((Some(Tensor::from_vec(errors, shape, device)?), None))
        })
    }
}

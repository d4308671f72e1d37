//! Results in bf16 for products that would round them anyway: half as many bytes, rounded once for several products.

use crate::{
    buffer::{elements, stored_brains},
    rounding,
};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

/// `x` in bf16, each number as the nearest, of two as near the even one.
///
/// # Errors
/// Types other than f32; an `x` that gradients are wanted of.
pub fn rounded(x: &Tensor) -> Result<Tensor> {
    without_gradient("rounded", &[x])?;
    x.contiguous()?.apply_op1_no_bwd(&Rounded)
}

/// An operation that has no gradient must not be asked for one: it would be lost without a word.
pub(crate) fn without_gradient(op: &str, inputs: &[&Tensor]) -> Result<()> {
    if inputs.iter().any(|x| x.track_op()) {
        candle_core::bail!(
            "{op}: its inputs get no gradient; where one is wanted, use the operations that it stands for"
        );
    }
    Ok(())
}

struct Rounded;

impl CustomOp1 for Rounded {
    fn name(&self) -> &'static str {
        "rounded"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((stored_brains(rounding::brains(elements(x, layout)?)), layout.shape().clone()))
    }
}

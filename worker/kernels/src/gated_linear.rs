//! The first half of a gated feed-forward layer as one operation.

use crate::{
    Activation,
    brain::Factor,
    buffer::{brains, elements, filled, stored_brains},
    gated::gated_rounded,
    linear_t::{linear_t, weights},
    par::Shared,
    rounded::without_gradient,
    weight::{Brain, Order, Weight},
};
use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor};
use std::mem::MaybeUninit;

/// `activation(x·gateᵀ) · (x·upᵀ)` in bf16, with the bytes that [`linear_t`], [`gated`](crate::gated()) and
/// [`rounded`](crate::rounded()) give: `x` (…, inputs) in f32 or rounded before, both weights (outputs, inputs) in bf16; gives
/// (…, outputs). Where the processor has AMX, neither product is ever whole in memory.
///
/// # Errors
/// Shapes or types that do not fit; an `x` that gradients are wanted of.
pub fn gated_linear(x: &Tensor, [gate, up]: [&Tensor; 2], activation: Activation) -> Result<Tensor> {
    without_gradient("gated_linear", &[x, gate, up])?;
    let (outputs, inputs) = gate.dims2()?;
    let fits = inputs > 0 && outputs > 0 && up.dims() == gate.dims() && x.dims().last() == Some(&inputs);
    let types = [x, gate, up].map(Tensor::dtype);
    if !fits || !matches!(types, [DType::F32 | DType::BF16, DType::BF16, DType::BF16]) {
        candle_core::bail!(
            "gated_linear: x (…, inputs) in f32 or bf16, gate and up (outputs, inputs) in bf16 do not fit: {:?}, {:?}, {:?} in \
             {types:?}",
            x.dims(),
            gate.dims(),
            up.dims()
        );
    }
    let (x, gate, up) = (x.contiguous()?, gate.contiguous()?, up.contiguous()?);
    if by_tiles(inputs) {
        return x.apply_op3_no_bwd(&gate, &up, &GatedLinear { activation });
    }
    gated_rounded(&linear_t(&x, &gate, None)?, &linear_t(&x, &up, None)?, activation)
}

/// Are the sums of so many terms made in one go, by AMX?
#[cfg(target_arch = "x86_64")]
use crate::panel::gated::takes as by_tiles;
#[cfg(not(target_arch = "x86_64"))]
fn by_tiles(_: usize) -> bool {
    false
}

struct GatedLinear {
    activation: Activation,
}

impl CustomOp3 for GatedLinear {
    fn name(&self) -> &'static str {
        "gated_linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (weights(gate, gate_layout, Order::ByColumn)?, weights(up, up_layout, Order::ByColumn)?);
        let x = match x {
            CpuStorage::BF16(_) => Factor::Rounded(brains(x, x_layout)?),
            _ => Factor::Wide(elements(x, x_layout)?),
        };
        let mut dims = x_layout.dims().to_vec();
        dims.pop();
        dims.push(gate.columns);
        Ok((stored_brains(product(x, [gate, up], self.activation)), dims.into()))
    }
}

#[cfg(target_arch = "x86_64")]
fn product(x: Factor<'_>, weights: [Weight<'_, f32>; 2], activation: Activation) -> Vec<Brain> {
    let [Weight { depth, columns, .. }, _] = weights;
    let rows = x.len() / depth;
    let fill = |out: &mut [MaybeUninit<Brain>]| {
        crate::panel::gated::product(x, rows, weights, activation, Shared::new(out.as_mut_ptr().cast()));
    };
    // SAFETY: all rows and columns are written.
    unsafe { filled(rows * columns, fill).0 }
}

#[cfg(not(target_arch = "x86_64"))]
fn product(_: Factor<'_>, _: [Weight<'_, f32>; 2], _: Activation) -> Vec<Brain> {
    unreachable!("only where there is AMX")
}

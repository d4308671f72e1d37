//! The first half of a gated feed-forward layer as one operation.

use crate::{
    Activation,
    brain::{self, Factor},
    buffer::{brains, elements, filled, stored, stored_brains},
    gated::{Joined, gated, gated_rounded},
    linear_t::{linear_t, weights},
    par::Shared,
    rounded::without_gradient,
    weight::{Left, Order, Weight},
};
use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor};
use std::mem::MaybeUninit;

/// `activation(x·gateᵀ) · (x·upᵀ)` with the bytes that [`linear_t`] and [`gated`](crate::gated()) give, of weights in bf16 rounded
/// as by [`rounded`](crate::rounded()): `x` (…, inputs) in f32, or rounded before where the weights are bf16, both weights
/// (outputs, inputs) in f32 or both in bf16; gives (…, outputs) in their type. On x86-64 neither product is ever whole in memory,
/// unless it has more terms than fit the cache.
///
/// # Errors
/// Shapes or types that do not fit; inputs that gradients are wanted of.
pub fn gated_linear(x: &Tensor, [gate, up]: [&Tensor; 2], activation: Activation) -> Result<Tensor> {
    without_gradient("gated_linear", &[x, gate, up])?;
    let (outputs, inputs) = gate.dims2()?;
    let fits = inputs > 0 && outputs > 0 && up.dims() == gate.dims() && x.dims().last() == Some(&inputs);
    let types = [x, gate, up].map(Tensor::dtype);
    let wide = types == [DType::F32; 3];
    if !fits || !(wide || matches!(types, [DType::F32 | DType::BF16, DType::BF16, DType::BF16])) {
        candle_core::bail!(
            "gated_linear: x (…, inputs), gate and up (outputs, inputs), all in f32, or both weights in bf16 and x in either, do \
             not fit: {:?}, {:?}, {:?} in {types:?}",
            x.dims(),
            gate.dims(),
            up.dims()
        );
    }
    let (x, gate, up) = (x.contiguous()?, gate.contiguous()?, up.contiguous()?);
    if joins(inputs, wide) {
        return x.apply_op3_no_bwd(&gate, &up, &GatedLinear { activation });
    }
    let (gate, up) = (linear_t(&x, &gate, None)?, linear_t(&x, &up, None)?);
    if wide { gated(&gate, &up, activation) } else { gated_rounded(&gate, &up, activation) }
}

/// Are the products of so many terms joined in the cache? In bf16 where the processor has AMX.
#[cfg(target_arch = "x86_64")]
fn joins(depth: usize, wide: bool) -> bool {
    use crate::weight::Elements;
    let weight = |elements| Weight { elements, depth, columns: 1, order: Order::ByColumn };
    if wide {
        return crate::panel::gated::takes(&weight(Elements::Same(&[])));
    }
    match brain::paired(weight(Elements::Brain(&[]))) {
        Some((brain::Pairs::Tiles, weight)) => crate::panel::gated::takes(&weight),
        _ => false,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn joins(_: usize, _: bool) -> bool {
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
        let both = [weights::<f32>(gate, gate_layout, Order::ByColumn)?, weights(up, up_layout, Order::ByColumn)?];
        let [Weight { depth, columns, .. }, _] = both;
        let mut dims = x_layout.dims().to_vec();
        dims.pop();
        dims.push(columns);
        let x = match x {
            CpuStorage::BF16(_) => Factor::Rounded(brains(x, x_layout)?),
            _ => Factor::Wide(elements(x, x_layout)?),
        };
        let rows = x.len() / depth;
        let out = match (both.map(brain::paired), x) {
            ([Some((pairs, gate)), Some((_, up))], _) => {
                let x = pairs.rows(x, depth);
                let x = Left(&x, pairs.room(depth), 1);
                stored_brains(product(x, rows, [gate, up], self.activation))
            }
            (_, Factor::Wide(x)) => stored(product::<f32>(Left(x, depth, 1), rows, both, self.activation)),
            _ => candle_core::bail!("gated_linear: x in bf16 beside weights in f32"),
        };
        Ok((out, dims.into()))
    }
}

#[cfg(target_arch = "x86_64")]
fn product<O: Joined>(x: Left<'_, f32>, rows: usize, weights: [Weight<'_, f32>; 2], activation: Activation) -> Vec<O> {
    let fill = |out: &mut [MaybeUninit<O>]| {
        crate::panel::gated::product(x, rows, weights, activation, Shared::new(out.as_mut_ptr().cast::<O>()));
    };
    // SAFETY: all rows and columns are written.
    unsafe { filled(rows * weights[0].columns, fill).0 }
}

#[cfg(not(target_arch = "x86_64"))]
fn product<O: Joined>(_: Left<'_, f32>, _: usize, _: [Weight<'_, f32>; 2], _: Activation) -> Vec<O> {
    unreachable!("only where products are joined")
}

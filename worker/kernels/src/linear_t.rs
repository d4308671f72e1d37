//! `x·Wᵀ` with weights as language models store them.

#[cfg(feature = "candle-cuda")]
use crate::cuda;
use crate::{
    brain::{self, Factor},
    buffer::{brains, by_dtype, element_type, elements, read, stored},
    float::Float,
    linear::{Gradients, column_sums, sum_partials},
    linear_residual::BiasAdded,
    par, product,
    weight::{self, Added, Elements, Left, Order, Weight},
};
use candle_core::{CpuStorage, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Tensor};

/// `x·Wᵀ + b`: `x` (…, inputs), `weight` (outputs, inputs) as in `nn.Linear`, `bias` (outputs); gives (…, outputs).
///
/// Beside a weight in bf16 an `x` in f32 is rounded to bf16, to the nearest, and sums are f32; one in f64 is multiplied with
/// the weight's exact values, and so are gradients. Such a weight gets none. An `x` that was rounded before ([`rounded`](crate::rounded())) gives
/// the same, in f32, and gets no gradient.
///
/// # Errors
/// Shapes that do not fit; other types.
pub fn linear_t(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    check("linear_t", x, weight, bias)?;
    #[cfg(feature = "candle-cuda")]
    if x.device().is_cuda() {
        return cuda::tensors::linear_t(x, weight, bias, None);
    }
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    match bias {
        None if x.dtype() == DType::BF16 => x.apply_op2_no_bwd(&weight, &LinearT(Third::None)),
        Some(bias) if x.dtype() == DType::BF16 => {
            x.apply_op3_no_bwd(&weight, &bias.contiguous()?, &LinearT(Third::Bias))
        }
        None => x.apply_op2(&weight, LinearT(Third::None)),
        Some(bias) => x.apply_op3(&weight, &bias.contiguous()?, LinearT(Third::Bias)),
    }
}

/// `residual + x·Wᵀ + b`: shapes as in [`linear_t`], `residual` (…, outputs).
///
/// # Errors
/// As for [`linear_t`].
pub fn linear_t_residual(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, residual: &Tensor) -> Result<Tensor> {
    check("linear_t_residual", x, weight, bias)?;
    let (lead, last) = (x.rank() - 1, weight.dim(0)?);
    let fits =
        residual.rank() == x.rank() && residual.dims()[..lead] == x.dims()[..lead] && residual.dims()[lead] == last;
    if !fits || residual.dtype() != of_result(x) {
        candle_core::bail!(
            "linear_t_residual: residual {:?} {:?} does not fit x {:?} {:?} and {last} outputs",
            residual.dims(),
            residual.dtype(),
            x.dims(),
            x.dtype()
        );
    }
    #[cfg(feature = "candle-cuda")]
    if x.device().is_cuda() {
        return cuda::tensors::linear_t(x, weight, bias, Some(residual));
    }
    let residual = residual.contiguous()?;
    let base = match bias {
        None => residual,
        Some(bias) => residual.apply_op2(&bias.contiguous()?, BiasAdded)?,
    };
    let (x, weight, op) = (x.contiguous()?, weight.contiguous()?, LinearT(Third::Residual));
    if x.dtype() == DType::BF16 { x.apply_op3_no_bwd(&weight, &base, &op) } else { x.apply_op3(&weight, &base, op) }
}

/// The type of a product with `x`.
fn of_result(x: &Tensor) -> DType {
    if x.dtype() == DType::BF16 { DType::F32 } else { x.dtype() }
}

fn check(op: &str, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<()> {
    let (outputs, inputs) = weight.dims2()?;
    let fits = inputs > 0 && outputs > 0 && x.dims().last() == Some(&inputs);
    if !fits || bias.is_some_and(|bias| bias.dims() != [outputs]) {
        candle_core::bail!(
            "{op}: x (…, inputs), weight (outputs, inputs) and bias (outputs) do not fit: {:?}, {:?}, {:?}",
            x.dims(),
            weight.dims(),
            bias.map(Tensor::dims)
        );
    }
    let bias_type = bias.map_or(of_result(x), Tensor::dtype);
    if (weight.dtype() != x.dtype() && weight.dtype() != DType::BF16) || bias_type != of_result(x) {
        candle_core::bail!(
            "{op}: weight must be of x's type ({:?}) or bf16, and bias of x's type, not {:?} and {bias_type:?}",
            x.dtype(),
            weight.dtype()
        );
    }
    Ok(())
}

/// The third argument.
enum Third {
    None,
    Bias,
    Residual,
}

struct LinearT(Third);

impl LinearT {
    const NAME: &str = "linear_t";

    fn forward(
        &self,
        (x, x_layout): (&CpuStorage, &Layout),
        (weight, weight_layout): (&CpuStorage, &Layout),
        third: Option<(&CpuStorage, &Layout)>,
    ) -> Result<(CpuStorage, Shape)> {
        let mut dims = x_layout.dims().to_vec();
        dims.pop();
        dims.push(weight_layout.dims()[0]);
        if let CpuStorage::BF16(_) = x {
            let weight = weights::<f32>(weight, weight_layout, Order::ByColumn)?;
            let added = self.added(third)?;
            let out = brain::product(Factor::Rounded(brains(x, x_layout)?), weight, added);
            return Ok((stored(out), dims.into()));
        }
        by_dtype!(element_type(x), Self::NAME, T => {
            let weight = weights::<T>(weight, weight_layout, Order::ByColumn)?;
            let added = self.added(third)?;
            let out = match weight.elements {
                Elements::Brain(_) => T::by_brains(elements(x, x_layout)?, weight, added),
                _ => {
                    let (x, rows) = Left::of(elements(x, x_layout)?, weight.depth);
                    weight::product(x, rows, weight, added)
                }
            };
            Ok((stored(out), dims.into()))
        })
    }

    fn added<'a, T: Float>(&self, third: Option<(&'a CpuStorage, &Layout)>) -> Result<Added<'a, T>> {
        let third = third.map(|(third, layout)| elements::<T>(third, layout)).transpose()?.unwrap_or_default();
        Ok(match self.0 {
            Third::None => Added::Nothing,
            Third::Bias => Added::Bias(third),
            Third::Residual => Added::Residual(third),
        })
    }
}

impl CustomOp2 for LinearT {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, w: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward((x, xl), (w, wl), None)
    }

    fn bwd(&self, x: &Tensor, weight: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        product_backward(x, weight, &grad.contiguous()?)
    }
}

impl CustomOp3 for LinearT {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        third: &CpuStorage,
        third_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward((x, x_layout), (weight, weight_layout), Some((third, third_layout)))
    }

    fn bwd(&self, x: &Tensor, weight: &Tensor, third: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Gradients> {
        let grad = grad.contiguous()?;
        let (dx, dweight) = product_backward(x, weight, &grad)?;
        let dthird = match self.0 {
            _ if !third.track_op() => None,
            Third::None => None,
            Third::Bias => Some(bias_gradient(&grad)?),
            Third::Residual => Some(grad),
        };
        Ok((dx, dweight, dthird))
    }
}

/// The elements of a weight, as one of T or of bf16.
pub(crate) fn weights<'a, T: Float>(storage: &'a CpuStorage, layout: &Layout, order: Order) -> Result<Weight<'a, T>> {
    let (outputs, inputs) = layout.shape().dims2()?;
    let elements = match storage {
        CpuStorage::BF16(_) => Elements::Brain(brains(storage, layout)?),
        _ => Elements::Same(elements(storage, layout)?),
    };
    let (depth, columns) = match order {
        Order::ByColumn => (inputs, outputs),
        Order::ByTerm => (outputs, inputs),
    };
    Ok(Weight { elements, depth, columns, order })
}

/// Gradients of `x` and of the weight, where wanted: grad·W and gradᵀ·x.
fn product_backward(x: &Tensor, weight: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let (outputs, inputs) = weight.dims2()?;
    let (shape, device) = (x.shape(), x.device());
    let wants = [x.track_op(), weight.track_op()];
    if wants[1] && weight.dtype() != x.dtype() {
        candle_core::bail!("linear_t: a weight in {:?} beside x in {:?} gets no gradient", weight.dtype(), x.dtype());
    }
    by_dtype!(x.dtype(), LinearT::NAME, T => {
        read!(x, grad: T);
        let dx = if wants[0] {
            let (guard, layout) = weight.storage_and_layout();
            let candle_core::Storage::Cpu(storage) = &*guard else {
                candle_core::bail!("linear_t: this kernel runs on the CPU only")
            };
            let (grad, rows) = Left::of(grad, outputs);
            let dx = weight::product(grad, rows, weights::<T>(storage, layout, Order::ByTerm)?, Added::Nothing);
            Some(Tensor::from_vec(dx, shape, device)?)
        } else {
            None
        };
        let dweight = wants[1].then(|| product::gradient_of_weight(grad, x, outputs, inputs));
        Ok((dx, dweight.map(|dweight| Tensor::from_vec(dweight, weight.shape(), device)).transpose()?))
    })
}

/// Rows of which the bias' gradient is summed at a time; fixed, so that the sum is the same on any number of threads.
const ROWS: usize = 256;

/// The sum of all rows.
fn bias_gradient(grad: &Tensor) -> Result<Tensor> {
    let (columns, device) = (grad.dim(grad.rank() - 1)?, grad.device());
    by_dtype!(grad.dtype(), LinearT::NAME, T => {
        read!(grad: T);
        let mut sums = vec![T::of(0.0); (grad.len() / columns).div_ceil(ROWS) * columns];
        let jobs = sums.chunks_mut(columns).zip(grad.chunks(ROWS * columns));
        par::each(grad.len() / 8, jobs, |(sums, grad)| column_sums(grad, sums));
        Tensor::from_vec(sum_partials(&sums, columns), columns, device)
    })
}

//! Norms, rotary positions and gated activations.

use super::{Given, Gpu, Made, held};
use crate::{
    Activation,
    buffer::row_stride,
    cuda::{
        language::{self, Gates, Turned},
        layers::{self, Stacked},
    },
    linear::Gradients,
};
use candle_core::{CudaStorage, Layout, Result, Shape, Tensor};

/// Rows as long as a parameter of `width`.
fn rows(x: &Shape, width: usize) -> Stacked {
    Stacked { runs: 1, rows: x.elem_count() / width, width, stride: width }
}

pub(crate) fn rms_norm(eps: f64, x: Given<'_>, weight: Given<'_>) -> Result<(CudaStorage, Shape)> {
    let gpu = Gpu::of(&x.0.device)?;
    let (shape, width) = (x.1.shape(), weight.1.shape().elem_count());
    let mut out = gpu.room::<f32>(shape.elem_count())?;
    let [x, weight] = [gpu.dense::<f32>(x)?, gpu.dense::<f32>(weight)?];
    gpu.launch(&layers::rms_norm(rows(shape, width), eps, [&x, &weight, &out.held(&gpu)]))?;
    Ok((out.storage(&gpu), shape.clone()))
}

/// Gradients of `x` and the weight, where wanted.
pub(crate) fn rms_norm_backward(eps: f64, [x, weight, grad]: [&Tensor; 3]) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let gpu = Gpu::of_tensor(x)?;
    let (shape, wants) = (x.shape(), [x, weight].map(Tensor::track_op));
    let of = rows(shape, weight.elem_count());
    let (mut dx, mut dweight) = (gpu.zeros(shape.elem_count())?, gpu.room::<f32>(of.width)?);
    let mut partials = gpu.room::<f32>(of.parts() * of.width)?;
    {
        held!(gpu.dense::<f32>; x, weight, grad);
        let (dx, dweight, partials) = (&dx.held(&gpu), &dweight.held(&gpu), &partials.held(&gpu));
        gpu.launch(&layers::rms_norm_backward(of, eps, [x, weight, grad, dx, partials]))?;
        gpu.launch(&layers::sum_partials(of, partials, (dweight, of.width), None))?;
    }
    Ok((wants[0].then(|| dx.tensor(&gpu, shape)), wants[1].then(|| dweight.tensor(&gpu, of.width))))
}

pub(crate) fn layer_norm(eps: f64, x: Given<'_>, weight: Given<'_>, bias: Given<'_>) -> Result<(CudaStorage, Shape)> {
    let gpu = Gpu::of(&x.0.device)?;
    let (shape, width) = (x.1.shape(), weight.1.shape().elem_count());
    let mut out = gpu.room::<f32>(shape.elem_count())?;
    let [x, weight, bias] = [gpu.dense::<f32>(x)?, gpu.dense::<f32>(weight)?, gpu.dense::<f32>(bias)?];
    gpu.launch(&layers::layer_norm(rows(shape, width), eps, [&x, &weight, &bias, &out.held(&gpu)]))?;
    Ok((out.storage(&gpu), shape.clone()))
}

/// Gradients of `x`, weight and bias, where wanted.
pub(crate) fn layer_norm_backward(eps: f64, [x, weight, bias, grad]: [&Tensor; 4]) -> Result<Gradients> {
    let gpu = Gpu::of_tensor(x)?;
    let (shape, wants) = (x.shape(), [x, weight, bias].map(Tensor::track_op));
    let of = rows(shape, weight.elem_count());
    let mut dx = gpu.zeros(shape.elem_count())?;
    let [mut dweight, mut dbias] = [gpu.room::<f32>(of.width)?, gpu.room::<f32>(of.width)?];
    let mut partials = gpu.room::<f32>(2 * of.parts() * of.width)?;
    {
        held!(gpu.dense::<f32>; x, weight, grad);
        let (dx, partials) = (&dx.held(&gpu), &partials.held(&gpu));
        let (dweight, dbias) = (&dweight.held(&gpu), &dbias.held(&gpu));
        gpu.launch(&layers::layer_norm_backward(of, eps, [x, weight, grad, dx, partials]))?;
        gpu.launch(&layers::sum_partials(of, partials, (dweight, of.width), Some((dbias, of.width))))?;
    }
    let parameter = |wanted: bool, made: Made<f32>| wanted.then(|| made.tensor(&gpu, of.width));
    let [dweight, dbias] = [parameter(wants[1], dweight), parameter(wants[2], dbias)];
    Ok((wants[0].then(|| dx.tensor(&gpu, shape)), dweight, dbias))
}

/// `x` (N, H, D) turned by the angles of `cos` and `sin` (N, R).
pub(crate) fn rotate(x: Given<'_>, [cos, sin]: [&Tensor; 2]) -> Result<(CudaStorage, Shape)> {
    let gpu = Gpu::of(&x.0.device)?;
    let shape = x.1.shape();
    let (tokens, heads, dim) = shape.dims3()?;
    let of = Turned { tokens, heads, dim, pairs: cos.dim(1)? };
    let mut out = gpu.room::<f32>(shape.elem_count())?;
    {
        held!(gpu.dense::<f32>; cos, sin);
        gpu.launch(&language::rotate(of, false, [&gpu.dense::<f32>(x)?, cos, sin, &out.held(&gpu)]))?;
    }
    Ok((out.storage(&gpu), shape.clone()))
}

/// The same by the negative angles.
pub(crate) fn rotate_back(grad: &Tensor, [cos, sin]: [&Tensor; 2]) -> Result<Tensor> {
    let gpu = Gpu::of_tensor(grad)?;
    let (shape, (tokens, heads, dim)) = (grad.shape(), grad.dims3()?);
    let of = Turned { tokens, heads, dim, pairs: cos.dim(1)? };
    let mut out = gpu.room::<f32>(shape.elem_count())?;
    {
        held!(gpu.dense::<f32>; grad, cos, sin);
        gpu.launch(&language::rotate(of, true, [grad, cos, sin, &out.held(&gpu)]))?;
    }
    Ok(out.tensor(&gpu, shape))
}

/// What the kernels are told of rows that may lie apart.
fn gates(activation: Activation, gate: &Layout, up: &Layout) -> Result<Gates> {
    let width = gate.dims().last().copied().unwrap_or(1);
    let [Some(of_gate), Some(of_up)] = [gate, up].map(|layout| row_stride(layout, 1)) else {
        candle_core::bail!("gated: {gate:?} and {up:?} have no regular rows; make them contiguous first")
    };
    Ok(Gates { activation, rows: gate.shape().elem_count() / width, width, strides: [of_gate, of_up] })
}

pub(crate) fn gated(activation: Activation, gate: Given<'_>, up: Given<'_>) -> Result<(CudaStorage, Shape)> {
    let gpu = Gpu::of(&gate.0.device)?;
    let (of, shape) = (gates(activation, gate.1, up.1)?, gate.1.shape());
    let mut out = gpu.room::<f32>(shape.elem_count())?;
    gpu.launch(&of.forward([&gpu.from::<f32>(gate)?, &gpu.from::<f32>(up)?, &out.held(&gpu)]))?;
    Ok((out.storage(&gpu), shape.clone()))
}

/// Gradients of gate and up, where wanted.
pub(crate) fn gated_backward(
    activation: Activation,
    [gate, up, grad]: [&Tensor; 3],
) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let gpu = Gpu::of_tensor(gate)?;
    let (of, shape) = (gates(activation, gate.layout(), up.layout())?, gate.shape());
    let made = |tracked: bool| tracked.then(|| gpu.room::<f32>(shape.elem_count())).transpose();
    let (mut dgate, mut dup) = (made(gate.track_op())?, made(up.track_op())?);
    {
        held!(gpu.from::<f32>; gate, up);
        held!(gpu.dense::<f32>; grad);
        let (dgate, dup) = (dgate.as_mut().map(|d| d.held(&gpu)), dup.as_mut().map(|d| d.held(&gpu)));
        gpu.launch(&of.backward([gate, up, grad], [dgate.as_ref(), dup.as_ref()]))?;
    }
    Ok((dgate.map(|d| d.tensor(&gpu, shape)), dup.map(|d| d.tensor(&gpu, shape))))
}

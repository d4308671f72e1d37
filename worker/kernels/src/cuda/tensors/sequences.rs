//! Attention of synthetic models.

use super::{Given, Gpu, held};
use crate::cuda::attention::Attention;
use candle_core::{CudaStorage, Result, Shape, Tensor};

fn sizes(gpu: &Gpu, qkv: &Shape, heads: usize) -> Result<Attention> {
    let (sequences, tokens, packed) = qkv.dims3()?;
    Ok(Attention { sequences, tokens, width: packed / 3, heads, shared: gpu.shared() })
}

/// `qkv` (B, T, 3d) to (B, T, d).
pub(crate) fn causal_attention(heads: usize, qkv: Given<'_>) -> Result<(CudaStorage, Shape)> {
    let gpu = Gpu::of(&qkv.0.device)?;
    let of = sizes(&gpu, qkv.1.shape(), heads)?;
    let shape = Shape::from((of.sequences, of.tokens, of.width));
    let mut out = gpu.room::<f32>(shape.elem_count())?;
    gpu.launch(&of.forward([&gpu.dense::<f32>(qkv)?, &out.held(&gpu)]))?;
    Ok((out.storage(&gpu), shape))
}

/// The gradient of `qkv`.
pub(crate) fn causal_attention_backward(heads: usize, [qkv, grad]: [&Tensor; 2]) -> Result<Tensor> {
    let gpu = Gpu::of_tensor(qkv)?;
    let (shape, of) = (qkv.shape(), sizes(&gpu, qkv.shape(), heads)?);
    let mut slopes = gpu.room::<f32>(shape.elem_count())?;
    {
        held!(gpu.dense::<f32>; qkv, grad);
        gpu.launch(&of.backward([qkv, grad, &slopes.held(&gpu)]))?;
    }
    Ok(slopes.tensor(&gpu, shape))
}

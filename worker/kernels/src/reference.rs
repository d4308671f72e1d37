//! The same functions in plain candle operations: slow, differentiable and obviously right.
//!
//! The fast ones are always compared with these.

use candle_core::{D, Result, Tensor};

/// `√(2/π)`, the factor in the tanh form of GELU.
const SQRT_2_OVER_PI: f64 = 0.797_884_560_802_865_4;

/// Layer norm over the last dimension: `(x − mean) / √(variance + eps) · weight + bias`, with the biased variance.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    centred.broadcast_div(&(variance + eps)?.sqrt()?)?.broadcast_mul(weight)?.broadcast_add(bias)
}

/// `x·W + b` with `weight` as (inputs, outputs).
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (inputs, outputs) = weight.dims2()?;
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = outputs;
    }
    x.reshape(((), inputs))?.matmul(weight)?.broadcast_add(bias)?.reshape(shape)
}

/// GELU in its tanh form, as in GPT-2.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    let inner = ((x.powf(3.0)? * 0.044715)? + x)?;
    x * ((inner * SQRT_2_OVER_PI)?.tanh()? + 1.0)?.affine(0.5, 0.0)?
}

/// `gelu(x·W + b)`.
pub fn linear_gelu(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    gelu(&linear(x, weight, bias)?)
}

/// `residual + x·W + b`.
pub fn linear_residual(x: &Tensor, weight: &Tensor, bias: &Tensor, residual: &Tensor) -> Result<Tensor> {
    residual + linear(x, weight, bias)?
}

/// Multi-head causal self-attention from packed queries, keys and values: (B, T, 3d) to (B, T, d).
pub fn causal_attention(qkv: &Tensor, heads: usize) -> Result<Tensor> {
    let (b, t, packed) = qkv.dims3()?;
    let d = packed / 3;
    let head = d / heads;
    let part = |i: usize| qkv.narrow(2, i * d, d)?.reshape((b, t, heads, head))?.transpose(1, 2)?.contiguous();
    let (q, k, v) = (part(0)?, part(1)?, part(2)?);
    let scores = (q.matmul(&k.t()?)? / (head as f64).sqrt())?;
    let mask: Vec<f32> = (0..t * t).map(|i| if i % t > i / t { f32::NEG_INFINITY } else { 0.0 }).collect();
    let mask = Tensor::from_vec(mask, (t, t), qkv.device())?.to_dtype(qkv.dtype())?;
    let scores = scores.broadcast_add(&mask)?;
    let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
    let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
    weights.matmul(&v)?.transpose(1, 2)?.reshape((b, t, d))
}

/// Mean squared error over all elements.
pub fn mse_at(pred: &Tensor, target: &Tensor) -> Result<Tensor> {
    (pred - target)?.sqr()?.mean_all()
}

//! The same functions in plain candle operations: slow, differentiable and obviously right.
//!
//! The fast ones are always compared with these.

use crate::{Activation, Attend, Rotary, Span};
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

/// `x·Wᵀ + b` with `weight` as (outputs, inputs): `nn.Linear`.
pub fn linear_t(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (outputs, inputs) = weight.dims2()?;
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = outputs;
    }
    let out = x.reshape(((), inputs))?.matmul(&weight.t()?)?;
    match bias {
        Some(bias) => out.broadcast_add(bias)?.reshape(shape),
        None => out.reshape(shape),
    }
}

/// Root mean square norm over the last dimension: `x / √(mean(x²) + eps) · weight`.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let square = x.sqr()?.mean_keepdim(D::Minus1)?;
    x.broadcast_div(&(square + eps)?.sqrt()?)?.broadcast_mul(weight)
}

/// Rotates the first `2·R` elements of each head by the angle of its token: element i pairs with element i + R.
pub fn rotate(x: &Tensor, rotary: &Rotary) -> Result<Tensor> {
    let (_, _, head) = x.dims3()?;
    let r = rotary.cos.dim(1)?;
    let (cos, sin) = (rotary.cos.unsqueeze(1)?, rotary.sin.unsqueeze(1)?);
    let (a, b) = (x.narrow(2, 0, r)?, x.narrow(2, r, r)?);
    let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    Tensor::cat(&[first, second, x.narrow(2, 2 * r, head - 2 * r)?], 2)
}

/// `activation(gate) · up`.
pub fn gated(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    let active = match activation {
        Activation::Silu => gate.silu()?,
        Activation::GeluTanh => gelu(gate)?,
    };
    active * up
}

/// See [`crate::attend`].
pub fn attend(q: &Tensor, k: &Tensor, v: &Tensor, spans: &[Span], attend: &Attend) -> Result<Tensor> {
    let (queries, heads, dim) = q.dims3()?;
    let groups = k.dim(1)?;
    let mut rows = Vec::new();
    let mut next = 0;
    for span in spans {
        if span.queries.start != next {
            candle_core::bail!("attend: spans must cover the queries in order");
        }
        next = span.queries.end;
        if span.queries.is_empty() {
            continue;
        }
        let keys = |x: &Tensor| -> Result<Tensor> {
            let part = |r: &std::ops::Range<usize>| x.narrow(0, r.start, r.len());
            let all = Tensor::cat(&[part(&span.prefix)?, part(&span.keys)?], 0)?;
            // (M, G, D) to (H, M, D), each group's keys repeated for its heads.
            let (m, _, d) = all.dims3()?;
            all.unsqueeze(2)?
                .broadcast_as((m, groups, heads / groups, d))?
                .reshape((m, heads, d))?
                .transpose(0, 1)?
                .contiguous()
        };
        let (k, v) = (keys(k)?, keys(v)?);
        let q = q.narrow(0, span.queries.start, span.queries.len())?.transpose(0, 1)?.contiguous()?;
        let mut scores = (q.matmul(&k.t()?)? * attend.scale)?;
        if let Some(cap) = attend.softcap {
            scores = ((scores / cap)?.tanh()? * cap)?;
        }
        let mask: Vec<f32> = (span.queries.clone().map(|i| i - span.queries.start))
            .flat_map(|i| (0..span.visible()).map(move |j| (i, j)))
            .map(|(i, j)| if span.sees(i, j, attend.window) { 0.0 } else { f32::NEG_INFINITY })
            .collect();
        let mask = Tensor::from_vec(mask, (span.queries.len(), span.visible()), q.device())?.to_dtype(q.dtype())?;
        let scores = scores.broadcast_add(&mask)?;
        let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
        let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
        rows.push(weights.matmul(&v)?.transpose(0, 1)?.contiguous()?);
    }
    if next != queries {
        candle_core::bail!("attend: spans cover {next} of {queries} queries");
    }
    if rows.is_empty() {
        return q.zeros_like()?.reshape((0, heads, dim));
    }
    Tensor::cat(&rows, 0)
}

/// Mean over the rows of `−log softmax(logits)` at each row's target.
pub fn cross_entropy(logits: &Tensor, targets: &[u32]) -> Result<Tensor> {
    let largest = logits.max_keepdim(D::Minus1)?.detach();
    let centred = logits.broadcast_sub(&largest)?;
    let log_sum = centred.exp()?.sum_keepdim(D::Minus1)?.log()?;
    let targets = Tensor::new(targets, logits.device())?.unsqueeze(1)?;
    (log_sum - centred.gather(&targets, 1)?)?.mean_all()
}

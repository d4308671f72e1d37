//! The same functions as in [`super::loops`] and [`super::scan`] in candle operations: on any device, and differentiable.

use super::scan::Sizes;
use candle_core::{D, DType, Result, Tensor};
use std::ops::Range;

/// See [`super::loops::convolve`]: `input` (N, C), `weight` (K, C), `bias` (C), `states` (rows, K − 1, C). Gives the
/// outputs and the states after the last tokens.
pub fn convolve(
    rows: &[Range<usize>],
    input: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    states: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let (kernel, _) = weight.dims2()?;
    let (mut out, mut after) = (Vec::new(), Vec::new());
    for (i, row) in rows.iter().enumerate() {
        let inputs = Tensor::cat(&[states.get(i)?, input.narrow(0, row.start, row.len())?], 0)?;
        let mut sum = inputs.narrow(0, 0, row.len())?.broadcast_mul(&weight.get(0)?)?;
        for k in 1..kernel {
            sum = (sum + inputs.narrow(0, k, row.len())?.broadcast_mul(&weight.get(k)?)?)?;
        }
        out.push(sum);
        after.push(inputs.narrow(0, row.len(), kernel - 1)?);
    }
    let mut out = Tensor::cat(&out, 0)?;
    if let Some(bias) = bias {
        out = out.broadcast_add(bias)?;
    }
    Ok((out.silu()?, Tensor::stack(&after, 0)?))
}

/// See [`super::loops::steps`]: `raw` (N, H), `bias` (H).
pub fn steps(raw: &Tensor, bias: &Tensor, limits: (f64, f64)) -> Result<Tensor> {
    // In f64, since ln(1 + x) of a small x is lost in f32.
    let x = raw.to_dtype(DType::F64)?.broadcast_add(&bias.to_dtype(DType::F64)?)?;
    let mut steps = (x.relu()? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?)?;
    if limits.0 > 0.0 {
        steps = steps.maximum(limits.0)?;
    }
    if limits.1.is_finite() {
        steps = steps.minimum(limits.1)?;
    }
    steps.to_dtype(raw.dtype())
}

/// See [`super::scan::scan`]: `mixed` (N, mixed), `step` (N, H), `rate` and `skip` (H), `states` (rows, H, P, S). Gives
/// outputs (N, H·P) and the states after the last tokens.
pub fn scan(
    sizes: Sizes,
    chunk: usize,
    rows: &[Range<usize>],
    [mixed, step, rate, skip, states]: [&Tensor; 5],
) -> Result<(Tensor, Tensor)> {
    let (mut out, mut after) = (Vec::new(), Vec::new());
    for (i, row) in rows.iter().enumerate() {
        let mut state = states.get(i)?;
        for start in row.clone().step_by(chunk) {
            let tokens = chunk.min(row.end - start);
            let (y, next) =
                advance(sizes, &mixed.narrow(0, start, tokens)?, &step.narrow(0, start, tokens)?, rate, state)?;
            out.push(y);
            state = next;
        }
        after.push(state);
    }
    let heads = (tokens(rows), sizes.heads, sizes.head_dim);
    let x = mixed.narrow(1, 0, sizes.inner())?.reshape(heads)?;
    let skipped = x.broadcast_mul(&skip.reshape((sizes.heads, 1))?)?;
    let out = (Tensor::cat(&out, 0)? + skipped)?.reshape((tokens(rows), sizes.inner()))?;
    Ok((out, Tensor::stack(&after, 0)?))
}

fn tokens(rows: &[Range<usize>]) -> usize {
    rows.iter().map(Range::len).sum()
}

/// One chunk of L tokens of one row: its outputs (L, H, P) without d·x, and the `state` (H, P, S) after it.
fn advance(sizes: Sizes, mixed: &Tensor, step: &Tensor, rate: &Tensor, state: Tensor) -> Result<(Tensor, Tensor)> {
    let (len, per_group) = (mixed.dim(0)?, sizes.heads / sizes.groups);
    // (L, G·S) to (H, L, S).
    let of_heads = |first: usize| -> Result<Tensor> {
        let shared =
            mixed.narrow(1, first, sizes.groups * sizes.state)?.reshape((len, sizes.groups, 1, sizes.state))?;
        let each = shared.broadcast_as((len, sizes.groups, per_group, sizes.state))?;
        each.reshape((len, sizes.heads, sizes.state))?.transpose(0, 1)?.contiguous()
    };
    let x = mixed
        .narrow(1, 0, sizes.inner())?
        .reshape((len, sizes.heads, sizes.head_dim))?
        .transpose(0, 1)?
        .contiguous()?;
    let b = of_heads(sizes.inner())?;
    let c = of_heads(sizes.inner() + sizes.groups * sizes.state)?;
    // (H, L): logarithms of each token's decay, and their sums from the start of the chunk.
    let step = step.t()?.contiguous()?;
    let sums = step.to_dtype(DType::F64)?.broadcast_mul(&rate.to_dtype(DType::F64)?.unsqueeze(1)?)?.cumsum(1)?;
    let decay = |logarithm: Tensor| logarithm.to_dtype(x.dtype())?.exp();
    // (H, L, L): from token s to token t, none where s is later.
    let later: Vec<f64> = (0..len * len).map(|i| if i % len > i / len { f64::NEG_INFINITY } else { 0.0 }).collect();
    let later = Tensor::from_vec(later, (len, len), x.device())?;
    let between = decay(sums.unsqueeze(2)?.broadcast_sub(&sums.unsqueeze(1)?)?.broadcast_add(&later)?)?;
    let weights = ((c.matmul(&b.t()?.contiguous()?)? * between)?.broadcast_mul(&step.unsqueeze(1)?))?;
    let carried = c.matmul(&state.t()?.contiguous()?)?.broadcast_mul(&decay(sums.unsqueeze(2)?)?)?;
    let out = (weights.matmul(&x)? + carried)?.transpose(0, 1)?;
    // Decay from each token, and from the start, to the end of the chunk.
    let whole = sums.narrow(D::Minus1, len - 1, 1)?;
    let to_end = (decay(whole.broadcast_sub(&sums)?)? * step)?;
    let added = x.t()?.contiguous()?.matmul(&b.broadcast_mul(&to_end.unsqueeze(2)?)?)?;
    let next = (state.broadcast_mul(&decay(whole.unsqueeze(2)?)?)? + added)?;
    Ok((out, next))
}

/// See [`super::loops::gate`]: `y` and `z` (N, C), `weight` (C).
pub fn gate(y: &Tensor, z: &Tensor, weight: &Tensor, groups: usize, eps: f64) -> Result<Tensor> {
    let (tokens, channels) = y.dims2()?;
    let parts = (y * z.silu()?)?.reshape((tokens, groups, channels / groups))?;
    let scale = (parts.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    parts.broadcast_div(&scale)?.reshape((tokens, channels))?.broadcast_mul(weight)
}

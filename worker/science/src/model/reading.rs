//! What the heads of attention read, with a hook on the way: the same for all models.

use super::language::{Rows, wide};
use crate::hook::{BlockPoint, HookPoint, Visitor};
use candle_core::{D, Result, Tensor};
use taskvec_kernels::{Attend, Span, attend};

/// What every head reads: queries (N, H, D), keys and values (M, G, D) to (N, H, D).
///
/// Attention patterns are made only where the hook wants them.
pub(super) fn read(
    [q, k, v]: [&Tensor; 3],
    spans: &[Span],
    how: &Attend,
    block: usize,
    hook: &mut Visitor<'_>,
) -> Result<Tensor> {
    let point = HookPoint::Block(block, BlockPoint::Pattern);
    let z = attend(q, k, v, spans, how)?;
    if !hook.wants(point) {
        return Ok(z);
    }
    // Rows whose pattern was replaced are read with the new one; the others are as if nobody had looked.
    let rows = hook.rows();
    let mut parts = Vec::with_capacity(rows.len());
    for (row, span) in rows.iter().zip(spans) {
        let pattern = pattern(q, k, span, how)?;
        parts.push(match hook.look(point, &pattern, &Rows::only(row))? {
            None => z.narrow(0, row.tokens.start, row.tokens.len())?,
            Some(pattern) => read_by(&pattern, v, span)?,
        });
    }
    Tensor::cat(&parts, 0)
}

/// By how much more attention adds to the residual stream, (…, d), where a hook replaces what its heads add: `z` (…, H, D) is what
/// they read, and `project` makes (…, d) of all heads beside each other, (…, H·D), without a bias. Zeros where what was replaced
/// is what was there.
pub(super) fn replaced_results(
    z: &Tensor,
    project: impl Fn(&Tensor) -> Result<Tensor>,
    block: usize,
    hook: &mut Visitor<'_>,
) -> Result<Option<Tensor>> {
    let point = HookPoint::Block(block, BlockPoint::Result);
    if !hook.wants(point) {
        return Ok(None);
    }
    let (at, heads) = (z.rank() - 2, z.dim(D::Minus2)?);
    // One head, and zeros in place of the others.
    let alone = |head: usize| {
        let alone = z.narrow(at, head, 1)?.pad_with_zeros(at, head, heads - head - 1)?;
        project(&alone.contiguous()?.flatten_from(at)?)
    };
    let results = (0..heads).map(alone).collect::<Result<Vec<_>>>()?;
    let results = Tensor::stack(&results, at)?;
    let replaced = hook.look(point, &results, hook.rows())?;
    replaced.map(|replaced| (replaced - results)?.sum(at)).transpose()
}

/// Keys or values of one row by query head: (M, G, D) to (H, keys of the row, D).
fn by_head(x: &Tensor, span: &Span, heads: usize) -> Result<Tensor> {
    let part = |range: &std::ops::Range<usize>| x.narrow(0, range.start, range.len());
    let row = Tensor::cat(&[part(&span.prefix)?, part(&span.keys)?], 0)?;
    let (keys, groups, head) = row.dims3()?;
    let repeated = row.unsqueeze(2)?.broadcast_as((keys, groups, heads / groups, head))?;
    repeated.reshape((keys, heads, head))?.transpose(0, 1)?.contiguous()
}

/// How much each query of a row reads from each of its keys, (H, queries, keys).
fn pattern(q: &Tensor, k: &Tensor, span: &Span, attend: &Attend) -> Result<Tensor> {
    let (queries, keys) = (span.queries.len(), span.visible());
    let q = q.narrow(0, span.queries.start, queries)?.to_dtype(wide(q.dtype()))?.transpose(0, 1)?.contiguous()?;
    let k = by_head(k, span, q.dim(0)?)?.to_dtype(q.dtype())?;
    let mut scores = (q.matmul(&k.t()?)? * attend.scale)?;
    if let Some(cap) = attend.softcap {
        scores = ((scores / cap)?.tanh()? * cap)?;
    }
    let hidden = |i: usize, j: usize| if span.sees(i, j, attend.window) { 0.0 } else { f32::NEG_INFINITY };
    let mask: Vec<f32> = (0..queries).flat_map(|i| (0..keys).map(move |j| hidden(i, j))).collect();
    let mask = Tensor::from_vec(mask, (queries, keys), q.device())?.to_dtype(q.dtype())?;
    let scores = scores.broadcast_add(&mask)?;
    let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)
}

/// What the queries of a row read by a given pattern: (H, queries, keys) and values (M, G, D) to (queries, H, D).
fn read_by(pattern: &Tensor, v: &Tensor, span: &Span) -> Result<Tensor> {
    let heads = by_head(v, span, pattern.dim(0)?)?;
    let read = pattern.matmul(&heads.to_dtype(pattern.dtype())?)?;
    read.transpose(0, 1)?.to_dtype(v.dtype())?.contiguous()
}

//! Multi-head causal attention with grouped keys and values.

use super::{
    batch::Rows,
    cache::Keys,
    linear::{Linear, Projection},
    norm::{Norm, wide},
    pass::Pass,
};
use crate::hook::{BlockPoint, HookPoint};
use candle_core::{D, Result, Tensor};
use taskvec_kernels::{Attend, Rotary, Span, attend, rotate};

#[derive(Clone)]
pub(crate) struct Attention {
    pub(crate) q: Linear,
    pub(crate) k: Linear,
    pub(crate) v: Linear,
    pub(crate) out: Linear,
    /// Norms of queries and keys, over all heads of a token.
    pub(crate) norms: Option<(Norm, Norm)>,
    /// Query heads, H.
    pub(crate) heads: usize,
    /// Heads of keys and values, G.
    pub(crate) groups: usize,
    /// Elements of a head, D.
    pub(crate) head: usize,
    pub(crate) clip: Option<f64>,
    pub(crate) attend: Attend,
}

impl Attention {
    /// (N, d) to (N, d). `cache` holds what came before the tokens of this pass, and gets what they add.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        block: usize,
        cache: Option<&mut Keys>,
        pass: &mut Pass<'_>,
    ) -> Result<Tensor> {
        let at = |point| HookPoint::Block(block, point);
        let norms = self.norms.as_ref();
        let q = self.project(&self.q, x, norms.map(|n| &n.0), self.heads)?;
        let k = self.project(&self.k, x, norms.map(|n| &n.1), self.groups)?;
        let v = self.project(&self.v, x, None, self.groups)?;
        let q = pass.hook.visit(at(BlockPoint::Q), q)?;
        let k = pass.hook.visit(at(BlockPoint::K), k)?;
        let v = pass.hook.visit(at(BlockPoint::V), v)?;
        let (q, k) = match &pass.rotary {
            None => (q, k),
            Some(angles) => (turned(&q, angles)?, turned(&k, angles)?),
        };
        let (k, v) = match cache {
            None => (k, v),
            Some(cache) => cache.append(&pass.spans, &k, &v)?,
        };
        let z = self.read(&q, &k, &v, block, pass)?;
        let z = pass.hook.visit(at(BlockPoint::Z), z)?;
        self.out.forward(&z.reshape((z.dim(0)?, self.heads * self.head))?)
    }

    /// Heads of queries, keys or values: (N, d) to (N, heads, D).
    fn project(&self, linear: &Linear, x: &Tensor, norm: Option<&Norm>, heads: usize) -> Result<Tensor> {
        let mut projected = linear.forward(x)?;
        if let Some(clip) = self.clip {
            projected = projected.clamp(-clip, clip)?;
        }
        if let Some(norm) = norm {
            projected = norm.forward(&projected)?;
        }
        projected.reshape((x.dim(0)?, heads, self.head))
    }

    /// What every head reads: queries (N, H, D), keys and values (M, G, D) to (N, H, D).
    fn read(&self, q: &Tensor, k: &Tensor, v: &Tensor, block: usize, pass: &mut Pass<'_>) -> Result<Tensor> {
        let point = HookPoint::Block(block, BlockPoint::Pattern);
        let z = attend(q, k, v, &pass.spans, &self.attend)?;
        if !pass.hook.wants(point) {
            return Ok(z);
        }
        // Rows whose pattern was replaced are read with the new one; the others are as if nobody had looked.
        let rows = pass.hook.rows();
        let mut parts = Vec::with_capacity(rows.len());
        for (row, span) in rows.iter().zip(&pass.spans) {
            let pattern = pattern(q, k, span, &self.attend)?;
            parts.push(match pass.hook.look(point, &pattern, &Rows::only(row))? {
                None => z.narrow(0, row.tokens.start, row.tokens.len())?,
                Some(pattern) => read_by(&pattern, v, span)?,
            });
        }
        Tensor::cat(&parts, 0)
    }

    pub(crate) fn linear_mut(&mut self, projection: Projection) -> Option<&mut Linear> {
        match projection {
            Projection::Q => Some(&mut self.q),
            Projection::K => Some(&mut self.k),
            Projection::V => Some(&mut self.v),
            Projection::Out => Some(&mut self.out),
            _ => None,
        }
    }
}

/// Rotated in the type of the angles, given back in that of `x`.
fn turned(x: &Tensor, angles: &Rotary) -> Result<Tensor> {
    rotate(&x.to_dtype(angles.cos.dtype())?, angles)?.to_dtype(x.dtype())
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

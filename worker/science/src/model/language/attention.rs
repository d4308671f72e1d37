//! Multi-head causal attention with grouped keys and values.

use super::{
    cache::Keys,
    linear::{Linear, Projection},
    norm::Norm,
    pass::Pass,
};
use crate::{
    hook::{BlockPoint, HookPoint},
    model::reading,
};
use candle_core::{Result, Tensor};
use taskvec_kernels::{Attend, Rotary, rotate};

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
    /// What `out` is given: (N, d) to (N, H·D), or to (tail, H·D) where the pass has a tail. `cache` holds what came before the
    /// tokens of this pass, and gets what they add.
    pub(crate) fn before_out(
        &self,
        x: &Tensor,
        block: usize,
        cache: Option<&mut Keys>,
        pass: &mut Pass<'_>,
    ) -> Result<Tensor> {
        let at = |point| HookPoint::Block(block, point);
        let norms = self.norms.as_ref();
        let q = self.project(&self.q, &pass.remaining(x)?, norms.map(|n| &n.0), self.heads)?;
        let k = self.project(&self.k, x, norms.map(|n| &n.1), self.groups)?;
        let v = self.project(&self.v, x, None, self.groups)?;
        let q = pass.hook.visit(at(BlockPoint::Q), q)?;
        let k = pass.hook.visit(at(BlockPoint::K), k)?;
        let v = pass.hook.visit(at(BlockPoint::V), v)?;
        let (q, k) = match (&pass.rotary, pass.remaining_angles()?) {
            (Some(angles), Some(remaining)) => (turned(&q, &remaining)?, turned(&k, angles)?),
            _ => (q, k),
        };
        let (k, v) = match cache {
            None => (k, v),
            Some(cache) => cache.append(&pass.spans, &k, &v)?,
        };
        pass.narrow();
        let z = reading::read([&q, &k, &v], &pass.spans, &self.attend, block, &mut pass.hook)?;
        let z = pass.hook.visit(at(BlockPoint::Z), z)?;
        z.reshape((z.dim(0)?, self.heads * self.head))
    }

    /// Would `x` be rounded to bf16 by all that reads it?
    pub(crate) fn rounds(&self, x: &Tensor) -> bool {
        [&self.q, &self.k, &self.v].into_iter().all(|linear| linear.rounds(x))
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

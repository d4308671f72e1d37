//! One block: what adds to the residual stream, first between tokens, then within each.

use super::{
    attention::Attention,
    cache::LayerState,
    linear::{Linear, Projection},
    mamba2::Mamba2,
    mlp::Mlp,
    norm::Norm,
    pass::Pass,
};
use crate::{
    hook::{BlockPoint, HookPoint, Visitor},
    model::reading,
};
use candle_core::{Device, Result, Tensor};

/// A block of the decoder. A plain function of its input, so that it can be run again for its gradients.
#[derive(Clone)]
pub struct Block {
    pub(crate) mixer: Sublayer<Mixer>,
    /// None where the mixer is all.
    pub(crate) mlp: Option<Sublayer<Mlp>>,
}

/// `x + after(inner(before(x)))`, with such norms as there are.
#[derive(Clone)]
pub(crate) struct Sublayer<T> {
    pub(crate) before: Option<Norm>,
    pub(crate) inner: T,
    pub(crate) after: Option<Norm>,
}

/// What moves information between tokens.
#[derive(Clone)]
pub(crate) enum Mixer {
    Attention(Attention),
    Mamba2(Mamba2),
}

impl Block {
    /// Where its weights are, and it computes.
    pub(crate) fn device(&self) -> &Device {
        match &self.mixer.inner {
            Mixer::Attention(attention) => attention.out.weight().device(),
            Mixer::Mamba2(mamba2) => mamba2.device(),
        }
    }

    /// The residual stream (N, d) from before block `index` to after it, which is on the block's device; (tail, d) where the
    /// pass has a tail.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        index: usize,
        cache: Option<&mut LayerState>,
        pass: &mut Pass<'_>,
    ) -> Result<Tensor> {
        let at = |point| HookPoint::Block(index, point);
        let x = pass.bring(x, self.device())?;
        let x = pass.hook.visit(at(BlockPoint::ResidPre), x)?;
        let inner =
            self.mixer.inner.before_last(&self.mixer.normed(&x, self.mixer.inner.rounds(&x))?, index, cache, pass)?;
        let (last, out) = self.mixer.inner.last();
        let (x, hook) = (pass.remaining(&x)?, &mut pass.hook);
        let mut x = match self.mixer.inner.replaced_results(&inner, index, hook)? {
            None => self.mixer.onto(&x, &inner, last, at(out), hook)?,
            Some(more) => self.mixer.add(&x, (last.forward(&inner)? + more)?, at(out), hook)?,
        };
        if let Some(mlp) = &self.mlp {
            x = pass.hook.visit(at(BlockPoint::ResidMid), x)?;
            let inner = mlp.inner.before_down(&mlp.normed(&x, mlp.inner.rounds(&x))?)?;
            x = mlp.onto(&x, &inner, &mlp.inner.down, at(BlockPoint::MlpOut), &mut pass.hook)?;
        }
        pass.hook.visit(at(BlockPoint::ResidPost), x)
    }

    /// One of the block's linear maps, where it has it.
    pub fn linear_mut(&mut self, projection: Projection) -> Option<&mut Linear> {
        let found = match &mut self.mixer.inner {
            Mixer::Attention(attention) => attention.linear_mut(projection),
            Mixer::Mamba2(mamba2) => mamba2.linear_mut(projection),
        };
        match found {
            None => self.mlp.as_mut().and_then(|mlp| mlp.inner.linear_mut(projection)),
            found => found,
        }
    }
}

impl<T> Sublayer<T> {
    /// What the inner part is given; `rounded` to bf16 where that is all it wants.
    fn normed(&self, x: &Tensor, rounded: bool) -> Result<Tensor> {
        match &self.before {
            Some(norm) if rounded => norm.rounded(x),
            Some(norm) => norm.forward(x),
            None if rounded => taskvec_kernels::rounded(x),
            None => Ok(x.clone()),
        }
    }

    /// `x + after(last(inner))`, where a hook at `point` may see and replace what is added.
    fn onto(
        &self,
        x: &Tensor,
        inner: &Tensor,
        last: &Linear,
        point: HookPoint,
        hook: &mut Visitor<'_>,
    ) -> Result<Tensor> {
        if self.after.is_none() && !hook.wants(point) {
            return last.onto(x, inner);
        }
        self.add(x, last.forward(inner)?, point, hook)
    }

    /// `x + after(added)`, in the same way.
    fn add(&self, x: &Tensor, added: Tensor, point: HookPoint, hook: &mut Visitor<'_>) -> Result<Tensor> {
        let added = self.after.as_ref().map_or(Ok(added.clone()), |norm| norm.forward(&added))?;
        x + hook.visit(point, added)?
    }
}

impl Mixer {
    /// Would `x` be rounded to bf16 by all that reads it?
    fn rounds(&self, x: &Tensor) -> bool {
        match self {
            Self::Attention(attention) => attention.rounds(x),
            Self::Mamba2(_) => false,
        }
    }

    /// The linear map that it ends with, and where what that adds can be seen.
    fn last(&self) -> (&Linear, BlockPoint) {
        match self {
            Self::Attention(attention) => (&attention.out, BlockPoint::AttnOut),
            Self::Mamba2(mamba2) => (&mamba2.output, BlockPoint::MixerOut),
        }
    }

    /// By how much more it adds where a hook replaces what its heads add.
    fn replaced_results(&self, inner: &Tensor, block: usize, hook: &mut Visitor<'_>) -> Result<Option<Tensor>> {
        let Self::Attention(attention) = self else { return Ok(None) };
        let z = inner.reshape((inner.dim(0)?, attention.heads, attention.head))?;
        let project = attention.out.without_bias();
        reading::replaced_results(&z, |heads| project.forward(heads), block, hook)
    }

    /// What that linear map is given.
    fn before_last(
        &self,
        x: &Tensor,
        block: usize,
        cache: Option<&mut LayerState>,
        pass: &mut Pass<'_>,
    ) -> Result<Tensor> {
        match (self, cache) {
            (Self::Attention(attention), None) => attention.before_out(x, block, None, pass),
            (Self::Attention(attention), Some(LayerState::Attention(keys))) => {
                attention.before_out(x, block, Some(keys), pass)
            }
            (Self::Mamba2(mamba2), None) => mamba2.before_output(x, block, None, pass),
            (Self::Mamba2(mamba2), Some(LayerState::Recurrent(states))) => {
                mamba2.before_output(x, block, Some(states), pass)
            }
            _ => candle_core::bail!("the cache is that of another model"),
        }
    }
}

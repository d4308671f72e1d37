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
use crate::hook::{BlockPoint, HookPoint};
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
        let added = self.mixer.added(&x, |mixer, x| mixer.forward(x, index, cache, pass))?;
        let mut x = (pass.remaining(&x)? + pass.hook.visit(at(self.mixer.inner.out()), added)?)?;
        if let Some(mlp) = &self.mlp {
            x = pass.hook.visit(at(BlockPoint::ResidMid), x)?;
            let added = mlp.added(&x, Mlp::forward)?;
            x = (x + pass.hook.visit(at(BlockPoint::MlpOut), added)?)?;
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
    /// What is added to `x`.
    fn added(&self, x: &Tensor, inner: impl FnOnce(&T, &Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let added = match &self.before {
            None => inner(&self.inner, x)?,
            Some(norm) => inner(&self.inner, &norm.forward(x)?)?,
        };
        self.after.as_ref().map_or(Ok(added.clone()), |norm| norm.forward(&added))
    }
}

impl Mixer {
    /// Where what it adds can be seen.
    fn out(&self) -> BlockPoint {
        match self {
            Self::Attention(_) => BlockPoint::AttnOut,
            Self::Mamba2(_) => BlockPoint::MixerOut,
        }
    }

    fn forward(&self, x: &Tensor, block: usize, cache: Option<&mut LayerState>, pass: &mut Pass<'_>) -> Result<Tensor> {
        match (self, cache) {
            (Self::Attention(attention), None) => attention.forward(x, block, None, pass),
            (Self::Attention(attention), Some(LayerState::Attention(keys))) => {
                attention.forward(x, block, Some(keys), pass)
            }
            (Self::Mamba2(mamba2), None) => mamba2.forward(x, block, None, pass),
            (Self::Mamba2(mamba2), Some(LayerState::Recurrent(states))) => mamba2.forward(x, block, Some(states), pass),
            _ => candle_core::bail!("the cache is that of another model"),
        }
    }
}

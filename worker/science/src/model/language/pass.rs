//! What all blocks of one forward pass share.

use super::tail::Tail;
use crate::hook::Visitor;
use candle_core::{Device, Result, Tensor};
use taskvec_kernels::{Rotary, Span};

pub(crate) struct Pass<'a> {
    /// The hook and the rows.
    pub(crate) hook: Visitor<'a>,
    /// Of each row: its queries, and where its keys lie, in the cache or among the tokens of the pass.
    pub(crate) spans: Vec<Span>,
    /// Angles of all tokens, where the model has rotary positions.
    pub(crate) rotary: Option<Rotary>,
    /// In the last block: the tokens that it is computed for, where it is not for all.
    pub(crate) tail: Option<&'a Tail>,
}

impl Pass<'_> {
    /// Of (N, …) what the block goes on with behind its keys and values.
    pub(crate) fn remaining(&self, x: &Tensor) -> Result<Tensor> {
        self.tail.map_or(Ok(x.clone()), |tail| tail.part(x))
    }

    /// The angles of these tokens.
    pub(crate) fn remaining_angles(&self) -> Result<Option<Rotary>> {
        match (self.tail, &self.rotary) {
            (Some(tail), Some(angles)) => tail.angles(angles).map(Some),
            (_, angles) => Ok(angles.clone()),
        }
    }

    /// From now on the pass is one of these tokens.
    pub(crate) fn narrow(&mut self) {
        if let Some(tail) = self.tail {
            self.hook.go_on_with(tail.rows());
            self.spans = tail.spans().to_vec();
        }
    }

    /// The pass goes on on this device, with `x`. Where it is there already, nothing is done.
    pub(crate) fn bring(&mut self, x: &Tensor, device: &Device) -> Result<Tensor> {
        if let Some(Rotary { cos, sin }) = &mut self.rotary {
            (*cos, *sin) = (cos.to_device(device)?, sin.to_device(device)?);
        }
        x.to_device(device)
    }
}

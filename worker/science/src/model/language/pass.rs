//! What all blocks of one forward pass share.

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
}

impl Pass<'_> {
    /// The pass goes on on this device, with `x`. Where it is there already, nothing is done.
    pub(crate) fn bring(&mut self, x: &Tensor, device: &Device) -> Result<Tensor> {
        if let Some(Rotary { cos, sin }) = &mut self.rotary {
            (*cos, *sin) = (cos.to_device(device)?, sin.to_device(device)?);
        }
        x.to_device(device)
    }
}

//! What all blocks of one forward pass share.

use crate::hook::Visitor;
use taskvec_kernels::{Rotary, Span};

pub(crate) struct Pass<'a> {
    /// The hook and the rows.
    pub(crate) hook: Visitor<'a>,
    /// Of each row: its queries, and where its keys lie, in the cache or among the tokens of the pass.
    pub(crate) spans: Vec<Span>,
    /// Angles of all tokens, where the model has rotary positions.
    pub(crate) rotary: Option<Rotary>,
}

//! The last block for no more tokens than somebody asks for.

use super::{Logits, Rows};
use crate::hook::{BlockPoint, Hook, HookPoint};
use candle_core::{Device, Result, Tensor};
use taskvec_kernels::{Rotary, Span};

/// Of each row the tokens from the first whose state after the last block is asked for, at least its last. What the last block does
/// to those before them nobody sees, apart from their keys and values.
pub(crate) struct Tail {
    /// Indices into the tokens of the pass.
    tokens: Tensor,
    rows: Rows,
    spans: Vec<Span>,
}

impl Tail {
    /// The tail of a pass that ends with block `last`; none where all tokens are asked for.
    pub(crate) fn of(
        last: usize,
        rows: &Rows,
        spans: &[Span],
        hook: Option<&dyn Hook>,
        wanted: Logits,
    ) -> Result<Option<Self>> {
        let Some(tokens) = asked(last, rows, hook, wanted) else { return Ok(None) };
        let first = |row: &super::Row| {
            let within = tokens.iter().map(|t| *t as usize).filter(|t| row.tokens.contains(t));
            within.min().unwrap_or(row.tokens.end - 1)
        };
        let kept: Vec<_> = rows.iter().map(|row| first(row)..row.tokens.end).collect();
        let tail = Rows::new(rows.iter().zip(&kept).map(|(row, kept)| {
            let start = row.start + kept.start - row.tokens.start;
            (kept.len(), row.index, start)
        }));
        if tail.tokens() == rows.tokens() {
            return Ok(None);
        }
        let queries = tail.iter().map(|row| row.tokens.clone());
        // What rows share is looked at by nobody; its keys are theirs.
        let spans = spans[spans.len() - rows.len()..]
            .iter()
            .zip(queries)
            .map(|(span, queries)| Span { queries, ..span.clone() })
            .collect();
        let tokens: Vec<u32> = kept.into_iter().flatten().map(|t| t as u32).collect();
        Ok(Some(Self { tokens: Tensor::new(tokens, &Device::Cpu)?, rows: tail, spans }))
    }

    pub(crate) fn rows(&self) -> &Rows {
        &self.rows
    }

    /// With the keys that those of the pass have.
    pub(crate) fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// What belongs to its tokens, (N, …) to (tail, …).
    pub(crate) fn part(&self, x: &Tensor) -> Result<Tensor> {
        x.index_select(&self.tokens.to_device(x.device())?, 0)
    }

    pub(crate) fn angles(&self, of: &Rotary) -> Result<Rotary> {
        Ok(Rotary { cos: self.part(&of.cos)?, sin: self.part(&of.sin)? })
    }
}

/// The tokens that anybody looks at behind the keys and values of block `last`; none: all.
fn asked(last: usize, rows: &Rows, hook: Option<&dyn Hook>, wanted: Logits) -> Option<Vec<u32>> {
    const BEHIND: [BlockPoint; 6] = [
        BlockPoint::Z,
        BlockPoint::Result,
        BlockPoint::AttnOut,
        BlockPoint::ResidMid,
        BlockPoint::MlpOut,
        BlockPoint::ResidPost,
    ];
    if wanted == Logits::All {
        return None;
    }
    let Some(hook) = hook else { return Some(Vec::new()) };
    let at = |point| HookPoint::Block(last, point);
    if [BlockPoint::Q, BlockPoint::Pattern].into_iter().any(|point| hook.wants(at(point))) {
        return None;
    }
    let mut tokens = Vec::new();
    for point in BEHIND.into_iter().map(at).filter(|point| hook.wants(*point)) {
        tokens.extend(hook.looks_at(point, rows)?);
    }
    Some(tokens)
}

//! Keeps activations.

use super::{BlockPoint, Hook, HookPoint, Tokens, by_token};
use crate::model::language::Rows;
use candle_core::{Result, Tensor};
use std::collections::{BTreeMap, BTreeSet};

/// Copies the activations of certain tokens at certain points, and nothing else.
pub struct Capture {
    points: BTreeSet<HookPoint>,
    tokens: Tokens,
    kept: BTreeMap<HookPoint, Vec<Tensor>>,
}

impl Capture {
    pub fn new(points: impl IntoIterator<Item = HookPoint>, tokens: Tokens) -> Self {
        Self { points: points.into_iter().collect(), tokens, kept: BTreeMap::new() }
    }

    /// What every visit of a point brought, in order: (P, …) for the P chosen tokens of a pass. Of a pattern, one entry
    /// per row: (H, P, keys). Of a state, one entry per row whose last token is chosen: (H, P, S).
    pub fn visits(&self, point: HookPoint) -> &[Tensor] {
        self.kept.get(&point).map_or(&[], Vec::as_slice)
    }

    /// All that was kept at a point, one token after the other, and forgets it.
    ///
    /// # Errors
    /// Where nothing was kept, or where it is one of rows (patterns differ in their number of keys): see [`Self::visits`].
    pub fn take(&mut self, point: HookPoint) -> Result<Tensor> {
        if point.is_of_row() {
            candle_core::bail!("{point} is read visit by visit");
        }
        match self.kept.remove(&point) {
            None => candle_core::bail!("nothing was captured at {point}"),
            Some(parts) => Tensor::cat(&parts, 0),
        }
    }
}

impl Hook for Capture {
    fn wants(&self, point: HookPoint) -> bool {
        self.points.contains(&point)
    }

    fn looks_at(&self, _: HookPoint, rows: &Rows) -> Option<Vec<u32>> {
        Some(self.tokens.of(rows))
    }

    fn visit(&mut self, point: HookPoint, x: &Tensor, rows: &Rows) -> Result<Option<Tensor>> {
        let mut tokens = self.tokens.of(rows);
        if tokens.is_empty() {
            return Ok(None);
        }
        let (x, dim) = match (point, rows.iter().next()) {
            (HookPoint::Block(_, BlockPoint::State), Some(row)) => {
                if tokens.contains(&(row.tokens.end as u32 - 1)) {
                    self.kept.entry(point).or_default().push(x.clone());
                }
                return Ok(None);
            }
            (HookPoint::Block(_, BlockPoint::Pattern), Some(row)) => {
                tokens.iter_mut().for_each(|t| *t -= row.tokens.start as u32);
                (x.clone(), 1)
            }
            _ => (by_token(x, rows)?, 0),
        };
        let tokens = Tensor::new(tokens, x.device())?;
        self.kept.entry(point).or_default().push(x.contiguous()?.index_select(&tokens, dim)?);
        Ok(None)
    }
}

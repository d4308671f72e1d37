//! Changes activations.

use super::{BlockPoint, Hook, HookPoint, Tokens, by_token};
use crate::model::language::Rows;
use candle_core::{Result, Tensor};

/// What becomes of the chosen activations. Values are one for all, or one per chosen token in the order of [`Tokens::of`].
#[derive(Clone, Debug)]
pub enum Change {
    Replace(Tensor),
    Add(Tensor),
    Zero,
}

/// Changes the activations of certain tokens at one point, and leaves all others as they are, bit for bit.
#[derive(Clone, Debug)]
pub struct Edit {
    point: HookPoint,
    tokens: Tokens,
    head: Option<usize>,
    change: Change,
}

impl Edit {
    /// Values of `change` are (…) or (P, …), where (…) is what one token has at this point: (d), or (H, D); of an attention
    /// pattern (H, keys of its row); of a state, which a row's last token leaves, (H, P·S) or (H, P, S).
    pub fn new(point: HookPoint, tokens: Tokens, change: Change) -> Self {
        Self { point, tokens, head: None, change }
    }

    /// Only of one head, where the activation has heads; values are then (D) or (P, D).
    pub fn head(mut self, head: usize) -> Self {
        self.head = Some(head);
        self
    }

    /// The changed vectors, (P, D), where `old` are the chosen ones.
    fn changed(&self, old: &Tensor) -> Result<Tensor> {
        let (chosen, dim) = old.dims2()?;
        let values = |values: &Tensor| -> Result<Tensor> {
            let values = values.to_dtype(old.dtype())?.to_device(old.device())?;
            match values.elem_count() {
                one if one == dim => values.reshape((1, dim))?.broadcast_as((chosen, dim))?.contiguous(),
                each if each == chosen * dim => values.reshape((chosen, dim)),
                _ => candle_core::bail!(
                    "values {:?} for {} do not fit {chosen} tokens with {dim} elements each",
                    values.shape(),
                    self.point
                ),
            }
        };
        match &self.change {
            Change::Replace(new) => values(new),
            Change::Add(more) => old + values(more)?,
            Change::Zero => old.zeros_like(),
        }
    }
}

impl Hook for Edit {
    fn wants(&self, point: HookPoint) -> bool {
        self.point == point
    }

    fn looks_at(&self, _: HookPoint, rows: &Rows) -> Option<Vec<u32>> {
        Some(self.tokens.of(rows))
    }

    fn visit(&mut self, point: HookPoint, x: &Tensor, rows: &Rows) -> Result<Option<Tensor>> {
        let tokens = self.tokens.of(rows);
        if tokens.is_empty() {
            return Ok(None);
        }
        let row = || rows.iter().next().map_or(0..0, |row| row.tokens.clone());
        Ok(match point {
            HookPoint::Block(_, BlockPoint::Pattern) => {
                let queries: Vec<u32> = tokens.iter().map(|token| token - row().start as u32).collect();
                let by_query = x.transpose(0, 1)?.contiguous()?;
                Some(self.edited(&by_query, &queries)?.transpose(0, 1)?.contiguous()?)
            }
            HookPoint::Block(_, BlockPoint::State) => {
                let left = tokens.iter().any(|token| *token as usize + 1 == row().end);
                let state = || self.edited(&x.reshape((1, x.dim(0)?, ()))?, &[0])?.reshape(x.shape());
                left.then(state).transpose()?
            }
            _ => Some(self.edited(&by_token(x, rows)?, &tokens)?.reshape(x.shape())?),
        })
    }
}

impl Edit {
    /// `by_token` (N, …) with these of its tokens changed.
    fn edited(&self, by_token: &Tensor, tokens: &[u32]) -> Result<Tensor> {
        // Vectors are counted through, head by head where one head is meant.
        let (heads, head) = match (self.head, &by_token.dims()[1..]) {
            (None, _) => (1, 0),
            (Some(head), [heads, _]) if head < *heads => (*heads, head),
            (Some(head), dims) => candle_core::bail!("{} has no head {head}: a token there is {dims:?}", self.point),
        };
        let vectors = by_token.reshape((by_token.dim(0)? * heads, ()))?;
        let places: Vec<u32> = tokens.iter().map(|t| t * heads as u32 + head as u32).collect();
        let device = by_token.device();
        let old = vectors.index_select(&Tensor::new(places.as_slice(), device)?, 0)?;
        let all = Tensor::cat(&[&vectors, &self.changed(&old)?], 0)?;
        let mut source: Vec<u32> = (0..vectors.dim(0)? as u32).collect();
        for (i, place) in places.iter().enumerate() {
            source[*place as usize] = vectors.dim(0)? as u32 + i as u32;
        }
        all.index_select(&Tensor::new(source, device)?, 0)?.reshape(by_token.shape())
    }
}

//! What the operations of language models share: how tokens of several sequences lie one after the other, without
//! padding.
//!
//! Activations are (N, …) for the N tokens of all rows together. A [`Span`] says which of them are one row's queries
//! and which keys those may see, so that rows of any length, a cache of earlier keys and a prefix that several rows
//! share are the same thing.

use candle_core::Tensor;
use std::ops::Range;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x·σ(x).
    Silu,
    /// GELU in its tanh form.
    GeluTanh,
}

/// Cosine and sine of each token's angles, both (N, R), where 2·R elements of a head are rotated.
#[derive(Clone, Debug)]
pub struct Rotary {
    pub cos: Tensor,
    pub sin: Tensor,
}

/// One row: its queries, and the keys they see. The row's keys are those of `prefix` followed by those of `keys`; its
/// last query stands at the last key, the one before at the last but one, and so on. A query sees the keys up to its
/// own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Indices into the queries; the spans of one call cover all queries in order.
    pub queries: Range<usize>,
    /// Indices into the keys: what comes first, which other rows may share. May be empty.
    pub prefix: Range<usize>,
    /// Indices into the keys.
    pub keys: Range<usize>,
}

impl Span {
    /// A row that sees itself only: its keys are where its queries are.
    pub fn alone(tokens: Range<usize>) -> Self {
        Self { queries: tokens.clone(), prefix: 0..0, keys: tokens }
    }

    /// Keys of the row.
    pub fn visible(&self) -> usize {
        self.prefix.len() + self.keys.len()
    }

    /// Does query `i` of the row see its key `j` (both from 0), with a sliding window of that many keys?
    pub fn sees(&self, i: usize, j: usize, window: Option<usize>) -> bool {
        let at = self.visible() - self.queries.len() + i;
        j <= at && window.is_none_or(|w| at - j < w)
    }
}

/// How scores are made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attend {
    /// What q·k is multiplied with.
    pub scale: f64,
    /// Scores become `cap · tanh(score / cap)`.
    pub softcap: Option<f64>,
    /// How many keys, its own included, a query sees.
    pub window: Option<usize>,
}

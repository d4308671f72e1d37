//! Places in a model where an activation can be read or replaced, named as TransformerLens names them.
//!
//! | point | activation | TransformerLens |
//! | --- | --- | --- |
//! | `hook_embed` | what enters the first block, positions and scale included | `blocks.0.hook_resid_pre` (its own `hook_embed` is before positions are added) |
//! | `blocks.N.hook_resid_pre`, `…mid`, `…post` | the residual stream, (N, d) | the same |
//! | `blocks.N.attn.hook_q`, `…k`, `…v` | (N, H, D), keys and values (N, G, D): clipped and normed, not yet rotated | the same, but before a norm of queries and keys (OLMo-2) |
//! | `blocks.N.attn.hook_pattern` | attention weights of one row, (H, queries, keys): visited once per row | the same, with a batch dimension |
//! | `blocks.N.attn.hook_z` | what each head read, (N, H, D) | the same |
//! | `blocks.N.attn.hook_result` | what each head adds to the residual stream, (N, H, d), before a bias and a norm that follow | the same |
//! | `blocks.N.hook_attn_out`, `…mlp_out` | what is added to the residual stream, after a norm that follows (Gemma-2, OLMo-2) | the same |
//! | `blocks.N.mixer.hook_state` | Mamba-2: one row's state after its last token, (H, P, S): visited once per row; what replaces it is what the row goes on with in the next pass | none |
//! | `blocks.N.hook_mixer_out` | Mamba-2: what is added to the residual stream, (N, d) | none |
//!
//! N are the tokens of all rows of the batch, one row after the other ([`Rows`]), after those that several rows begin with where
//! a batch [shares](crate::model::language::Batch::sharing) these. In the synthetic models, whose sequences
//! all have one length, the leading dimensions are (B, T) instead.

mod capture;
mod edit;

pub use capture::Capture;
pub use edit::{Change, Edit};

use crate::model::language::Rows;
use candle_core::{Result, Tensor};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

/// A place in the forward pass. Blocks count from 0, as in TransformerLens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HookPoint {
    /// What enters the first block.
    Embed,
    Block(usize, BlockPoint),
}

/// A place within a block, in the order of the forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BlockPoint {
    /// The residual stream as it enters the block.
    ResidPre,
    /// Queries of each head.
    Q,
    /// Keys of each group of heads.
    K,
    /// Values of each group of heads.
    V,
    /// How much each query reads from each key.
    Pattern,
    /// What each head read, before it is projected into the residual stream.
    Z,
    /// What each head adds to the residual stream.
    Result,
    /// What attention adds to it.
    AttnOut,
    /// Mamba-2's state of each row after its last token.
    State,
    /// What a mixer without attention adds to it.
    MixerOut,
    /// The residual stream between attention and MLP.
    ResidMid,
    /// What the MLP adds to it.
    MlpOut,
    /// The residual stream as it leaves the block.
    ResidPost,
}

impl HookPoint {
    /// The residual stream after `layer` blocks: 0 is the embedding, L the last block's output, before the final norm.
    pub fn hidden(layer: usize) -> Self {
        match layer.checked_sub(1) {
            None => Self::Embed,
            Some(block) => Self::Block(block, BlockPoint::ResidPost),
        }
    }

    /// Is the activation a vector of width d per token: the residual stream, or what is added to it?
    pub fn is_residual(self) -> bool {
        match self {
            Self::Embed => true,
            Self::Block(_, point) => point == BlockPoint::MixerOut || BlockPoint::RESIDUAL.contains(&point),
        }
    }

    /// Is the activation one of a row, visited once for each, instead of one of its tokens?
    pub fn is_of_row(self) -> bool {
        matches!(self, Self::Block(_, BlockPoint::Pattern | BlockPoint::State))
    }
}

impl BlockPoint {
    pub const ALL: [Self; 13] = [
        Self::ResidPre,
        Self::Q,
        Self::K,
        Self::V,
        Self::Pattern,
        Self::Z,
        Self::Result,
        Self::AttnOut,
        Self::State,
        Self::MixerOut,
        Self::ResidMid,
        Self::MlpOut,
        Self::ResidPost,
    ];

    /// Those of a block with attention and MLP, in the order of the pass.
    pub const TRANSFORMER: [Self; 11] = [
        Self::ResidPre,
        Self::Q,
        Self::K,
        Self::V,
        Self::Pattern,
        Self::Z,
        Self::Result,
        Self::AttnOut,
        Self::ResidMid,
        Self::MlpOut,
        Self::ResidPost,
    ];

    /// Of these, those of width d.
    pub const RESIDUAL: [Self; 5] = [Self::ResidPre, Self::AttnOut, Self::ResidMid, Self::MlpOut, Self::ResidPost];

    /// Those of a block of Mamba-2.
    pub const MAMBA2: [Self; 4] = [Self::ResidPre, Self::State, Self::MixerOut, Self::ResidPost];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::ResidPre => "hook_resid_pre",
            Self::Q => "attn.hook_q",
            Self::K => "attn.hook_k",
            Self::V => "attn.hook_v",
            Self::Pattern => "attn.hook_pattern",
            Self::Z => "attn.hook_z",
            Self::Result => "attn.hook_result",
            Self::AttnOut => "hook_attn_out",
            Self::State => "mixer.hook_state",
            Self::MixerOut => "hook_mixer_out",
            Self::ResidMid => "hook_resid_mid",
            Self::MlpOut => "hook_mlp_out",
            Self::ResidPost => "hook_resid_post",
        }
    }
}

impl fmt::Display for HookPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embed => f.write_str("hook_embed"),
            Self::Block(i, point) => write!(f, "blocks.{i}.{}", point.as_str()),
        }
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "`{0}` is not a hook point: hook_embed, or blocks.N. followed by {list}",
    list = BlockPoint::ALL.map(BlockPoint::as_str).join(", ")
)]
pub struct BadHookPoint(String);

impl FromStr for HookPoint {
    type Err = BadHookPoint;
    fn from_str(s: &str) -> std::result::Result<Self, BadHookPoint> {
        let parse = || {
            let (block, name) = s.strip_prefix("blocks.")?.split_once('.')?;
            let point = BlockPoint::ALL.into_iter().find(|p| p.as_str() == name)?;
            Some(Self::Block(block.parse().ok()?, point))
        };
        if s == "hook_embed" { Ok(Self::Embed) } else { parse().ok_or_else(|| BadHookPoint(s.to_owned())) }
    }
}

/// Sees, and may replace, activations on their way through a model.
///
/// A closure `FnMut(HookPoint, &Tensor) -> Result<Option<Tensor>>` is a hook that visits every point of width d.
pub trait Hook {
    /// Is this point to be visited? What nobody wants is not computed (attention patterns) and costs nothing.
    fn wants(&self, _point: HookPoint) -> bool {
        true
    }

    /// Of the tokens of `rows`, those that it looks at or changes at a wanted point of theirs; `None`: any of them. The last
    /// block leaves out what nobody looks at.
    fn looks_at(&self, _point: HookPoint, _rows: &Rows) -> Option<Vec<u32>> {
        None
    }

    /// Called at every wanted point in the order of the forward pass. `x` is (N, …) for the tokens of `rows`; what is
    /// returned, of the same shape, takes its place.
    fn visit(&mut self, point: HookPoint, x: &Tensor, rows: &Rows) -> Result<Option<Tensor>>;
}

impl<F: FnMut(HookPoint, &Tensor) -> Result<Option<Tensor>>> Hook for F {
    fn wants(&self, point: HookPoint) -> bool {
        point.is_residual()
    }

    fn visit(&mut self, point: HookPoint, x: &Tensor, _: &Rows) -> Result<Option<Tensor>> {
        self(point, x)
    }
}

/// Several hooks, one after the other: each sees what those before it made of the activation.
pub struct Chain<'a>(pub Vec<&'a mut dyn Hook>);

impl Hook for Chain<'_> {
    fn wants(&self, point: HookPoint) -> bool {
        self.0.iter().any(|hook| hook.wants(point))
    }

    fn looks_at(&self, point: HookPoint, rows: &Rows) -> Option<Vec<u32>> {
        let hooks = self.0.iter().filter(|hook| hook.wants(point));
        Some(hooks.map(|hook| hook.looks_at(point, rows)).collect::<Option<Vec<_>>>()?.concat())
    }

    fn visit(&mut self, point: HookPoint, x: &Tensor, rows: &Rows) -> Result<Option<Tensor>> {
        let mut replaced = None;
        for hook in self.0.iter_mut().filter(|hook| hook.wants(point)) {
            if let Some(new) = hook.visit(point, replaced.as_ref().unwrap_or(x), rows)? {
                replaced = Some(new);
            }
        }
        Ok(replaced)
    }
}

/// The same hook for one of several passes.
pub(crate) fn reborrow<'a>(hook: &'a mut Option<&mut dyn Hook>) -> Option<&'a mut dyn Hook> {
    match hook {
        Some(hook) => Some(&mut **hook),
        None => None,
    }
}

/// The hook of a forward pass, where it has one.
pub(crate) struct Visitor<'a> {
    hook: Option<&'a mut dyn Hook>,
    rows: &'a Rows,
}

impl<'a> Visitor<'a> {
    pub(crate) fn new(hook: Option<&'a mut dyn Hook>, rows: &'a Rows) -> Self {
        Self { hook, rows }
    }

    pub(crate) fn rows(&self) -> &'a Rows {
        self.rows
    }

    /// From now on it sees activations of these rows.
    pub(crate) fn go_on_with(&mut self, rows: &'a Rows) {
        self.rows = rows;
    }

    pub(crate) fn wants(&self, point: HookPoint) -> bool {
        self.hook.as_ref().is_some_and(|hook| hook.wants(point))
    }

    /// Is there a hook at all?
    pub(crate) fn is_there(&self) -> bool {
        self.hook.is_some()
    }

    /// Lets the hook see and replace an activation of all rows.
    pub(crate) fn visit(&mut self, point: HookPoint, x: Tensor) -> Result<Tensor> {
        let rows = self.rows;
        Ok(self.look(point, &x, rows)?.unwrap_or(x))
    }

    /// Lets the hook see an activation of `rows`, where it wants to; what it puts in its place.
    pub(crate) fn look(&mut self, point: HookPoint, x: &Tensor, rows: &Rows) -> Result<Option<Tensor>> {
        let Some(hook) = self.hook.as_mut().filter(|hook| hook.wants(point)) else { return Ok(None) };
        let new = hook.visit(point, x, rows)?;
        match &new {
            Some(new) if new.shape() != x.shape() => {
                candle_core::bail!("the hook at {point} returned {:?} in place of {:?}", new.shape(), x.shape())
            }
            _ => Ok(new),
        }
    }
}

/// Which tokens of a batch a hook is for. Rows are named by their place in the batch they came in ([`Row::index`]);
/// positions count from the start of the row, what a cache holds included.
///
/// [`Row::index`]: crate::model::language::Row::index
#[derive(Clone, Debug)]
pub struct Tokens {
    rows: Option<BTreeSet<usize>>,
    positions: Positions,
}

#[derive(Clone, Debug)]
enum Positions {
    All,
    Last,
    At(Vec<usize>),
    ByRow(BTreeMap<usize, Vec<usize>>),
}

impl Tokens {
    fn new(positions: Positions) -> Self {
        Self { rows: None, positions }
    }

    /// Every token of every pass.
    pub fn all() -> Self {
        Self::new(Positions::All)
    }

    /// The last token of each row in every pass. While tokens are generated one by one, each is the last of its pass: to
    /// name the last token of a prompt alone, use [`Tokens::by_row`].
    pub fn last() -> Self {
        Self::new(Positions::Last)
    }

    /// The same positions in every row. Those that a pass does not bring are left out.
    pub fn at(positions: impl IntoIterator<Item = usize>) -> Self {
        Self::new(Positions::At(positions.into_iter().collect()))
    }

    /// For each row its own positions; a row without any is left alone.
    pub fn by_row(positions: impl IntoIterator<Item = (usize, Vec<usize>)>) -> Self {
        Self::new(Positions::ByRow(positions.into_iter().collect()))
    }

    /// Of these only the ones in certain rows.
    pub fn in_rows(mut self, rows: impl IntoIterator<Item = usize>) -> Self {
        self.rows = Some(rows.into_iter().collect());
        self
    }

    /// Indices into the N tokens of a pass: row after row, within a row in the order the positions were given.
    pub fn of(&self, rows: &Rows) -> Vec<u32> {
        let mut tokens = Vec::new();
        let chosen = rows.iter().filter(|row| self.rows.as_ref().is_none_or(|r| r.contains(&row.index)));
        for row in chosen {
            let mut at = |positions: &[usize]| {
                let inside = positions.iter().filter_map(|p| row.tokens.clone().nth(p.checked_sub(row.start)?));
                tokens.extend(inside.map(|t| t as u32));
            };
            match &self.positions {
                Positions::At(positions) => at(positions),
                Positions::ByRow(by_row) => at(by_row.get(&row.index).map_or(&[], Vec::as_slice)),
                Positions::Last => tokens.extend(row.tokens.clone().next_back().map(|t| t as u32)),
                Positions::All => tokens.extend(row.tokens.clone().map(|t| t as u32)),
            }
        }
        tokens
    }
}

/// An activation as (N, …): that of a synthetic model comes as (B, T, …).
fn by_token(x: &Tensor, rows: &Rows) -> Result<Tensor> {
    let n = rows.tokens();
    match x.dims() {
        [first, ..] if *first == n => Ok(x.clone()),
        [b, t, rest @ ..] if b * t == n => x.reshape([&[n], rest].concat()),
        dims => candle_core::bail!("an activation {dims:?} does not belong to {n} tokens"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_others_are_refused() {
        for point in BlockPoint::ALL {
            let point = HookPoint::Block(11, point);
            assert_eq!(point.to_string().parse(), Ok(point));
        }
        assert_eq!("hook_embed".parse(), Ok(HookPoint::Embed));
        assert_eq!(HookPoint::hidden(5).to_string(), "blocks.4.hook_resid_post");
        assert_eq!("blocks.3.attn.hook_z".parse(), Ok(HookPoint::Block(3, BlockPoint::Z)));
        assert_eq!(HookPoint::hidden(0), HookPoint::Embed);
        for bad in
            ["", "embed", "blocks.hook_mlp_out", "blocks.1.hook_mlp", "blocks.-1.hook_mlp_out", "blocks.1.hook_q"]
        {
            assert_eq!(bad.parse::<HookPoint>(), Err(BadHookPoint(bad.into())));
        }
    }
}

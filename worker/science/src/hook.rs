//! Places in the model where an activation can be read or replaced, named as TransformerLens names them.

use candle_core::{Result, Tensor};
use std::{fmt, str::FromStr};

/// A place in the forward pass. Blocks count from 0, as in TransformerLens; all activations are (B, T, d).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HookPoint {
    /// Read-in plus position: what enters the first block.
    Embed,
    Block(usize, BlockPoint),
}

/// A place within a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BlockPoint {
    /// The residual stream as it enters the block.
    ResidPre,
    /// What attention adds to it.
    AttnOut,
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
}

impl BlockPoint {
    pub const ALL: [Self; 5] = [Self::ResidPre, Self::AttnOut, Self::ResidMid, Self::MlpOut, Self::ResidPost];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::ResidPre => "hook_resid_pre",
            Self::AttnOut => "hook_attn_out",
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
    "`{0}` is not a hook point: hook_embed, or blocks.N. followed by hook_resid_pre, hook_attn_out, hook_resid_mid, \
     hook_mlp_out or hook_resid_post"
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

/// Called at every hook point in the order of the forward pass; what it returns replaces the activation.
pub type Hook<'a> = dyn FnMut(HookPoint, &Tensor) -> Result<Option<Tensor>> + 'a;

/// Lets the hook, where there is one, see and replace an activation.
pub(crate) fn visit(hook: &mut Option<&mut Hook<'_>>, point: HookPoint, x: Tensor) -> Result<Tensor> {
    match hook {
        None => Ok(x),
        Some(hook) => Ok(hook(point, &x)?.unwrap_or(x)),
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
        assert_eq!(HookPoint::hidden(0), HookPoint::Embed);
        for bad in ["", "embed", "blocks.hook_mlp_out", "blocks.1.hook_mlp", "blocks.-1.hook_mlp_out"] {
            assert_eq!(bad.parse::<HookPoint>(), Err(BadHookPoint(bad.into())));
        }
    }
}

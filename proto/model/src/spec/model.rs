//! The network of a run.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    pub arch: Arch,
    /// Number of blocks, L.
    pub layers: u32,
    /// Width of the residual stream, d.
    pub width: u32,
    /// Attention heads; divides `width`.
    pub heads: u32,
    pub init: InitSpec,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arch {
    /// Pre-LN blocks, learned positions, GELU (tanh), linear read-in D → d and read-out d → 1 (Garg et al. 2022).
    Gpt2,
}

/// Standard deviations of the normal initialisation. They decide how long training stays on its plateau.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InitSpec {
    /// Weights of the blocks; projections into the residual stream get `std / sqrt(2 L)`. GPT-2: 0.02.
    pub std: f64,
    /// Weights of the read-in. Default `1 / sqrt(3 D)`, the deviation of PyTorch's `nn.Linear`.
    pub read_in_std: f64,
    /// Learned positions. GPT-2: 0.02.
    pub position_std: f64,
}

//! Low-rank adapters and their training.

use super::super::{Decay, OptimizerSpec, train::learning_rate};
use serde::{Deserialize, Serialize};

/// Low-rank adapters (Hu et al. 2021).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraSpec {
    pub rank: u32,
    pub alpha: f64,
    pub dropout: f64,
    /// Module names as in the checkpoint: `q_proj`, `k_proj`, …
    pub targets: Vec<String>,
    pub layers: LoraLayers,
}

/// Which blocks get adapters, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoraLayers {
    All,
    First(u32),
    Last(u32),
    Range(u32, u32),
}

impl LoraLayers {
    /// The first and the last of them in a model of `count` blocks; none where the model has too few.
    pub fn resolve(self, count: u32) -> Option<(u32, u32)> {
        let (from, to) = match self {
            Self::All => (1, count),
            Self::First(n) => (1, n),
            Self::Last(n) => ((count + 1).checked_sub(n)?, count),
            Self::Range(from, to) => (from, to),
        };
        (1 <= from && from <= to && to <= count).then_some((from, to))
    }
}

/// How adapters are trained: on the answer tokens of prompts of the training split, always in 32-bit floats.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TuneSpec {
    pub steps: u64,
    /// Prompts per update, over all its pieces.
    pub batch: u32,
    /// Pieces in which the gradient of a batch is computed, one after the other; divides `batch`.
    pub accumulate: u32,
    /// Different training prompts over all tasks; used again once all were seen.
    pub max_examples: u32,
    /// Demonstrations in a training prompt.
    pub shots: u32,
    pub optimizer: OptimizerSpec,
    /// Steps over which the learning rate rises linearly from 0.
    pub warmup: u64,
    pub decay: Decay,
    /// Global gradient norm above which gradients are scaled down; none: no clipping.
    pub clip_norm: Option<f64>,
    /// The loss of every n-th step is recorded.
    pub log_every: u64,
}

impl TuneSpec {
    /// Learning rate of update `step` (the first update is step 1).
    pub fn learning_rate(&self, step: u64) -> f64 {
        learning_rate(step, self.steps, self.warmup, self.decay, self.optimizer.learning_rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_lie_within_the_model() {
        assert_eq!(LoraLayers::All.resolve(30), Some((1, 30)));
        assert_eq!(LoraLayers::First(10).resolve(30), Some((1, 10)));
        assert_eq!(LoraLayers::Last(10).resolve(30), Some((21, 30)));
        assert_eq!(LoraLayers::Last(30).resolve(30), Some((1, 30)));
        assert_eq!(LoraLayers::Range(3, 3).resolve(30), Some((3, 3)));
        for none in [LoraLayers::First(31), LoraLayers::Last(31), LoraLayers::Range(4, 31), LoraLayers::Range(5, 4)] {
            assert_eq!(none.resolve(30), None, "{none:?}");
        }
    }
}

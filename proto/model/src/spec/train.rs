//! How a run is trained and when its weights are kept.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainSpec {
    pub steps: u64,
    /// Sequences per step.
    pub batch: u32,
    pub optimizer: OptimizerSpec,
    /// Steps over which the learning rate rises linearly from 0.
    pub warmup: u64,
    pub decay: Decay,
    /// Global gradient norm above which gradients are scaled down; none: no clipping.
    pub clip_norm: Option<f64>,
    pub precision: Precision,
    /// The loss of every n-th step is recorded.
    pub log_every: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerSpec {
    pub kind: OptimizerKind,
    pub learning_rate: f64,
    pub betas: [f64; 2],
    pub epsilon: f64,
    /// Decoupled (Loshchilov & Hutter 2019): by how much of itself, times the learning rate, every parameter shrinks at an
    /// update. Written only where there is one, so that specifications from before it was one stay what they are.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub weight_decay: f64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands over references")]
fn is_zero(x: &f64) -> bool {
    *x == 0.0
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerKind {
    /// Kingma & Ba 2015, as `torch.optim.Adam`; with weight decay, as `torch.optim.AdamW`.
    Adam,
}

/// What the learning rate does after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    None,
    /// Half a cosine from the full rate to 0 at the last step.
    Cosine,
    /// A straight line to 0 at the last step.
    Linear,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    F32,
    /// Factors of products with weights are rounded to TF32: 10 bits behind the point.
    Tf32,
    /// The same to bfloat16: 7 bits.
    Bf16,
}

impl TrainSpec {
    /// Learning rate of update `step` (the first update is step 1).
    pub fn learning_rate(&self, step: u64) -> f64 {
        learning_rate(step, self.steps, self.warmup, self.decay, self.optimizer.learning_rate)
    }
}

/// Of update `step` of `steps`: up to `peak` in a straight line over `warmup` updates, then as `decay` says.
pub(super) fn learning_rate(step: u64, steps: u64, warmup: u64, decay: Decay, peak: f64) -> f64 {
    if step <= warmup {
        return peak * step as f64 / warmup as f64;
    }
    let span = (steps - warmup).max(1) as f64;
    let done = (step - warmup) as f64 / span;
    match decay {
        Decay::None => peak,
        Decay::Cosine => peak * 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
        Decay::Linear => peak * (1.0 - done),
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointSpec {
    pub schedule: Schedule,
    /// Checkpoints for analysis, the untrained model and the last step included.
    pub count: u32,
    /// Training is cut into segments of this many steps; each ends with a state from which it can go on.
    pub resume_every: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    Log,
    Linear,
}

impl CheckpointSpec {
    /// Steps whose weights are kept for analysis: 0, then up to `count - 1` more up to the last, ascending and distinct.
    pub fn analysis_steps(&self, steps: u64) -> Vec<u64> {
        let n = u64::from(self.count.max(2)) - 1;
        let mut out = vec![0];
        for i in 1..=n {
            let at = match self.schedule {
                Schedule::Linear => (steps as f64 * i as f64 / n as f64).round() as u64,
                Schedule::Log if n == 1 => steps,
                Schedule::Log => (steps as f64).powf((i - 1) as f64 / (n - 1) as f64).round() as u64,
            };
            out.push(at.clamp(1, steps));
        }
        out.dedup();
        out
    }

    /// The segments `(from, to]` into which training is cut.
    pub fn segments(&self, steps: u64) -> Vec<(u64, u64)> {
        (0..steps).step_by(self.resume_every.max(1) as usize).map(|a| (a, (a + self.resume_every).min(steps))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_start_at_zero_and_end_at_the_last_step() {
        for schedule in [Schedule::Log, Schedule::Linear] {
            let spec = CheckpointSpec { schedule, count: 24, resume_every: 2000 };
            let steps = spec.analysis_steps(80_000);
            assert_eq!((steps[0], *steps.last().unwrap()), (0, 80_000));
            assert!(steps.windows(2).all(|w| w[0] < w[1]), "{steps:?}");
        }
    }

    #[test]
    fn segments_cover_training_without_gaps() {
        let spec = CheckpointSpec { schedule: Schedule::Log, count: 2, resume_every: 300 };
        assert_eq!(spec.segments(1000), [(0, 300), (300, 600), (600, 900), (900, 1000)]);
    }
}

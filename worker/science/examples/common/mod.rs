//! The two configurations that the examples train, as their sweep files resolve, and a sink that keeps nothing.
#![allow(dead_code, reason = "each example uses a part of it")]

use taskvec_model::{
    job::{CheckpointRef, Progress, Purpose},
    metric::TrainLoss,
    spec::{CheckpointSpec, DataSpec, ModelSpec, Schedule, TrainSpec},
};
use taskvec_science::{Control, ScienceError, Sink, WriteCheckpoint, train::Segment};

/// sweeps/quickstart.yaml: model, data and training.
pub const QUICKSTART: [&str; 3] = [
    r#"{"arch":"gpt2","layers":3,"width":64,"heads":4,"init":{"std":0.125,"read_in_std":0.1,"position_std":0.06}}"#,
    r#"{"family":"sparse_linear","dim":4,"bases":2,"rank":2,"overlap":"disjoint","examples":8,"noise_variance":0.01,
        "weight_mean":2.0,"y_channel":"shared"}"#,
    r#"{"steps":3000,"batch":64,"optimizer":{"kind":"adam","learning_rate":2e-3,"betas":[0.9,0.999],"epsilon":1e-8},
        "warmup":200,"decay":"cosine","clip_norm":null,"precision":"f32","log_every":20}"#,
];

/// The paper's full model.
pub const PAPER: [&str; 3] = [
    r#"{"arch":"gpt2","layers":12,"width":256,"heads":8,"init":{"std":0.02,"read_in_std":0.14,"position_std":0.02}}"#,
    r#"{"family":"sparse_linear","dim":16,"bases":4,"rank":4,"overlap":"disjoint","examples":20,"noise_variance":0.01,
        "weight_mean":0.0,"y_channel":"shared"}"#,
    r#"{"steps":80000,"batch":128,"optimizer":{"kind":"adam","learning_rate":1e-4,"betas":[0.9,0.9999],"epsilon":1e-8},
        "warmup":0,"decay":"none","clip_norm":null,"precision":"f32","log_every":20}"#,
];

pub struct Configuration {
    pub model: ModelSpec,
    pub data: DataSpec,
    pub train: TrainSpec,
    pub checkpoints: CheckpointSpec,
}

impl Configuration {
    pub fn parse([model, data, train]: [&str; 3]) -> serde_json::Result<Self> {
        let train: TrainSpec = serde_json::from_str(train)?;
        let checkpoints = CheckpointSpec { schedule: Schedule::Log, count: 2, resume_every: train.steps };
        Ok(Self { model: serde_json::from_str(model)?, data: serde_json::from_str(data)?, train, checkpoints })
    }

    /// All of training as one segment.
    pub fn whole_run(&self, seed: u64) -> Segment<'_> {
        let Self { model, data, train, checkpoints } = self;
        Segment { seed, model, data, train, checkpoints, from: 0, to: train.steps }
    }
}

/// Keeps nothing.
pub struct Nowhere;

impl Sink for Nowhere {
    fn progress(&mut self, _: Progress) -> Control {
        Control::Continue
    }

    fn checkpoint(&mut self, _: u64, _: Purpose, _: &mut WriteCheckpoint<'_>) -> Result<CheckpointRef, ScienceError> {
        Err(ScienceError::Sink("this example keeps no checkpoints".into()))
    }

    fn train_loss(&mut self, _: TrainLoss) {}
}

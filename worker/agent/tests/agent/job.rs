//! Jobs that do what a test wants, and the messages around them.

use std::sync::Arc;
use taskvec_agent::Execute;
use taskvec_model::{
    id::{AttemptRef, JobId},
    job::{Assignment, CheckpointRef, JobWork, Progress, Purpose},
    metric::{Metrics, TdBound, TrainLoss},
    spec::*,
};
use taskvec_science::{Control, Executed, Inputs, ScienceError, Sink};

pub type Result = std::result::Result<Executed, ScienceError>;

struct Job<F>(F);

impl<F> Execute for Job<F>
where
    F: Fn(&JobWork, &Inputs, &mut dyn Sink) -> Result + Send + Sync + 'static,
{
    fn execute(&self, work: &JobWork, inputs: &Inputs, sink: &mut dyn Sink) -> Result {
        self.0(work, inputs, sink)
    }
}

pub fn job<F>(f: F) -> Arc<dyn Execute>
where
    F: Fn(&JobWork, &Inputs, &mut dyn Sink) -> Result + Send + Sync + 'static,
{
    Arc::new(Job(f))
}

/// Jobs that end at once, with one row that tells them apart.
pub fn quick() -> Arc<dyn Execute> {
    job(|work, _, _| finished(work))
}

pub fn finished(work: &JobWork) -> Result {
    let value = match work {
        JobWork::Selftest { index, .. } => f64::from(*index),
        _ => -1.0,
    };
    Ok(Executed::Finished(Metrics {
        td_bound: vec![TdBound { latent_task: "B1".into(), shots: 7, value }],
        ..Metrics::default()
    }))
}

/// Reports progress until it is told to stop.
pub fn until_stopped(sink: &mut dyn Sink) {
    let mut done = 0;
    while sink.progress(Progress { done, total: 1_000_000, ..Progress::default() }) == Control::Continue {
        done += 1;
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

pub fn keep(
    sink: &mut dyn Sink,
    step: u64,
    purpose: Purpose,
    bytes: &[u8],
) -> std::result::Result<CheckpointRef, ScienceError> {
    sink.checkpoint(step, purpose, &mut |to| Ok(to.write_all(bytes)?))
}

pub fn loss(step: u64) -> TrainLoss {
    TrainLoss { step, loss: 0.5, learning_rate: 1e-3, sequences_per_second: 9.0 }
}

pub fn attempt(job: i64) -> AttemptRef {
    AttemptRef { job: JobId(job), number: 1 }
}

/// A selftest that can be told from others by its index.
pub fn selftest(index: u32) -> Assignment {
    let work = JobWork::Selftest { seed: 1, index, behaviour: Behaviour::Succeed, millis: 0 };
    Assignment { work, inputs: vec![], handover: None }
}

pub fn data() -> DataSpec {
    DataSpec::SparseLinear(SparseLinear {
        dim: 4,
        bases: 2,
        rank: 2,
        overlap: Overlap::Disjoint,
        examples: 4,
        noise_variance: 0.01,
        weight_mean: 0.0,
        y_channel: YChannel::Shared,
    })
}

/// A training segment from step 100 to 200.
pub fn training(inputs: Vec<CheckpointRef>) -> Assignment {
    let init = InitSpec { std: 0.02, read_in_std: 0.1, position_std: 0.02 };
    let optimizer = OptimizerSpec {
        kind: OptimizerKind::Adam,
        learning_rate: 1e-3,
        betas: [0.9, 0.99],
        epsilon: 1e-8,
        weight_decay: 0.0,
    };
    let work = JobWork::Train {
        seed: 1,
        model: ModelSpec { arch: Arch::Gpt2, layers: 1, width: 8, heads: 2, init },
        data: data(),
        train: TrainSpec {
            steps: 200,
            batch: 8,
            optimizer,
            warmup: 0,
            decay: Decay::None,
            clip_norm: None,
            precision: Precision::F32,
            log_every: 1,
        },
        checkpoints: CheckpointSpec { schedule: Schedule::Log, count: 3, resume_every: 100 },
        from: 100,
        to: 200,
    };
    Assignment { work, inputs, handover: None }
}

pub fn baselines(inputs: Vec<CheckpointRef>) -> Assignment {
    let work = JobWork::Baselines { seed: 1, data: data(), sequences: 10, td_samples_per_task: None };
    Assignment { work, inputs, handover: None }
}

//! The one entrance for workers: a job's work in, its outcome out.

use crate::{
    Executed, Inputs, ScienceError, Sink, analysis,
    checkpoint::{self, Identity},
    model::Transformer,
    selftest,
    train::{Segment, train_segment},
};
use candle_core::Device;
use taskvec_model::{
    job::{JobWork, Purpose},
    metric::Metrics,
    spec::{DataSpec, ModelSpec},
};

/// Runs one job to its end on the CPU, with the threads of the caller's rayon pool.
///
/// The outcome does not depend on the number of threads, but for times.
pub fn execute(work: &JobWork, inputs: &Inputs, sink: &mut dyn Sink) -> Result<Executed, ScienceError> {
    let metrics = match work {
        JobWork::Train { seed, model, data, train, checkpoints, from, to } => {
            let segment = Segment { seed: *seed, model, data, train, checkpoints, from: *from, to: *to };
            return train_segment(&segment, inputs.resume.as_deref(), sink);
        }
        JobWork::Baselines { seed, data, sequences, td_samples_per_task } => {
            analysis::baselines::run(*seed, data, *sequences, *td_samples_per_task, sink)?
        }
        JobWork::Icl { seed, model, data, sequences } => {
            let network = weights(inputs, model, data, *seed)?;
            analysis::icl::run(&network, *seed, data, *sequences, sink)?
        }
        JobWork::Td { seed, model, data, td } => {
            let network = weights(inputs, model, data, *seed)?;
            analysis::td::run(&network, *seed, data, td, sink)?
        }
        JobWork::Measure { .. } | JobWork::Intervene { .. } | JobWork::Finetune { .. } => {
            return Err(ScienceError::NotHere(work.kind()));
        }
        JobWork::Selftest { index, behaviour, millis, .. } => {
            selftest::run(*index, *behaviour, *millis, sink)?;
            Metrics::default()
        }
    };
    Ok(Executed::Finished(metrics))
}

/// The model whose weights the job was given.
fn weights(inputs: &Inputs, model: &ModelSpec, data: &DataSpec, seed: u64) -> Result<Transformer, ScienceError> {
    let path = inputs.weights.as_deref().ok_or(ScienceError::MissingInput(Purpose::Weights))?;
    let run = Identity { seed, model: model.clone(), data: data.clone() };
    Ok(checkpoint::read_of(path, &run, Purpose::Weights, &Device::Cpu)?.network)
}

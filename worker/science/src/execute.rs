//! The one entrance for workers: a job's work in, its outcome out.

use crate::{
    Executed, Inputs, Models, ScienceError, Sink,
    analysis::{self, natural},
    checkpoint::{self, Identity},
    lora,
    model::Transformer,
    models, selftest,
    train::{Segment, train_segment},
};
use candle_core::Device;
use std::sync::Arc;
use taskvec_kernels::cuda::program::Machine;
use taskvec_model::{
    job::{JobWork, Purpose, Subject},
    metric::Metrics,
    spec::{DataSpec, ModelSpec, PretrainedSpec},
};

/// Runs one job to its end on the CPU, with the threads of the caller's rayon pool.
///
/// The outcome does not depend on the number of threads, but for times.
///
/// Pretrained models are taken from `models`, where jobs that follow find them again.
pub fn execute(
    work: &JobWork,
    inputs: &Inputs,
    models: &Models,
    sink: &mut dyn Sink,
) -> Result<Executed, ScienceError> {
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
        JobWork::Measure { seed, model, data, shots, icl, td, lens } => {
            let (td, lens) = (td.as_ref(), lens.as_ref());
            let asked = natural::measure::Asked { seed: *seed, data, shots: *shots, icl: *icl, td, lens };
            natural::measure::run(&*reader(models, model, inputs, *seed)?, asked, sink)?
        }
        JobWork::Intervene { seed, subject: Subject::Language { model, data, shots }, spec } => {
            let asked = natural::intervene::Asked { seed: *seed, data, shots: *shots, spec };
            natural::intervene::run(&*reader(models, model, inputs, *seed)?, asked, sink)?
        }
        JobWork::Intervene { seed, subject: Subject::Synthetic { model, data }, spec } => {
            let network = weights(inputs, model, data, *seed)?;
            analysis::intervene::run(&network, *seed, data, spec, sink)?
        }
        JobWork::Finetune { seed, model, data, lora, train, checkpoints, from, to } => {
            let (seed, from, to) = (*seed, *from, *to);
            let segment = lora::Segment { seed, model, data, lora, train, checkpoints, from, to };
            return lora::tune_segment(&segment, models, inputs.resume.as_deref(), sink);
        }
        JobWork::Selftest { index, behaviour, millis, .. } => {
            selftest::run(*index, *behaviour, *millis, sink)?;
            Metrics::default()
        }
    };
    Ok(Executed::Finished(metrics))
}

/// The same with a machine of the worker's, which reads the states of synthetic models, and patches them.
pub(crate) fn execute_on<M: Machine>(
    machine: &M,
    (work, inputs): (&JobWork, &Inputs),
    models: &Models,
    sink: &mut dyn Sink,
) -> Result<Executed, ScienceError> {
    match work {
        JobWork::Td { seed, model, data, td } => {
            let network = weights(inputs, model, data, *seed)?;
            Ok(Executed::Finished(analysis::td::run_on(machine, &network, *seed, data, td, sink)?))
        }
        JobWork::Intervene { seed, subject: Subject::Synthetic { model, data }, spec } => {
            let network = weights(inputs, model, data, *seed)?;
            Ok(Executed::Finished(analysis::intervene::run_on(machine, &network, *seed, data, spec, sink)?))
        }
        other => execute(other, inputs, models, sink),
    }
}

/// The model whose weights the job was given.
fn weights(inputs: &Inputs, model: &ModelSpec, data: &DataSpec, seed: u64) -> Result<Transformer, ScienceError> {
    let path = inputs.weights.as_deref().ok_or(ScienceError::MissingInput(Purpose::Weights))?;
    let run = Identity { seed, model: model.clone(), data: data.clone() };
    Ok(checkpoint::read_of(path, &run, Purpose::Weights, &Device::Cpu)?.network)
}

/// The pretrained model, with the adapters that the job was given, if it was given any.
fn reader(
    models: &Models,
    spec: &PretrainedSpec,
    inputs: &Inputs,
    seed: u64,
) -> Result<Arc<natural::Reader>, ScienceError> {
    let base = models.get(spec)?;
    let Some(path) = inputs.weights.as_deref() else { return Ok(base) };
    let adapters = lora::read_weights(path, &base.model, models::digest(spec)?, seed)?;
    let model = base.model.with_adapters(&adapters)?;
    Ok(Arc::new(natural::Reader { model, tokenizer: base.tokenizer.clone() }))
}

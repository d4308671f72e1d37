//! Training of adapters, one segment at a time: from the state after step `from` to the state after step `to`.

use super::{
    adapters::Adapters,
    checkpoint::{self, Header, Identity},
    examples::Examples,
    gradient::{DropoutAt, gradients},
};
use crate::{
    Executed, Models, ScienceError, Sink,
    analysis::natural::Reader,
    course::{self, Course, Training},
    models,
    optim::Optimizer,
    task::{Prompts, TaskSet},
};
use std::path::Path;
use taskvec_model::{
    job::{CheckpointRef, Purpose},
    spec::{CheckpointSpec, LoraSpec, NaturalSpec, PretrainedSpec, TuneSpec},
};

/// A segment `(from, to]` of a run.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    pub seed: u64,
    pub model: &'a PretrainedSpec,
    pub data: &'a NaturalSpec,
    pub lora: &'a LoraSpec,
    pub train: &'a TuneSpec,
    pub checkpoints: &'a CheckpointSpec,
    pub from: u64,
    pub to: u64,
}

/// Trains a segment. `resume` is the state at a step in [from, to); none starts with new adapters, on the model that `models`
/// has or loads.
///
/// Through the sink go: the adapters at the analysis steps that are reached (step 0 before the first update), the resume
/// state at `to`, training losses, and progress after every step.
///
/// # Errors
/// Models, tasks and prompts that cannot be had; layers or modules that the model has not; [`ScienceError::Diverged`] when
/// the loss or the gradient stops being finite; [`ScienceError::BadCheckpoint`] where `resume` is not a state of this run
/// within the segment; whatever the sink returns.
pub fn tune_segment(
    segment: &Segment<'_>,
    models: &Models,
    resume: Option<&Path>,
    sink: &mut dyn Sink,
) -> Result<Executed, ScienceError> {
    if resume.is_none() && segment.from > 0 {
        return Err(ScienceError::MissingInput(Purpose::Resume));
    }
    let reader = models.get(segment.model)?;
    let mut trainer = Trainer::new(segment, &reader, resume)?;
    let TuneSpec { steps, batch, log_every, .. } = *segment.train;
    let analysed = segment.checkpoints.analysis_steps(steps);
    let course = Course { steps, batch, log_every, analysed, to: segment.to, fresh: resume.is_none() };
    course::run(&course, &mut trainer, sink)
}

/// The state of training between two steps.
struct Trainer<'a> {
    segment: Segment<'a>,
    reader: &'a Reader,
    run: Identity,
    examples: Examples,
    adapters: Adapters,
    optimizer: Optimizer,
    /// Updates made.
    step: u64,
    last_loss: Option<f64>,
}

impl<'a> Trainer<'a> {
    /// Before the first step, or from a resume checkpoint at a step in [from, to).
    fn new(segment: &Segment<'a>, reader: &'a Reader, resume: Option<&Path>) -> Result<Self, ScienceError> {
        let Segment { seed, data, lora, train, .. } = *segment;
        let model = &reader.model;
        let digest = models::digest(segment.model)?;
        let run = Identity::new(seed, digest, data, lora, model.config().layers);
        let optimizer = &train.optimizer;
        let (step, adapters, optimizer) = match resume {
            None => {
                let adapters = Adapters::fresh(model, lora, seed)?.trainable()?;
                let optimizer = Optimizer::new(optimizer, train.clip_norm, adapters.parameters())?;
                (0, adapters, optimizer)
            }
            Some(path) => {
                let saved = checkpoint::read_resume(path, &run, model)?;
                let step = saved.header.step;
                if !(segment.from..segment.to).contains(&step) {
                    let reason = format!("is at step {step}, outside the segment {} to {}", segment.from, segment.to);
                    return Err(ScienceError::BadCheckpoint { path: path.to_owned(), reason });
                }
                let optimizer = Optimizer::with_moments(optimizer, train.clip_norm, saved.moments);
                (step, saved.adapters.trainable()?, optimizer)
            }
        };
        let tasks = TaskSet::load(data, seed)?;
        let prompts = Prompts::new(&tasks, data, &reader.tokenizer, model.config().context, seed)?;
        let examples = Examples::new(&prompts, tasks.tasks().len(), train, seed)?;
        Ok(Self { segment: *segment, reader, run, examples, adapters, optimizer, step, last_loss: None })
    }
}

impl Training for Trainer<'_> {
    fn step(&self) -> u64 {
        self.step
    }

    fn learning_rate(&self, step: u64) -> f64 {
        self.segment.train.learning_rate(step)
    }

    fn advance(&mut self) -> Result<f64, ScienceError> {
        let Segment { seed, lora, train, .. } = self.segment;
        let step = self.step + 1;
        let batch = self.examples.batch(step, train.batch);
        let dropout = DropoutAt { probability: lora.dropout, seed, update: step };
        let pieces = train.accumulate as usize;
        let found = gradients(&self.reader.model, &self.adapters, &batch, pieces, Some(dropout))?;
        let diverged = |what| ScienceError::Diverged { step, what, last_loss: self.last_loss };
        if !found.loss.is_finite() {
            return Err(diverged("loss is not finite"));
        }
        let rate = train.learning_rate(step);
        let norm = self.optimizer.update(self.adapters.parameters(), &found.stored(&self.adapters), rate, step)?;
        if !norm.is_finite() {
            return Err(diverged("gradient is not finite"));
        }
        self.step = step;
        self.last_loss = Some(found.loss);
        Ok(found.loss)
    }

    fn save(&self, purpose: Purpose, sink: &mut dyn Sink) -> Result<CheckpointRef, ScienceError> {
        let moments = match purpose {
            Purpose::Weights => None,
            Purpose::Resume => Some(self.optimizer.moments()),
        };
        let header = Header::new(purpose, self.step, self.segment.model, &self.reader.model, &self.run);
        sink.checkpoint(self.step, purpose, &mut |out| checkpoint::write(out, &header, &self.adapters, moments))
    }
}

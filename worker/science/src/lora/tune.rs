//! Training of adapters, one segment at a time: from the state after step `from` to the state after step `to`.

use super::{
    adapters::Adapters,
    checkpoint::{self, Header, Identity, Saved},
    examples::Examples,
    gradient::{DropoutAt, gradients},
};
use crate::{
    Executed, Models, ScienceError, Sink,
    analysis::natural::Reader,
    course::{self, Course, State, Training},
    model::language::LanguageModel,
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
/// the loss explodes, or it or the gradient stops being finite; [`ScienceError::BadCheckpoint`] where `resume` is not a
/// state of this run within the segment; whatever the sink returns.
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
    let tasks = TaskSet::load(segment.data, segment.seed)?;
    let mut trainer = Trainer::new(segment, &reader, &tasks, resume)?;
    let TuneSpec { steps, batch, log_every, .. } = *segment.train;
    let analysed = segment.checkpoints.analysis_steps(steps);
    let course = Course { steps, batch, log_every, analysed, to: segment.to, fresh: resume.is_none() };
    course::run(course, &mut trainer, sink)
}

const EXPLODED: &str = "loss is over a million times that of finding all tokens equally likely";

/// The state of training between two steps.
struct Trainer<'a> {
    segment: Segment<'a>,
    reader: &'a Reader,
    run: Identity,
    examples: Examples<'a>,
    adapters: Adapters,
    optimizer: Optimizer,
    /// Updates made.
    step: u64,
    last_loss: Option<f64>,
}

impl<'a> Trainer<'a> {
    /// Before the first step, or from a resume checkpoint at a step in [from, to).
    fn new(
        segment: &Segment<'a>,
        reader: &'a Reader,
        tasks: &'a TaskSet,
        resume: Option<&Path>,
    ) -> Result<Self, ScienceError> {
        let Segment { seed, data, lora, train, .. } = *segment;
        let config = reader.model.config();
        let run = Identity::new(seed, models::digest(segment.model)?, data, lora, config.layers);
        let (step, adapters, optimizer) = match resume {
            None => {
                let adapters = Adapters::fresh(&reader.model, lora, seed)?.trainable()?;
                let optimizer = Optimizer::new(&train.optimizer, train.clip_norm, adapters.parameters())?;
                (0, adapters, optimizer)
            }
            Some(path) => resumed(segment, &reader.model, &run, path)?,
        };
        let prompts = Prompts::new(tasks, data, &reader.tokenizer, config.context, seed)?;
        let examples = Examples::new(prompts, tasks.tasks().len(), train, seed);
        Ok(Self { segment: *segment, reader, run, examples, adapters, optimizer, step, last_loss: None })
    }
}

impl Trainer<'_> {
    /// The cross-entropy of who finds all tokens equally likely.
    fn blind_loss(&self) -> f64 {
        (self.reader.model.config().vocabulary as f64).ln()
    }
}

/// The state in a resume checkpoint, which must be at a step in [from, to).
fn resumed(
    segment: &Segment<'_>,
    model: &LanguageModel,
    run: &Identity,
    path: &Path,
) -> Result<(u64, Adapters, Optimizer), ScienceError> {
    let Saved { header, adapters, moments } = checkpoint::read_resume(path, run, model)?;
    if !(segment.from..segment.to).contains(&header.step) {
        let Segment { from, to, .. } = segment;
        let reason = format!("is at step {}, outside the segment {from} to {to}", header.step);
        return Err(ScienceError::BadCheckpoint { path: path.to_owned(), reason });
    }
    let TuneSpec { optimizer, clip_norm, .. } = segment.train;
    Ok((header.step, adapters.trainable()?, Optimizer::with_moments(optimizer, *clip_norm, moments)))
}

impl Training for Trainer<'_> {
    fn advance(&mut self) -> Result<f64, ScienceError> {
        let Segment { seed, lora, train, .. } = self.segment;
        let step = self.step + 1;
        let batch = self.examples.batch(step)?;
        let dropout = DropoutAt { probability: lora.dropout, seed, update: step };
        let pieces = train.accumulate as usize;
        let found = gradients(&self.reader.model, &self.adapters, &batch, pieces, Some(dropout))?;
        let diverged = |what| ScienceError::Diverged { step, what, last_loss: self.last_loss };
        if let Some(what) = course::divergence(found.loss, self.blind_loss(), EXPLODED) {
            return Err(diverged(what));
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
}

impl State for Trainer<'_> {
    fn step(&self) -> u64 {
        self.step
    }

    fn learning_rate(&self, step: u64) -> f64 {
        self.segment.train.learning_rate(step)
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

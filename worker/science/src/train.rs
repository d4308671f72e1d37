//! Training, one segment at a time: from the state after step `from` to the state after step `to`.
//!
//! Deterministic: the batch of a step is a function of (seed, step), the state between two steps is exactly what a resume
//! checkpoint holds, and no result depends on the number of threads. So segments may be cut, stopped, handed over and
//! repeated at will, and end in the same bytes.

use crate::{
    Executed, ScienceError, Sink,
    checkpoint::{self, Identity},
    course::{self, Course, State, Training},
    engine::Engine,
    model::Transformer,
    optim::{self, Moments},
    rng::{Purpose as Numbers, Stream},
};
use candle_core::Device;
use std::path::Path;
use taskvec_model::{
    job::{CheckpointRef, Purpose},
    spec::{CheckpointSpec, DataSpec, ModelSpec, TrainSpec},
};

/// A segment `(from, to]` of a run.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    pub seed: u64,
    pub model: &'a ModelSpec,
    pub data: &'a DataSpec,
    pub train: &'a TrainSpec,
    pub checkpoints: &'a CheckpointSpec,
    pub from: u64,
    pub to: u64,
}

/// Trains a segment on the CPU. `resume` is the state at a step in [from, to); none starts from initialisation.
///
/// Through the sink go: weights at the analysis steps that are reached (step 0 before the first update), the resume
/// state at `to`, training losses, and progress after every step.
///
/// # Errors
/// [`ScienceError::Diverged`] when the loss explodes, or it or the gradient stops being finite,
/// [`ScienceError::BadCheckpoint`] where `resume` is not a state of this run within the segment, and whatever the sink
/// returns.
pub fn train_segment(
    segment: &Segment<'_>,
    resume: Option<&Path>,
    sink: &mut dyn Sink,
) -> Result<Executed, ScienceError> {
    let mut trainer = Trainer::at(segment, &Start::of(segment, resume)?)?;
    course::run(segment.course(resume.is_none()), &mut trainer, sink)
}

impl Segment<'_> {
    fn identity(&self) -> Identity {
        Identity { seed: self.seed, model: self.model.clone(), data: self.data.clone() }
    }

    /// Keeps the run as it is after `step` updates, with its moments in a resume state.
    pub(crate) fn save(
        &self,
        step: u64,
        (network, moments): (&Transformer, Option<&[Moments]>),
        purpose: Purpose,
        sink: &mut dyn Sink,
    ) -> Result<CheckpointRef, ScienceError> {
        let run = self.identity();
        sink.checkpoint(step, purpose, &mut |out| checkpoint::write(out, &run, step, network, moments))
    }

    /// `fresh`: it starts from initialisation.
    pub(crate) fn course(&self, fresh: bool) -> Course {
        let TrainSpec { steps, batch, log_every, .. } = *self.train;
        let analysed = self.checkpoints.analysis_steps(steps);
        Course { steps, batch, log_every, analysed, to: self.to, fresh }
    }
}

/// Where training begins.
pub(crate) struct Start {
    pub network: Transformer,
    /// None before the first step.
    pub moments: Option<Vec<Moments>>,
    /// Updates made.
    pub step: u64,
}

impl Start {
    /// The resume checkpoint, which is at a step in [from, to); without one initialisation, where the segment begins there.
    pub fn of(segment: &Segment<'_>, resume: Option<&Path>) -> Result<Self, ScienceError> {
        match resume {
            Some(path) => Self::saved(segment, path),
            None if segment.from == 0 => Self::fresh(segment),
            None => Err(ScienceError::MissingInput(Purpose::Resume)),
        }
    }

    fn fresh(segment: &Segment<'_>) -> Result<Self, ScienceError> {
        let network = Transformer::init(segment.model, segment.data, segment.seed, &Device::Cpu)?;
        Ok(Self { network, moments: None, step: 0 })
    }

    fn saved(segment: &Segment<'_>, path: &Path) -> Result<Self, ScienceError> {
        let saved = checkpoint::read_of(path, &segment.identity(), Purpose::Resume, &Device::Cpu)?;
        let step = saved.header.step;
        if !(segment.from..segment.to).contains(&step) {
            let reason = format!("is at step {step}, outside the segment {} to {}", segment.from, segment.to);
            return Err(ScienceError::BadCheckpoint { path: path.to_owned(), reason });
        }
        Ok(Self { network: saved.network, moments: Some(saved.moments), step })
    }
}

/// The state of training between two steps.
pub struct Trainer<'a> {
    segment: Segment<'a>,
    engine: Engine,
    /// Updates made.
    step: u64,
    last_loss: Option<f64>,
}

impl<'a> Trainer<'a> {
    /// Before the first step.
    pub fn fresh(segment: &Segment<'a>) -> Result<Self, ScienceError> {
        Self::at(segment, &Start::fresh(segment)?)
    }

    pub(crate) fn at(segment: &Segment<'a>, start: &Start) -> Result<Self, ScienceError> {
        let train = segment.train;
        let optimizer = (optim::adam(&train.optimizer), train.clip_norm);
        let moments = start.moments.as_deref();
        let engine = Engine::new(&start.network, moments, optimizer, train.batch as usize, train.precision)?;
        Ok(Self { segment: *segment, engine, step: start.step, last_loss: None })
    }

    /// Floating-point operations of an update, roughly: three passes of a product and a sum by token and parameter.
    pub(crate) fn flops_per_update(&self) -> u64 {
        let DataSpec::SparseLinear(data) = self.segment.data;
        let tokens = u64::from(self.segment.train.batch) * 2 * u64::from(data.examples);
        6 * tokens * self.engine.parameters() as u64
    }

    /// The model as it is now.
    ///
    /// # Errors
    /// Tensor errors.
    pub fn network(&self) -> Result<Transformer, ScienceError> {
        Ok(self.engine.network()?)
    }

    /// Makes one update and returns the loss of its batch before it.
    pub fn advance(&mut self) -> Result<f64, ScienceError> {
        let step = self.step + 1;
        let DataSpec::SparseLinear(data) = self.segment.data;
        let stream = Stream { seed: self.segment.seed, purpose: Numbers::Train, step };
        let batch = self.engine.gradients(data, stream);
        let diverged = |what| ScienceError::Diverged { step, what, last_loss: self.last_loss };
        let exploded = "loss is over a million times that of predicting 0";
        if let Some(what) = course::divergence(batch.loss, batch.of_zero, exploded) {
            return Err(diverged(what));
        }
        if !self.engine.update(step, self.segment.train.learning_rate(step)).is_finite() {
            return Err(diverged("gradient is not finite"));
        }
        self.step = step;
        // In the precision of the model.
        let loss = f64::from(batch.loss as f32);
        self.last_loss = Some(loss);
        Ok(loss)
    }
}

impl Training for Trainer<'_> {
    fn advance(&mut self) -> Result<f64, ScienceError> {
        Trainer::advance(self)
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
        let network = self.engine.network()?;
        let moments = match purpose {
            Purpose::Weights => None,
            Purpose::Resume => Some(self.engine.moments()?),
        };
        self.segment.save(self.step, (&network, moments.as_deref()), purpose, sink)
    }
}

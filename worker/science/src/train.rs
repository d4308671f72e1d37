//! Training, one segment at a time: from the state after step `from` to the state after step `to`.
//!
//! Deterministic: the batch of a step is a function of (seed, step), the state between two steps is exactly what a resume
//! checkpoint holds, and no result depends on the number of threads. So segments may be cut, stopped, handed over and
//! repeated at will, and end in the same bytes.

use crate::{
    Executed, ScienceError, Sink,
    checkpoint::{self, Identity},
    course::{self, Course, Training},
    data::{self, Bases, Sequences},
    model::Transformer,
    optim::Optimizer,
    rng::{Purpose as Numbers, Stream},
};
use candle_core::Device;
use std::path::Path;
use taskvec_kernels::mse_at;
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
    let mut trainer = match resume {
        Some(path) => Trainer::resume(segment, path)?,
        None if segment.from == 0 => Trainer::fresh(segment)?,
        None => return Err(ScienceError::MissingInput(Purpose::Resume)),
    };
    let TrainSpec { steps, batch, log_every, .. } = *segment.train;
    let analysed = segment.checkpoints.analysis_steps(steps);
    let course = Course { steps, batch, log_every, analysed, to: segment.to, fresh: resume.is_none() };
    course::run(&course, &mut trainer, sink)
}

impl Segment<'_> {
    fn identity(&self) -> Identity {
        Identity { seed: self.seed, model: self.model.clone(), data: self.data.clone() }
    }
}

/// The state of training between two steps.
pub struct Trainer<'a> {
    segment: Segment<'a>,
    network: Transformer,
    optimizer: Optimizer,
    /// Updates made.
    step: u64,
    last_loss: Option<f64>,
}

impl<'a> Trainer<'a> {
    /// Before the first step.
    pub fn fresh(segment: &Segment<'a>) -> Result<Self, ScienceError> {
        let network = Transformer::init(segment.model, segment.data, segment.seed, &Device::Cpu)?.trainable()?;
        let optimizer = Optimizer::new(&segment.train.optimizer, segment.train.clip_norm, network.parameters())?;
        Ok(Self { segment: *segment, network, optimizer, step: 0, last_loss: None })
    }

    /// From a resume checkpoint at a step in [from, to).
    fn resume(segment: &Segment<'a>, path: &Path) -> Result<Self, ScienceError> {
        let saved = checkpoint::read_of(path, &segment.identity(), Purpose::Resume, &Device::Cpu)?;
        let step = saved.header.step;
        if !(segment.from..segment.to).contains(&step) {
            let reason = format!("is at step {step}, outside the segment {} to {}", segment.from, segment.to);
            return Err(ScienceError::BadCheckpoint { path: path.to_owned(), reason });
        }
        let network = saved.network.trainable()?;
        let optimizer = Optimizer::with_moments(&segment.train.optimizer, segment.train.clip_norm, saved.moments);
        Ok(Self { segment: *segment, network, optimizer, step, last_loss: None })
    }

    pub fn network(&self) -> &Transformer {
        &self.network
    }

    /// Makes one update and returns the loss of its batch before it.
    pub fn advance(&mut self) -> Result<f64, ScienceError> {
        let step = self.step + 1;
        let batch = self.batch(step);
        let (tokens, targets) = (batch.tokens(&Device::Cpu)?, batch.targets(&Device::Cpu)?);
        let loss = mse_at(&self.network.forward(&tokens, None)?, &targets)?;
        let value = f64::from(loss.to_scalar::<f32>()?);
        let diverged = |what| ScienceError::Diverged { step, what, last_loss: self.last_loss };
        let zero = batch.y.iter().map(|y| f64::from(*y).powi(2)).sum::<f64>() / batch.y.len() as f64;
        if let Some(what) = course::divergence(value, zero, "loss is over a million times that of predicting 0") {
            return Err(diverged(what));
        }
        let gradients = loss.backward()?;
        let rate = self.segment.train.learning_rate(step);
        let norm = self.optimizer.update(self.network.parameters(), &gradients, rate, step)?;
        if !norm.is_finite() {
            return Err(diverged("gradient is not finite"));
        }
        self.step = step;
        self.last_loss = Some(value);
        Ok(value)
    }

    fn batch(&self, step: u64) -> Sequences {
        let DataSpec::SparseLinear(data) = self.segment.data;
        let stream = Stream { seed: self.segment.seed, purpose: Numbers::Train, step };
        data::generate(data, stream, 0..u64::from(self.segment.train.batch), Bases::Drawn)
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
        Trainer::advance(self)
    }

    fn save(&self, purpose: Purpose, sink: &mut dyn Sink) -> Result<CheckpointRef, ScienceError> {
        let moments = match purpose {
            Purpose::Weights => None,
            Purpose::Resume => Some(self.optimizer.moments()),
        };
        let run = self.segment.identity();
        sink.checkpoint(self.step, purpose, &mut |out| checkpoint::write(out, &run, self.step, &self.network, moments))
    }
}

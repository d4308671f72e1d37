//! A segment of training, whatever is trained: steps, and what goes through the sink between them.

use crate::{Control, Executed, ScienceError, Sink};
use std::time::Instant;
use taskvec_model::{
    job::{CheckpointRef, Progress, Purpose},
    metric::{Metrics, TrainLoss},
};

/// A run between two steps: exactly what a resume checkpoint holds.
pub(crate) trait State {
    /// Updates made.
    fn step(&self) -> u64;

    /// Of update `step`, from 1.
    fn learning_rate(&self, step: u64) -> f64;

    fn save(&self, purpose: Purpose, sink: &mut dyn Sink) -> Result<CheckpointRef, ScienceError>;
}

impl<T: State> State for &T {
    fn step(&self) -> u64 {
        T::step(self)
    }

    fn learning_rate(&self, step: u64) -> f64 {
        T::learning_rate(self, step)
    }

    fn save(&self, purpose: Purpose, sink: &mut dyn Sink) -> Result<CheckpointRef, ScienceError> {
        T::save(self, purpose, sink)
    }
}

/// What is trained by itself.
pub(crate) trait Training: State {
    /// Makes one update and returns the loss before it.
    fn advance(&mut self) -> Result<f64, ScienceError>;
}

/// How a segment goes.
pub(crate) struct Course {
    /// Of the whole run.
    pub steps: u64,
    /// Sequences per step.
    pub batch: u32,
    /// The loss of every n-th step is recorded.
    pub log_every: u64,
    /// Steps whose weights are kept, ascending.
    pub analysed: Vec<u64>,
    /// The segment's last step.
    pub to: u64,
    /// Is this the beginning, whose weights are kept too, rather than a state that was written earlier?
    pub fresh: bool,
}

impl Course {
    fn logs(&self, step: u64) -> bool {
        step == 1 || step == self.steps || step.is_multiple_of(self.log_every.max(1))
    }

    fn analyses(&self, step: u64) -> bool {
        self.analysed.binary_search(&step).is_ok()
    }

    /// Updates from `step` to the next one after which a row or a checkpoint is kept; at least 1.
    pub fn updates_to_next_event(&self, step: u64) -> u64 {
        let next = (step + 1..self.to).find(|step| self.logs(*step) || self.analyses(*step));
        next.unwrap_or(self.to).saturating_sub(step).max(1)
    }
}

/// A course under way: what is trained and what advances it are the caller's.
pub(crate) struct Voyage {
    pub course: Course,
    clock: Clock,
}

impl Voyage {
    /// # Errors
    /// Whatever the sink returns.
    pub fn begin(course: Course, training: &dyn State, sink: &mut dyn Sink) -> Result<Self, ScienceError> {
        if course.fresh {
            training.save(Purpose::Weights, sink)?;
        }
        Ok(Self { course, clock: Clock::start(training.step()) })
    }

    /// What follows an update before which the loss was `loss`. Several updates may have been made since the last call, as
    /// long as [`Course::updates_to_next_event`] is kept. The outcome, when this was the last one or the sink asks for a stop.
    ///
    /// # Errors
    /// Whatever the sink returns.
    pub fn after_update(
        &mut self,
        loss: f64,
        training: &dyn State,
        sink: &mut dyn Sink,
    ) -> Result<Option<Executed>, ScienceError> {
        let (course, step) = (&self.course, training.step());
        if course.logs(step) {
            let sequences_per_second = self.clock.since_last_row(step) * f64::from(course.batch);
            let learning_rate = training.learning_rate(step);
            sink.train_loss(TrainLoss { step, loss, learning_rate, sequences_per_second });
        }
        if course.analyses(step) {
            training.save(Purpose::Weights, sink)?;
        }
        let per_second = self.clock.since_start(step);
        let progress = Progress { done: step, total: course.steps, per_second, loss: Some(loss) };
        if sink.progress(progress) == Control::Stop && step < course.to {
            return Ok(Some(Executed::Stopped { at: training.save(Purpose::Resume, sink)? }));
        }
        if step < course.to {
            return Ok(None);
        }
        training.save(Purpose::Resume, sink)?;
        Ok(Some(Executed::Finished(Metrics::default())))
    }
}

/// Trains up to the end of the segment, or until the sink asks for a stop.
///
/// # Errors
/// Whatever a step or the sink returns.
pub(crate) fn run(course: Course, training: &mut dyn Training, sink: &mut dyn Sink) -> Result<Executed, ScienceError> {
    let mut voyage = Voyage::begin(course, &*training, sink)?;
    loop {
        let loss = training.advance()?;
        if let Some(executed) = voyage.after_update(loss, &*training, sink)? {
            return Ok(executed);
        }
    }
}

/// A loss that is this many times the one of who knows nothing shows that training has diverged: Adam can then wander at
/// finite values for ever. No sensible initialisation starts there, and a comparison within the batch needs no memory of
/// earlier steps.
const EXPLODED: f64 = 1e6;

/// What in the loss of a batch shows that training has diverged, if anything does. `blind` is the loss of who knows nothing,
/// and `exploded` says so.
pub(crate) fn divergence(loss: f64, blind: f64, exploded: &'static str) -> Option<&'static str> {
    if !loss.is_finite() {
        return Some("loss is not finite");
    }
    (loss > EXPLODED * blind).then_some(exploded)
}

/// Steps per second. Times are shown, never part of a result.
struct Clock {
    start: (Instant, u64),
    last_row: (Instant, u64),
}

impl Clock {
    fn start(step: u64) -> Self {
        let now = (Instant::now(), step);
        Self { start: now, last_row: now }
    }

    fn since_start(&self, step: u64) -> f64 {
        rate(self.start, Instant::now(), step)
    }

    fn since_last_row(&mut self, step: u64) -> f64 {
        let now = Instant::now();
        rate(std::mem::replace(&mut self.last_row, (now, step)), now, step)
    }
}

fn rate((then, from): (Instant, u64), now: Instant, to: u64) -> f64 {
    (to - from) as f64 / now.duration_since(then).as_secs_f64().max(1e-9)
}

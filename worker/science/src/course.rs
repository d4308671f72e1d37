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

    /// Updates from `step` to the next one after which a checkpoint is kept; at least 1.
    pub fn updates_to_next_checkpoint(&self, step: u64) -> u64 {
        let next = self.analysed.iter().copied().find(|analysed| *analysed > step);
        next.map_or(self.to, |next| next.min(self.to)).saturating_sub(step).max(1)
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

    /// The rows of updates that were made since the last call, before each of which the loss was one of `losses`, where
    /// they are to be kept. Their speed is that of all of these updates.
    pub fn rows(&mut self, losses: &[f64], training: &dyn State) -> Vec<TrainLoss> {
        let step = training.step();
        let first = step + 1 - losses.len() as u64;
        let logged: Vec<_> = (first..).zip(losses).filter(|(step, _)| self.course.logs(*step)).collect();
        if logged.is_empty() {
            return Vec::new();
        }
        let sequences_per_second = self.clock.since_last_row(step) * f64::from(self.course.batch);
        let row =
            |(step, &loss)| TrainLoss { step, loss, learning_rate: training.learning_rate(step), sequences_per_second };
        logged.into_iter().map(row).collect()
    }

    /// What is due after updates before which the losses were these, one at least; the sink learns of the progress and says
    /// whether to stop. As many may have been made since the last call as [`Course::updates_to_next_checkpoint`] said.
    pub fn look(&mut self, losses: &[f64], training: &dyn State, sink: &mut dyn Sink) -> Due {
        let rows = self.rows(losses, training);
        let (course, step) = (&self.course, training.step());
        let per_second = self.clock.since_start(step);
        let progress = Progress { done: step, total: course.steps, per_second, loss: losses.last().copied() };
        let then = match sink.progress(progress) {
            _ if step >= course.to => Then::Finish,
            Control::Stop => Then::Stop,
            Control::Continue => Then::GoOn,
        };
        Due { rows, weights: course.analyses(step), then }
    }
}

/// What is to be kept of a run as it is after an update, and how it goes on.
///
/// A decision apart from what comes of it, since writing checkpoints takes time in which a device can make the next updates.
pub(crate) struct Due {
    rows: Vec<TrainLoss>,
    weights: bool,
    then: Then,
}

enum Then {
    GoOn,
    Stop,
    /// It is at the segment's last step.
    Finish,
}

impl Due {
    pub fn goes_on(&self) -> bool {
        matches!(self.then, Then::GoOn)
    }

    /// Which checkpoint holds all that [`Self::settle`] saves, if it saves anything.
    pub fn holds(&self) -> Option<Purpose> {
        match self.then {
            Then::GoOn => self.weights.then_some(Purpose::Weights),
            Then::Stop | Then::Finish => Some(Purpose::Resume),
        }
    }

    /// Gives the sink all that is due of a run that is, or is remembered, as it was when this was decided. The outcome, where
    /// it does not go on.
    ///
    /// # Errors
    /// Whatever the sink returns.
    pub fn settle(self, training: &dyn State, sink: &mut dyn Sink) -> Result<Option<Executed>, ScienceError> {
        self.rows.into_iter().for_each(|row| sink.train_loss(row));
        if self.weights {
            training.save(Purpose::Weights, sink)?;
        }
        match self.then {
            Then::GoOn => Ok(None),
            Then::Stop => Ok(Some(Executed::Stopped { at: training.save(Purpose::Resume, sink)? })),
            Then::Finish => {
                training.save(Purpose::Resume, sink)?;
                Ok(Some(Executed::Finished(Metrics::default())))
            }
        }
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
        let due = voyage.look(&[loss], &*training, sink);
        if let Some(executed) = due.settle(&*training, sink)? {
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

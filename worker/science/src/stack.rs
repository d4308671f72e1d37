//! Several runs trained together, in one slot.
//!
//! Each has its own segment, state and sink, and leaves when it ends, whatever becomes of the others. What it writes are the
//! bytes that it writes alone.

use crate::{
    Executed, Inputs, Models, ScienceError, Sink,
    course::{Training, Voyage},
    execute,
    train::{Segment, Trainer},
};
use rayon::prelude::*;
use taskvec_model::job::JobWork;

/// The sink of a job that shares a slot with others: it is told when the job ends, while the others go on.
pub trait MemberSink: Sink + Send {
    /// Called once, after everything else.
    fn ended(self: Box<Self>, how: Result<Executed, ScienceError>);
}

/// A job that shares a slot with others.
pub struct Member {
    pub work: JobWork,
    pub inputs: Inputs,
    pub sink: Box<dyn MemberSink>,
}

/// Runs all of these to their ends, with the threads of the caller's rayon pool: training together, anything else one after
/// the other. How each ended goes to its own sink, as soon as it has ended.
pub fn execute_stack(members: Vec<Member>, models: &Models) {
    let together = members.len() > 1;
    let trains = |member: &Member| together && segment(&member.work).is_some();
    let (training, others): (Vec<_>, Vec<_>) = members.into_iter().partition(trains);
    train(training);
    for Member { work, inputs, mut sink } in others {
        let how = execute(&work, &inputs, models, &mut *sink);
        sink.ended(how);
    }
}

fn segment(work: &JobWork) -> Option<Segment<'_>> {
    match work {
        JobWork::Train { seed, model, data, train, checkpoints, from, to } => {
            Some(Segment { seed: *seed, model, data, train, checkpoints, from: *from, to: *to })
        }
        _ => None,
    }
}

/// Makes updates of several runs. Between two calls the state of each is what its resume checkpoint holds, so runs may be at
/// different steps, and one may be taken out at any time.
///
/// The seam for a device: whoever keeps the runs in its memory, makes some updates of all of them at once and fetches the
/// losses afterwards takes the place of [`SideBySide`].
trait Crew {
    /// Updates between two looks at the sinks, at most: wishes to stop are to be heard soon.
    fn stride(&self) -> u64;

    /// Makes this many updates of every run, and gives the loss before the last of them. A run that fails is not touched any
    /// more.
    fn advance(&mut self, updates: u64) -> Vec<Result<f64, ScienceError>>;

    /// A run by its place.
    fn training(&self, place: usize) -> &dyn Training;

    /// Takes a run out; those after it move up.
    fn remove(&mut self, place: usize);
}

/// On the CPU: every run has its engine. All go to the pool at once and each gives it its pieces, so a thread that finds no
/// run left helps with the pieces of another's.
struct SideBySide<'a>(Vec<Trainer<'a>>);

/// About a fifth of a second of one core: threads meet after each stride, so it should not be too short either.
const STRIDE_FLOPS: u64 = 20_000_000_000;
/// Small models take longer than their operations say.
const STRIDE_MOST: u64 = 100;

impl Crew for SideBySide<'_> {
    fn stride(&self) -> u64 {
        let most = self.0.iter().map(Trainer::flops_per_update).max().unwrap_or(1);
        (STRIDE_FLOPS / most.max(1)).clamp(1, STRIDE_MOST)
    }

    fn advance(&mut self, updates: u64) -> Vec<Result<f64, ScienceError>> {
        let some = |trainer: &mut Trainer<'_>| {
            let mut loss = f64::NAN;
            for _ in 0..updates {
                loss = trainer.advance()?;
            }
            Ok(loss)
        };
        self.0.par_iter_mut().with_max_len(1).map(some).collect()
    }

    fn training(&self, place: usize) -> &dyn Training {
        &self.0[place]
    }

    fn remove(&mut self, place: usize) {
        self.0.remove(place);
    }
}

/// What a run of the crew has of its own.
struct Aboard {
    voyage: Voyage,
    sink: Box<dyn MemberSink>,
}

fn train(members: Vec<Member>) {
    let (jobs, sinks): (Vec<_>, Vec<_>) = members.into_iter().map(|m| ((m.work, m.inputs), m.sink)).unzip();
    let (mut trainers, mut aboard) = (Vec::new(), Vec::new());
    for ((work, inputs), mut sink) in jobs.iter().zip(sinks) {
        let Some(segment) = segment(work) else { continue };
        match begin(&segment, inputs, &mut *sink) {
            Ok((trainer, voyage)) => {
                trainers.push(trainer);
                aboard.push(Aboard { voyage, sink });
            }
            Err(error) => sink.ended(Err(error)),
        }
    }
    sail(&mut SideBySide(trainers), aboard);
}

fn begin<'a>(
    segment: &Segment<'a>,
    inputs: &Inputs,
    sink: &mut dyn Sink,
) -> Result<(Trainer<'a>, Voyage), ScienceError> {
    let resume = inputs.resume.as_deref();
    let trainer = Trainer::open(segment, resume)?;
    let voyage = Voyage::begin(segment.course(resume.is_none()), &trainer, sink)?;
    Ok((trainer, voyage))
}

/// Until the last of them has ended.
fn sail(crew: &mut dyn Crew, mut aboard: Vec<Aboard>) {
    while !aboard.is_empty() {
        let to_next =
            |(place, run): (usize, &Aboard)| run.voyage.course.updates_to_next_event(crew.training(place).step());
        let next = aboard.iter().enumerate().map(to_next).min().unwrap_or(1);
        let losses = crew.advance(next.min(crew.stride()));
        // From the last, so that the places of those before stay.
        for (place, loss) in losses.into_iter().enumerate().rev() {
            let Aboard { voyage, sink } = &mut aboard[place];
            let after = |loss| voyage.after_update(loss, crew.training(place), &mut **sink);
            if let Some(how) = loss.and_then(after).transpose() {
                crew.remove(place);
                aboard.remove(place).sink.ended(how);
            }
        }
    }
}

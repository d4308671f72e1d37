//! Several runs trained together, in one slot.
//!
//! Each has its own segment, state and sink, and leaves when it ends, whatever becomes of the others. What it writes are the
//! bytes that it writes alone.

mod on_machine;

use crate::{
    Executed, Inputs, Models, ScienceError, Sink,
    course::{Course, State, Voyage},
    execute::{execute, execute_on},
    train::{Segment, Start, Trainer},
};
use rayon::prelude::*;
use std::collections::BTreeMap;
use taskvec_kernels::cuda::program::Machine;
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
    train(training, &side_by_side);
    on_the_cpu(others, models);
}

/// The same with training, also of a single run, and what asks for the states of synthetic models on a machine of its own.
/// Runs that cannot share launches, which have another [`PackKey`](taskvec_model::pack::PackKey), are trained one kind after
/// the other.
pub fn execute_stack_on<M: Machine<Loaded: 'static>>(members: Vec<Member>, models: &Models, machine: &M) {
    let (training, others): (Vec<_>, Vec<_>) = members.into_iter().partition(|m| segment(&m.work).is_some());
    let mut kinds = BTreeMap::<_, Vec<_>>::new();
    for member in training {
        kinds.entry(member.work.pack_key()).or_default().push(member);
    }
    let muster = on_machine::muster(machine);
    kinds.into_values().for_each(|members| train(members, &*muster));
    one_after_the_other(others, |work, inputs, sink| execute_on(machine, (work, inputs), models, sink));
}

/// Where there is no such machine: training fails, with the reason; everything else needs none.
pub(crate) fn without_machine(members: Vec<Member>, models: &Models, why: &str) {
    let (training, others): (Vec<_>, Vec<_>) = members.into_iter().partition(|m| segment(&m.work).is_some());
    training.into_iter().for_each(|member| member.sink.ended(Err(ScienceError::Stack(why.to_owned()))));
    on_the_cpu(others, models);
}

fn on_the_cpu(members: Vec<Member>, models: &Models) {
    one_after_the_other(members, |work, inputs, sink| execute(work, inputs, models, sink));
}

fn one_after_the_other(
    members: Vec<Member>,
    mut execute: impl FnMut(&JobWork, &Inputs, &mut dyn Sink) -> Result<Executed, ScienceError>,
) {
    for Member { work, inputs, mut sink } in members {
        let how = execute(&work, &inputs, &mut *sink);
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
/// [`SideBySide`] on the CPU, or [`on_machine`], which keeps the runs in the memory of a device, makes some updates of all of
/// them at once and fetches the losses afterwards.
trait Crew {
    /// Updates between two looks at the sinks, at most: wishes to stop are to be heard soon.
    fn stride(&self) -> u64;

    /// Makes this many updates of every run, and gives the loss before the last of them. A run that fails is not touched any
    /// more.
    fn advance(&mut self, updates: u64) -> Vec<Result<f64, ScienceError>>;

    /// A run by its place.
    fn state(&self, place: usize) -> Box<dyn State + '_>;

    /// Takes a run out; those after it move up.
    fn remove(&mut self, place: usize);
}

fn side_by_side(starts: Vec<(Segment<'_>, Start)>) -> Result<Box<dyn Crew + '_>, ScienceError> {
    let trainers = starts.iter().map(|(segment, start)| Trainer::at(segment, start));
    Ok(Box::new(SideBySide(trainers.collect::<Result<_, _>>()?)))
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

    fn state(&self, place: usize) -> Box<dyn State + '_> {
        Box::new(&self.0[place])
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

/// How a crew is made of runs that are where they start.
type Muster<'m> = dyn for<'a> Fn(Vec<(Segment<'a>, Start)>) -> Result<Box<dyn Crew + 'a>, ScienceError> + 'm;

fn train(members: Vec<Member>, muster: &Muster<'_>) {
    let (jobs, sinks): (Vec<_>, Vec<_>) = members.into_iter().map(|m| ((m.work, m.inputs), m.sink)).unzip();
    let (mut starts, mut aboard) = (Vec::new(), Vec::new());
    for ((work, inputs), sink) in jobs.iter().zip(sinks) {
        let Some(segment) = segment(work) else { continue };
        let resume = inputs.resume.as_deref();
        match Start::of(&segment, resume) {
            Ok(start) => {
                starts.push((segment, start));
                aboard.push((segment.course(resume.is_none()), sink));
            }
            Err(error) => sink.ended(Err(error)),
        }
    }
    if starts.is_empty() {
        return;
    }
    match muster(starts) {
        Ok(mut crew) => sail(&mut *crew, aboard),
        Err(error) => {
            let why = error.to_string();
            aboard.into_iter().for_each(|(_, sink)| sink.ended(Err(ScienceError::Stack(why.clone()))));
        }
    }
}

/// Until the last of them has ended.
fn sail(crew: &mut dyn Crew, courses: Vec<(Course, Box<dyn MemberSink>)>) {
    let mut aboard = Vec::new();
    for (course, mut sink) in courses {
        let begun = Voyage::begin(course, &*crew.state(aboard.len()), &mut *sink);
        match begun {
            Ok(voyage) => aboard.push(Aboard { voyage, sink }),
            Err(error) => {
                crew.remove(aboard.len());
                sink.ended(Err(error));
            }
        }
    }
    while !aboard.is_empty() {
        let to_next =
            |(place, run): (usize, &Aboard)| run.voyage.course.updates_to_next_event(crew.state(place).step());
        let next = aboard.iter().enumerate().map(to_next).min().unwrap_or(1);
        let losses = crew.advance(next.min(crew.stride()));
        // From the last, so that the places of those before stay.
        for (place, loss) in losses.into_iter().enumerate().rev() {
            let Aboard { voyage, sink } = &mut aboard[place];
            let after = |loss| voyage.after_update(loss, &*crew.state(place), &mut **sink);
            if let Some(how) = loss.and_then(after).transpose() {
                crew.remove(place);
                aboard.remove(place).sink.ended(how);
            }
        }
    }
}

//! Several runs trained together, in one slot.
//!
//! Each has its own segment, state and sink, and leaves when it ends, whatever becomes of the others. What it writes are the
//! bytes that it writes alone.

mod on_machine;

use crate::{
    Executed, Inputs, Models, ScienceError, Sink,
    course::{Course, Due, State, Voyage},
    execute::{execute, execute_on},
    train::{Segment, Start, Trainer},
};
use rayon::prelude::*;
use std::collections::BTreeMap;
use taskvec_kernels::cuda::program::Machine;
use taskvec_model::job::{JobWork, Purpose};

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

/// Makes updates of several runs. Between two strides the state of each is what its resume checkpoint holds, so runs may be
/// at different steps, and one may be taken out at any time.
///
/// [`SideBySide`] on the CPU, or [`on_machine`], which keeps the runs in the memory of a device: while that makes a stride, the
/// host is free to store what the one before has led to.
trait Crew {
    /// Updates between two looks at the sinks, at most: wishes to stop are to be heard soon.
    fn stride(&self) -> u64;

    /// Remembers of a run what a checkpoint of this purpose holds, so that [`Self::state`] can save it, or less, while a
    /// stride is under way.
    fn remember(&mut self, place: usize, purpose: Purpose) -> Result<(), ScienceError>;

    /// Begins a stride: this many updates of every run. Where they can be made while the host does other things, it does not
    /// wait; where it fails, [`Self::finish`] says so.
    fn begin(&mut self, updates: u64);

    /// Ends the stride that was begun: waits for its updates, and says of each run what they gave. A run that fails is not
    /// touched any more.
    fn finish(&mut self) -> Vec<Made>;

    /// A run by its place: as it was before the stride where one is under way, and then to be saved only if remembered.
    fn state(&self, place: usize) -> Box<dyn State + '_>;

    /// Takes a run out, also of a stride that is under way; those after it move up.
    fn remove(&mut self, place: usize);
}

/// What a stride gave of one run.
struct Made {
    /// Before each update that was made.
    losses: Vec<f64>,
    /// Why the next one was not.
    failed: Option<ScienceError>,
}

fn side_by_side(starts: Vec<(Segment<'_>, Start)>) -> Result<Box<dyn Crew + '_>, ScienceError> {
    let trainers = starts.iter().map(|(segment, start)| Trainer::at(segment, start));
    Ok(Box::new(SideBySide { trainers: trainers.collect::<Result<_, _>>()?, begun: 0 }))
}

/// On the CPU: every run has its engine. All go to the pool at once and each gives it its pieces, so a thread that finds no
/// run left helps with the pieces of another's. All cores are its own, so a stride is made when its end is waited for, and
/// until then a run is what it was.
struct SideBySide<'a> {
    trainers: Vec<Trainer<'a>>,
    /// Updates of the stride that was begun.
    begun: u64,
}

/// About a fifth of a second of one core: threads meet after each stride, so it should not be too short either.
const STRIDE_FLOPS: u64 = 20_000_000_000;
/// Small models take longer than their operations say.
const STRIDE_MOST: u64 = 100;

impl Crew for SideBySide<'_> {
    fn stride(&self) -> u64 {
        let most = self.trainers.iter().map(Trainer::flops_per_update).max().unwrap_or(1);
        (STRIDE_FLOPS / most.max(1)).clamp(1, STRIDE_MOST)
    }

    fn remember(&mut self, _: usize, _: Purpose) -> Result<(), ScienceError> {
        Ok(())
    }

    fn begin(&mut self, updates: u64) {
        self.begun = updates;
    }

    fn finish(&mut self) -> Vec<Made> {
        let updates = std::mem::take(&mut self.begun);
        let some = |trainer: &mut Trainer<'_>| {
            let mut made = Made { losses: Vec::with_capacity(updates as usize), failed: None };
            for _ in 0..updates {
                match trainer.advance() {
                    Ok(loss) => made.losses.push(loss),
                    Err(error) => {
                        made.failed = Some(error);
                        break;
                    }
                }
            }
            made
        };
        self.trainers.par_iter_mut().with_max_len(1).map(some).collect()
    }

    fn state(&self, place: usize) -> Box<dyn State + '_> {
        Box::new(&self.trainers[place])
    }

    fn remove(&mut self, place: usize) {
        self.trainers.remove(place);
    }
}

/// What a run of the crew has of its own.
struct Aboard {
    voyage: Voyage,
    sink: Box<dyn MemberSink>,
}

impl Aboard {
    /// What is due of a run after a stride; of one that failed, the rows before that, and then no more.
    fn look(&mut self, made: Made, state: &dyn State) -> Result<Due, ScienceError> {
        match made.failed {
            None => Ok(self.voyage.look(&made.losses, state, &mut *self.sink)),
            Some(error) => {
                self.voyage.rows(&made.losses, state).into_iter().for_each(|row| self.sink.train_loss(row));
                Err(error)
            }
        }
    }
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
    let mut aboard = embarked(crew, courses);
    set_off(crew, aboard.iter().enumerate());
    while !aboard.is_empty() {
        let made = crew.finish();
        let look = |(place, (made, run)): (usize, (Made, &mut Aboard))| run.look(made, &*crew.state(place));
        let mut due: Vec<_> = made.into_iter().zip(&mut aboard).enumerate().map(look).collect();
        go_on(crew, &aboard, &mut due);
        // From the last, so that the places of those before stay.
        for (place, due) in due.into_iter().enumerate().rev() {
            let sink = &mut *aboard[place].sink;
            if let Some(how) = due.and_then(|due| due.settle(&*crew.state(place), sink)).transpose() {
                crew.remove(place);
                aboard.remove(place).sink.ended(how);
            }
        }
    }
}

/// Those that could begin.
fn embarked(crew: &mut dyn Crew, courses: Vec<(Course, Box<dyn MemberSink>)>) -> Vec<Aboard> {
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
    aboard
}

/// Begins the next stride, if any run goes on, before what is due of the last one is settled: what that takes is remembered.
fn go_on(crew: &mut dyn Crew, aboard: &[Aboard], due: &mut [Result<Due, ScienceError>]) {
    let goes_on = |due: &Result<Due, ScienceError>| due.as_ref().is_ok_and(Due::goes_on);
    if !due.iter().any(goes_on) {
        return;
    }
    for (place, due) in due.iter_mut().enumerate() {
        let holds = due.as_ref().ok().and_then(Due::holds);
        if let Some(Err(error)) = holds.map(|purpose| crew.remember(place, purpose)) {
            *due = Err(error);
        }
    }
    set_off(crew, aboard.iter().enumerate().zip(due).filter(|(_, due)| goes_on(due)).map(|(run, _)| run));
}

/// Begins a stride to the next checkpoint of these runs, if there is any of them.
fn set_off<'r>(crew: &mut dyn Crew, runs: impl Iterator<Item = (usize, &'r Aboard)>) {
    let to_next =
        |(place, run): (usize, &Aboard)| run.voyage.course.updates_to_next_checkpoint(crew.state(place).step());
    if let Some(next) = runs.map(to_next).min() {
        crew.begin(next.min(crew.stride()));
    }
}

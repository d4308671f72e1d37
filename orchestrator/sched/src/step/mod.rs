//! One event at a time. Handlers change the state and note effects; only [`step`] hands them out.

mod control;
mod end;
mod rerun;
mod restore;
mod worker;

pub(crate) use restore::restore;

use crate::{
    effect::{Effect, Message},
    event::Event,
    place,
    state::State,
};
use taskvec_model::{
    id::SweepId,
    schedule::{Change, Millis},
    state::{JobState, SweepState},
};

/// Takes in one event. The effects are in order: a message comes after the changes that it depends on. To save commits a
/// caller may take several steps, commit all their changes at once, and then send all their messages.
#[must_use = "what is not persisted and sent has not happened"]
pub fn step(state: &mut State, event: Event, now: Millis) -> Vec<Effect> {
    state.now = now;
    let mut step = Step::new(state);
    match event {
        Event::SweepSubmitted { sweep, jobs } => control::submitted(&mut step, &sweep, jobs),
        Event::Pause(sweep) => control::pause(&mut step, sweep),
        Event::Resume(sweep) => control::resume(&mut step, sweep),
        Event::Cancel(sweep) => control::cancel(&mut step, sweep),
        Event::SetPriority(sweep, priority) => control::set_priority(&mut step, sweep, priority),
        Event::Retry { sweep, jobs } => rerun::sweep(&mut step, &sweep, jobs),
        Event::RetryJob { job, sweep, jobs } => rerun::job(&mut step, job, &sweep, jobs),
        Event::WorkerHello { worker, capacity, attempts } => worker::hello(&mut step, worker, capacity, &attempts),
        Event::WorkerLost(worker) => worker::lost(&mut step, worker),
        Event::WorkerDraining(worker) => worker::draining(&mut step, worker),
        Event::WorkerLeft(worker) => worker::left(&mut step, worker),
        Event::Heartbeat { worker, attempts } => worker::heartbeat(&mut step, worker, &attempts),
        Event::Succeeded { worker, attempt } => worker::succeeded(&mut step, worker, attempt),
        Event::Failed { worker, attempt, failure } => worker::failed(&mut step, worker, attempt, &failure),
        Event::Released { worker, attempt } => worker::released(&mut step, worker, attempt),
        Event::Tick => worker::tick(&mut step),
    }
    step.finish()
}

pub(crate) struct Step<'a> {
    pub state: &'a mut State,
    effects: Vec<Effect>,
}

impl<'a> Step<'a> {
    fn new(state: &'a mut State) -> Self {
        Self { state, effects: Vec::new() }
    }

    pub fn persist(&mut self, change: Change) {
        self.effects.push(Effect::Persist(change));
    }

    pub fn send(&mut self, message: Message) {
        self.effects.push(Effect::Send(message));
    }

    fn finish(mut self) -> Vec<Effect> {
        while let Some(sweep) = self.state.exhausted.pop_first() {
            self.close(sweep);
        }
        place::fill(&mut self);
        self.effects
    }

    /// Ends a sweep if none of its jobs is open any more.
    fn close(&mut self, id: SweepId) {
        let Some(sweep) = self.state.sweeps.get(&id) else { return };
        if sweep.counts.open() > 0 {
            return;
        }
        let state = if sweep.counts.get(JobState::Failed) > 0 {
            SweepState::Failed
        } else if sweep.counts.get(JobState::Cancelled) > 0 {
            SweepState::Cancelled
        } else {
            SweepState::Done
        };
        self.persist(Change::SetSweep { sweep: id, state });
        self.state.forget(id);
    }
}

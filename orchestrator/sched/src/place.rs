//! Which job starts next, and on which worker.
//!
//! Jobs go by priority, then sweep, then job: ids ascend in plan order, so runs finish one after another. A job goes to
//! the worker that ran what it reads, whose cache holds the checkpoint; else to the one with most free slots.

use crate::{
    state::{Phase, State},
    step::Step,
};
use std::cmp::Reverse;
use taskvec_model::{
    id::{AttemptRef, JobId, WorkerId},
    schedule::Change,
};

/// Fills all free slots, as far as there are jobs that could start.
pub(crate) fn fill(step: &mut Step<'_>) {
    while let Some((job, worker)) = next(step.state) {
        start(step, job, worker);
    }
}

fn next(state: &State) -> Option<(JobId, WorkerId)> {
    let (_, sweep) = state.queue.first()?;
    let job = *state.sweeps.get(sweep)?.ready.first()?;
    Some((job, choose(state, job)?))
}

fn choose(state: &State, job: JobId) -> Option<WorkerId> {
    let (Reverse(_), most_free) = *state.free.first()?;
    let needs = &state.jobs.get(&job)?.needs;
    let near = needs.iter().find_map(|need| match state.jobs.get(need)?.phase {
        Phase::Done { worker } => worker.filter(|w| state.workers.get(w).is_some_and(|w| w.open_slots() > 0)),
        _ => None,
    });
    Some(near.unwrap_or(most_free))
}

fn start(step: &mut Step<'_>, id: JobId, worker: WorkerId) {
    let lease = step.state.new_lease(worker);
    let job = step.state.job_mut(id);
    job.attempts += 1;
    let attempt = AttemptRef { job: id, number: job.attempts };
    step.state.set_phase(id, Phase::Running(lease));
    step.persist(Change::Start { attempt, worker });
    step.send(crate::Message::Assign { worker, attempt });
}

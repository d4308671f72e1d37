//! What users ask of sweeps.

use super::{Step, end, restore};
use crate::state::Phase;
use std::collections::BTreeSet;
use taskvec_model::{
    id::{JobId, SweepId},
    schedule::{Change, JobInfo, SweepInfo},
    state::SweepState,
};

pub(super) fn submitted(step: &mut Step<'_>, sweep: &SweepInfo, jobs: Vec<JobInfo>) {
    if !sweep.state.ended() && !step.state.sweeps.contains_key(&sweep.id) {
        restore::take_in(step, sweep, jobs);
    }
}

pub(super) fn pause(step: &mut Step<'_>, id: SweepId) {
    change_state(step, id, SweepState::Active, SweepState::Paused);
}

pub(super) fn resume(step: &mut Step<'_>, id: SweepId) {
    change_state(step, id, SweepState::Paused, SweepState::Active);
}

fn change_state(step: &mut Step<'_>, id: SweepId, from: SweepState, to: SweepState) {
    if step.state.sweep_state(id) == Some(from) {
        step.state.with_sweep(id, |sweep| sweep.state = to);
        step.persist(Change::SetSweep { sweep: id, state: to });
    }
}

pub(super) fn set_priority(step: &mut Step<'_>, id: SweepId, priority: i32) {
    if step.state.sweeps.get(&id).is_some_and(|sweep| sweep.priority != priority) {
        step.state.with_sweep(id, |sweep| sweep.priority = priority);
        step.persist(Change::SetPriority { sweep: id, priority });
    }
}

pub(super) fn cancel(step: &mut Step<'_>, id: SweepId) {
    const REASON: &str = "its sweep was cancelled";
    let Some(sweep) = step.state.sweeps.get(&id) else { return };
    let (running, others): (Vec<JobId>, Vec<JobId>) = sweep
        .jobs
        .iter()
        .copied()
        .filter(|job| step.state.job_state(*job).is_some_and(|state| !state.ended()))
        .partition(|job| step.state.running(*job).is_some());
    for job in running {
        end::cancel(step, job, REASON);
    }
    end::set_jobs(step, BTreeSet::from_iter(others), &Phase::Cancelled, Some(REASON.to_owned()));
    step.persist(Change::SetSweep { sweep: id, state: SweepState::Cancelled });
    step.state.forget(id);
}

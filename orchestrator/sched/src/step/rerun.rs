//! Trying again by hand what failed, was skipped or was cancelled.

use super::{Step, end, restore};
use crate::state::{Phase, State};
use std::collections::BTreeSet;
use taskvec_model::{
    id::{JobId, SweepId},
    schedule::{Change, JobInfo, SweepInfo},
    state::SweepState,
};

pub(super) fn sweep(step: &mut Step<'_>, sweep: &SweepInfo, jobs: Vec<JobInfo>) {
    if reload(step.state, sweep, jobs) {
        let chosen = step.state.sweeps.get(&sweep.id).into_iter().flat_map(|s| &s.jobs).copied();
        let chosen = chosen.filter(|id| step.state.jobs.get(id).is_some_and(|job| job.phase.hopeless())).collect();
        again(step, sweep.id, chosen);
    }
}

pub(super) fn job(step: &mut Step<'_>, id: JobId, sweep: &SweepInfo, jobs: Vec<JobInfo>) {
    if !reload(step.state, sweep, jobs) {
        return;
    }
    match step.state.jobs.get(&id).map(|job| (job.sweep == sweep.id, &job.phase)) {
        Some((true, Phase::BackOff { .. })) => {
            step.state.job_mut(id).failures = 0;
            step.persist(Change::ForgetFailures { jobs: vec![id] });
            step.state.set_phase(id, Phase::Ready);
        }
        Some((true, phase)) if phase.hopeless() => {
            let chosen = around(step.state, id);
            again(step, sweep.id, chosen);
        }
        _ => again(step, sweep.id, BTreeSet::new()),
    }
}

/// True when the sweep is in memory, as it always is until it ends. What was reloaded of a sweep that lives on may be
/// older than what is known here, and is not looked at.
fn reload(state: &mut State, sweep: &SweepInfo, jobs: Vec<JobInfo>) -> bool {
    if !state.sweeps.contains_key(&sweep.id) && sweep.state.ended() {
        restore::admit(state, sweep, jobs);
    }
    state.sweeps.contains_key(&sweep.id)
}

fn again(step: &mut Step<'_>, sweep: SweepId, chosen: BTreeSet<JobId>) {
    let ended = step.state.sweep_state(sweep).is_some_and(SweepState::ended);
    if chosen.is_empty() {
        if ended {
            step.state.forget(sweep);
        }
        return;
    }
    if ended {
        step.state.with_sweep(sweep, |sweep| sweep.state = SweepState::Active);
        step.persist(Change::SetSweep { sweep, state: SweepState::Active });
    }
    let forgiven: Vec<JobId> = chosen.iter().copied().filter(|id| step.state.job_mut(*id).failures > 0).collect();
    for id in &forgiven {
        step.state.job_mut(*id).failures = 0;
    }
    if !forgiven.is_empty() {
        step.persist(Change::ForgetFailures { jobs: forgiven });
    }
    let (ready, waiting) = chosen.into_iter().partition(|id| step.state.job_mut(*id).unfinished == 0);
    end::set_jobs(step, waiting, &Phase::Waiting, None);
    end::set_jobs(step, ready, &Phase::Ready, None);
}

/// The job, all it needs that will not run otherwise, and what was skipped because of these and nothing else.
fn around(state: &State, id: JobId) -> BTreeSet<JobId> {
    let hopeless = |id: &JobId| state.jobs.get(id).is_some_and(|job| job.phase.hopeless());
    let mut chosen = BTreeSet::new();
    let mut above = vec![id];
    while let Some(id) = above.pop() {
        if chosen.insert(id) {
            above.extend(state.jobs.get(&id).into_iter().flat_map(|job| &job.needs).copied().filter(hopeless));
        }
    }
    // Ids ascend along the needs, so the smallest first: when a job's turn comes, all it needs is decided.
    let dependants = |id: &JobId| state.jobs.get(id).map(|job| job.dependants.clone()).unwrap_or_default();
    let mut below: BTreeSet<JobId> = chosen.iter().flat_map(dependants).collect();
    while let Some(id) = below.pop_first() {
        let Some(job) = state.jobs.get(&id) else { continue };
        let freed = job.needs.iter().all(|need| chosen.contains(need) || !hopeless(need));
        if matches!(job.phase, Phase::Skipped { .. }) && freed && chosen.insert(id) {
            below.extend(dependants(&id));
        }
    }
    chosen
}

//! Taking sweeps in from the store: when they are submitted, retried, or found there at the start.

use super::{Step, end};
use crate::{
    effect::Effect,
    state::{Counts, Job, Phase, State, Sweep, Worker},
};
use std::collections::{BTreeMap, BTreeSet};
use taskvec_model::{
    id::{AttemptRef, JobId, SweepId},
    schedule::{Capacity, Change, JobInfo, Snapshot, SweepInfo},
    state::{AttemptState, JobState, WorkerState},
};

/// Fills an empty state.
pub(crate) fn restore(state: &mut State, snapshot: Snapshot) -> Vec<Effect> {
    let mut step = Step::new(state);
    for worker in snapshot.workers.into_iter().filter(|w| w.state != WorkerState::Left) {
        let draining = worker.state == WorkerState::Draining;
        step.state.workers.insert(worker.id, Worker::new(alone(worker.slots), draining));
        if worker.state == WorkerState::Connected {
            step.persist(Change::SetWorker { worker: worker.id, state: WorkerState::Lost });
        }
    }
    let mut jobs: BTreeMap<SweepId, Vec<JobInfo>> = BTreeMap::new();
    for job in snapshot.jobs {
        jobs.entry(job.sweep).or_default().push(job);
    }
    for sweep in snapshot.sweeps.iter().filter(|s| !s.state.ended()) {
        take_in(&mut step, sweep, jobs.remove(&sweep.id).unwrap_or_default());
    }
    step.finish()
}

/// Takes in a sweep that has not ended, and puts right what its jobs' states should be by now.
pub(super) fn take_in(step: &mut Step<'_>, sweep: &SweepInfo, jobs: Vec<JobInfo>) {
    let stored_as_running: Vec<JobId> =
        jobs.iter().filter(|job| job.state == JobState::Running).map(|job| job.id).collect();
    admit(step.state, sweep, jobs);
    for id in stored_as_running {
        if step.state.running(id).is_none() {
            end_orphan(step, id);
        }
    }
    repair(step, sweep.id);
}

/// Nobody can be running this attempt. It does not count as a failure of the job.
fn end_orphan(step: &mut Step<'_>, id: JobId) {
    let Some(job) = step.state.jobs.get(&id) else { return };
    let change = Change::End {
        attempt: AttemptRef { job: id, number: job.attempts },
        how: AttemptState::Expired,
        job_state: JobState::Ready,
        failures: job.failures,
        reason: Some(format!("attempt {} was stored as running, but no worker can have it", job.attempts)),
    };
    step.persist(change);
}

fn repair(step: &mut Step<'_>, sweep: SweepId) {
    let Some(found) = step.state.sweeps.get(&sweep) else { return };
    let (mut early, mut late, mut hopeless) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    for id in &found.jobs {
        let Some(job) = step.state.jobs.get(id) else { continue };
        match &job.phase {
            Phase::Ready if job.unfinished > 0 => _ = early.insert(*id),
            Phase::Waiting if job.unfinished == 0 => _ = late.insert(*id),
            phase if phase.hopeless() => hopeless.push(*id),
            _ => {}
        }
    }
    end::set_jobs(step, early, &Phase::Waiting, None);
    end::set_jobs(step, late, &Phase::Ready, None);
    for id in hopeless {
        end::skip_dependants(step, id);
    }
}

/// Takes a sweep and its jobs into memory as they are stored.
pub(super) fn admit(state: &mut State, sweep: &SweepInfo, jobs: Vec<JobInfo>) {
    let found = Sweep {
        state: sweep.state,
        priority: sweep.priority,
        jobs: BTreeSet::new(),
        counts: Counts::default(),
        ready: BTreeSet::new(),
        packs: BTreeMap::new(),
    };
    state.sweeps.insert(sweep.id, found);
    // Also where there are no jobs at all.
    state.exhausted.insert(sweep.id);
    let ids: Vec<JobId> = jobs.iter().map(|job| job.id).collect();
    for info in jobs {
        let phase = phase_of(state, &info);
        let job = Job {
            sweep: sweep.id,
            run: info.run,
            key: info.key,
            pack: info.pack,
            needs: info.needs,
            dependants: Vec::new(),
            unfinished: 0,
            attempts: info.attempts,
            failures: info.failures,
            phase,
        };
        state.insert_job(info.id, job);
    }
    for id in ids {
        link(state, id);
    }
}

fn phase_of(state: &mut State, info: &JobInfo) -> Phase {
    match info.state {
        JobState::Waiting => Phase::Waiting,
        JobState::Ready => Phase::Ready,
        JobState::Running => running(state, info).unwrap_or(Phase::Ready),
        JobState::Done => Phase::Done { worker: info.slot.map(|slot| slot.worker) },
        JobState::Failed => Phase::Failed { reason: None },
        JobState::Skipped => Phase::Skipped { reason: None },
        JobState::Cancelled => Phase::Cancelled,
    }
}

/// None where this cannot be: nobody runs it, or other work of the same key has the turn.
fn running(state: &mut State, info: &JobInfo) -> Option<Phase> {
    let slot = info.slot?;
    if state.keys.get(&info.key).is_some_and(|twins| twins.turn.is_some()) {
        return None;
    }
    let found = state.workers.entry(slot.worker).or_insert_with(|| Worker::new(alone(0), false));
    let others = found.occupied.keys().filter(|number| **number != slot.number).count() as u32;
    found.capacity.slots = found.capacity.slots.max(others + 1);
    Some(Phase::Running(state.inherited_lease(slot)))
}

/// Until the worker says what it takes.
fn alone(slots: u32) -> Capacity {
    Capacity { slots, stack: 1, stack_bytes: 0 }
}

fn link(state: &mut State, id: JobId) {
    let needs = state.job_mut(id).needs.clone();
    let mut unfinished = 0;
    for need in needs {
        let Some(found) = state.jobs.get_mut(&need) else {
            unfinished += 1;
            continue;
        };
        found.dependants.push(id);
        if !matches!(found.phase, Phase::Done { .. }) {
            unfinished += 1;
        }
    }
    state.job_mut(id).unfinished = unfinished;
}

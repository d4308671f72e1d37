//! How attempts end, and what that means for the jobs around them.

use super::Step;
use crate::{effect::Message, retry::after_failure, state::Phase};
use std::collections::BTreeSet;
use taskvec_model::{
    id::{AttemptRef, JobId, WorkerId},
    job::Retry,
    schedule::Change,
    state::{AttemptState, JobState},
};

/// The job and all others of its key are done; what waited for them becomes ready.
pub(super) fn complete(step: &mut Step<'_>, attempt: AttemptRef, worker: WorkerId) {
    let Some(job) = step.state.jobs.get(&attempt.job) else { return };
    let twins = step.state.keys.get(&job.key).map(|twins| twins.members.clone()).unwrap_or_default();
    step.persist(Change::Complete { attempt, jobs: twins.iter().copied().collect() });
    for id in &twins {
        step.state.set_phase(*id, Phase::Done { worker: Some(worker) });
    }
    let mut ready = BTreeSet::new();
    for id in &twins {
        for dependant in step.state.job_mut(*id).dependants.clone() {
            let job = step.state.job_mut(dependant);
            job.unfinished -= 1;
            if job.unfinished == 0 && job.phase == Phase::Waiting {
                ready.insert(dependant);
            }
        }
    }
    set_jobs(step, ready, &Phase::Ready, None);
}

/// The running attempt failed or its worker was lost. `what` continues "attempt 2 on worker 7 …".
pub(super) fn fail(step: &mut Step<'_>, id: JobId, how: AttemptState, what: &str, retry: Retry) {
    let state = &mut *step.state;
    let (config, now) = (state.config, state.now);
    let worker = state.running(id).map(|(_, worker)| worker);
    let job = state.job_mut(id);
    let attempt = AttemptRef { job: id, number: job.attempts };
    let sequel = after_failure(&config, now, (attempt, worker), what, retry, job.failures);
    job.failures = sequel.failures;
    let job_state = sequel.phase.state();
    state.set_phase(id, sequel.phase);
    step.persist(Change::End { attempt, how, job_state, failures: sequel.failures, reason: Some(sequel.reason) });
    if job_state == JobState::Failed {
        skip_dependants(step, id);
    }
}

/// The attempt was given back unfinished: another may start at once.
pub(super) fn release(step: &mut Step<'_>, id: JobId) {
    end(step, id, AttemptState::Released, Phase::Ready, None);
}

pub(super) fn cancel(step: &mut Step<'_>, id: JobId, reason: &str) {
    let stop = step.state.running(id);
    end(step, id, AttemptState::Cancelled, Phase::Cancelled, Some(reason));
    if let Some((attempt, worker)) = stop {
        stop_if_connected(step, worker, attempt, reason);
    }
}

fn end(step: &mut Step<'_>, id: JobId, how: AttemptState, phase: Phase, reason: Option<&str>) {
    let Some((attempt, _)) = step.state.running(id) else { return };
    let failures = step.state.job_mut(id).failures;
    let job_state = phase.state();
    step.state.set_phase(id, phase);
    step.persist(Change::End { attempt, how, job_state, failures, reason: reason.map(str::to_owned) });
}

/// Everything that needs this job, directly or through others, will never run.
pub(super) fn skip_dependants(step: &mut Step<'_>, root: JobId) {
    let state = step.state.job_mut(root).phase.state();
    let reason = format!("needs job {root}, which {}", past(state));
    let mut skipped = BTreeSet::new();
    let mut open = vec![root];
    while let Some(id) = open.pop() {
        for dependant in step.state.job_mut(id).dependants.clone() {
            if step.state.job_mut(dependant).phase == Phase::Waiting && skipped.insert(dependant) {
                open.push(dependant);
            }
        }
    }
    let phase = Phase::Skipped { reason: Some(reason.clone()) };
    set_jobs(step, skipped, &phase, Some(reason));
}

fn past(state: JobState) -> &'static str {
    match state {
        JobState::Skipped => "was skipped",
        JobState::Cancelled => "was cancelled",
        _ => "failed",
    }
}

/// Moves jobs that have no running attempt.
pub(super) fn set_jobs(step: &mut Step<'_>, jobs: BTreeSet<JobId>, phase: &Phase, reason: Option<String>) {
    if jobs.is_empty() {
        return;
    }
    for id in &jobs {
        step.state.set_phase(*id, phase.clone());
    }
    step.persist(Change::SetJobs { jobs: jobs.into_iter().collect(), state: phase.state(), reason });
}

/// For news that the worker did not ask for.
pub(super) fn stop_if_connected(step: &mut Step<'_>, worker: WorkerId, attempt: AttemptRef, reason: &str) {
    if step.state.workers.get(&worker).is_some_and(|w| w.connected) {
        step.send(Message::Stop { worker, attempt, reason: reason.to_owned() });
    }
}

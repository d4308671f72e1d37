//! What workers say, and what their silence means.

use super::{Step, end};
use crate::{
    effect::{Message, Verdict},
    state::{Phase, Worker},
};
use std::collections::BTreeSet;
use taskvec_model::{
    id::{AttemptRef, JobId, WorkerId},
    job::{Failure, Retry},
    schedule::{Capacity, Change},
    state::{AttemptState, WorkerState},
};

/// The newest connection of a worker counts.
pub(super) fn hello(step: &mut Step<'_>, id: WorkerId, capacity: Capacity, attempts: &[AttemptRef]) {
    let known = step.state.worker_state(id);
    step.state.workers.entry(id).or_insert_with(|| Worker::new(capacity, false));
    step.state.with_worker(id, |worker| worker.connected = true);
    match known {
        Some(WorkerState::Connected) => {}
        Some(WorkerState::Draining) => step.send(Message::Drain { worker: id }),
        _ => step.persist(Change::SetWorker { worker: id, state: WorkerState::Connected }),
    }
    heartbeat(step, id, attempts);
    let listed: BTreeSet<AttemptRef> = attempts.iter().copied().collect();
    for attempt in step.state.attempts_on(id) {
        if !listed.contains(&attempt) {
            let what = "was lost: the worker reconnected without it";
            end::fail(step, attempt.job, AttemptState::Expired, what, Retry::Allowed);
        }
    }
    // What runs there has its slot, whatever the worker says of their number.
    step.state.with_worker(id, |worker| {
        worker.capacity = Capacity { slots: capacity.slots.max(worker.occupied.len() as u32), ..capacity };
    });
}

pub(super) fn lost(step: &mut Step<'_>, id: WorkerId) {
    if step.state.workers.get(&id).is_some_and(|worker| worker.connected) {
        step.state.with_worker(id, |worker| worker.connected = false);
        // A wish to drain outlives the connection.
        if step.state.worker_state(id) == Some(WorkerState::Lost) {
            step.persist(Change::SetWorker { worker: id, state: WorkerState::Lost });
        }
    }
}

pub(super) fn draining(step: &mut Step<'_>, id: WorkerId) {
    let Some(worker) = step.state.workers.get(&id).filter(|worker| !worker.draining) else { return };
    let connected = worker.connected;
    step.state.with_worker(id, |worker| worker.draining = true);
    step.persist(Change::SetWorker { worker: id, state: WorkerState::Draining });
    if connected {
        step.send(Message::Drain { worker: id });
    }
}

pub(super) fn left(step: &mut Step<'_>, id: WorkerId) {
    if !step.state.workers.contains_key(&id) {
        return;
    }
    step.state.with_worker(id, |worker| worker.connected = false);
    for attempt in step.state.attempts_on(id) {
        end::release(step, attempt.job);
    }
    step.state.workers.remove(&id);
    step.persist(Change::SetWorker { worker: id, state: WorkerState::Left });
}

/// Renews what the worker rightly runs and stops the rest.
pub(super) fn heartbeat(step: &mut Step<'_>, worker: WorkerId, attempts: &[AttemptRef]) {
    let mut renewed = Vec::new();
    for attempt in attempts {
        match step.state.current(worker, *attempt).map(|_| ()) {
            Ok(()) if step.state.confirm(attempt.job) => renewed.push(*attempt),
            Ok(()) => {}
            Err(reason) => step.send(Message::Stop { worker, attempt: *attempt, reason }),
        }
    }
    if !renewed.is_empty() {
        step.persist(Change::Renew { attempts: renewed });
    }
}

pub(super) fn succeeded(step: &mut Step<'_>, worker: WorkerId, attempt: AttemptRef) {
    answer(step, worker, attempt, |step| end::complete(step, attempt, worker));
}

pub(super) fn failed(step: &mut Step<'_>, worker: WorkerId, attempt: AttemptRef, failure: &Failure) {
    let what = format!("failed: {}", failure.reason);
    answer(step, worker, attempt, |step| end::fail(step, attempt.job, AttemptState::Failed, &what, failure.retry));
}

pub(super) fn released(step: &mut Step<'_>, worker: WorkerId, attempt: AttemptRef) {
    answer(step, worker, attempt, |step| end::release(step, attempt.job));
}

/// Takes an outcome from the attempt that holds the lease, and from no other.
fn answer(step: &mut Step<'_>, worker: WorkerId, attempt: AttemptRef, take: impl FnOnce(&mut Step<'_>)) {
    let verdict = match step.state.current(worker, attempt).map(|_| ()) {
        Ok(()) => {
            // It waited behind a stalled server, and the store takes nothing under a lease that is over.
            if step.state.overdue(attempt.job) {
                heartbeat(step, worker, &[attempt]);
            }
            take(step);
            Verdict::Accepted
        }
        Err(reason) => Verdict::Refused(reason),
    };
    step.send(Message::Answer { worker, attempt, verdict });
}

/// Ends the leases and back-offs whose time has come.
pub(super) fn tick(step: &mut Step<'_>) {
    for id in step.state.due(step.state.now) {
        match step.state.jobs.get(&id).map(|job| &job.phase) {
            Some(Phase::Running(_)) => expire(step, id),
            Some(Phase::BackOff { .. }) => step.state.set_phase(id, Phase::Ready),
            _ => {}
        }
    }
}

fn expire(step: &mut Step<'_>, id: JobId) {
    let Some((attempt, worker)) = step.state.running(id) else { return };
    let what = "was lost: no heartbeat until its lease ran out";
    end::fail(step, id, AttemptState::Expired, what, Retry::Allowed);
    end::stop_if_connected(step, worker, attempt, "its lease ran out");
}

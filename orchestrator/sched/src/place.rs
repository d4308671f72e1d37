//! Which job starts next, on which worker, and with which others.
//!
//! Jobs go by priority, then sweep, then job: ids ascend in plan order, so runs finish one after another. A job goes to
//! the worker that ran what it reads, whose cache holds the checkpoint; else to the one with most free slots. Where the worker
//! takes packs, the next jobs that can be computed together with it start in the same slot; but slots come before packs: as
//! many jobs as there are free slots get one each, and more are shared out evenly. Runs that have begun and lag behind others
//! of their shape go first there, so that runs which fell out of step (one had to be tried again) come together again.

use crate::{
    state::{Job, Phase, State},
    step::Step,
};
use std::{cmp::Reverse, collections::BTreeSet};
use taskvec_model::{
    id::{AttemptRef, JobId, SweepId, WorkerId},
    pack::PackKey,
    schedule::{Change, SlotRef},
};

/// Fills all free slots, as far as there are jobs that could start.
pub(crate) fn fill(step: &mut Step<'_>) {
    while let Some((jobs, slot)) = next(step.state) {
        start(step, jobs, slot);
    }
}

fn next(state: &State) -> Option<(Vec<JobId>, SlotRef)> {
    let (_, sweep) = state.queue.first()?;
    let mut job = *state.sweeps.get(sweep)?.ready.first()?;
    let mut worker = choose(state, job)?;
    if room(state, job, worker) > 1 {
        job = hindmost(state, job);
        worker = choose(state, job)?;
    }
    let number = state.workers.get(&worker)?.free_slot();
    Some((pack(state, job, worker), SlotRef { worker, number }))
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

/// How many jobs like this one a slot of the worker takes.
fn room(state: &State, job: JobId, worker: WorkerId) -> u32 {
    let key = state.jobs.get(&job).and_then(|job| job.pack);
    state.workers.get(&worker).map_or(1, |worker| worker.capacity.room(key))
}

/// The first of the jobs that lag furthest behind the best one: of the same shape and priority, at an earlier segment, and of a
/// run that has begun. The best itself where there is none.
fn hindmost(state: &State, best: JobId) -> JobId {
    let Some((Reverse(priority), _)) = state.queue.first() else { return best };
    let Some(key) = state.jobs.get(&best).and_then(|job| job.pack) else { return best };
    let earlier = PackKey { from: 0, to: 0, ..key }..key;
    let sweeps = state.queue.range(..=(Reverse(*priority), SweepId(i64::MAX)));
    let ready = sweeps.filter_map(|(_, sweep)| state.sweeps.get(sweep)).flat_map(|s| s.packs.range(earlier.clone()));
    let begun = |id: &&JobId| state.jobs.get(id).is_some_and(Job::begun);
    let lagging = ready.filter_map(|(key, jobs)| Some((key, jobs.iter().find(begun)?)));
    lagging.min_by_key(|(key, _)| **key).map_or(best, |(_, job)| *job)
}

/// The job and those that start with it in a slot of this worker.
fn pack(state: &State, first: JobId, worker: WorkerId) -> Vec<JobId> {
    let most = room(state, first, worker);
    let Some(key) = state.jobs.get(&first).filter(|job| most > 1 && job.sociable()).and_then(|job| job.pack) else {
        return vec![first];
    };
    let room = |worker: &WorkerId| state.workers.get(worker).map_or(1, |w| w.capacity.room(Some(key)));
    let open: Vec<(u32, u32)> = state.free.iter().map(|(Reverse(slots), worker)| (*slots, room(worker))).collect();
    let mut jobs = alike(state, key, first, taken(&open, u32::MAX));
    jobs.truncate(most.min(share(&open, jobs.len() as u64)) as usize);
    jobs
}

/// The given job and others of its kind that could start at the same time, in their order, `most` in all; of the same work
/// only one could.
fn alike(state: &State, key: PackKey, first: JobId, most: u64) -> Vec<JobId> {
    let in_order = state.queue.iter().filter_map(|(_, sweep)| state.sweeps.get(sweep)?.packs.get(&key)).flatten();
    let mut works = BTreeSet::new();
    let joins = |id: &JobId| state.jobs.get(id).is_some_and(|job| job.sociable() && works.insert(job.key));
    std::iter::once(first)
        .chain(in_order.copied())
        .filter(joins)
        .take(usize::try_from(most).unwrap_or(usize::MAX))
        .collect()
}

/// Jobs that go into the open slots, given with the room of each, with at most `each` in one.
fn taken(open: &[(u32, u32)], each: u32) -> u64 {
    open.iter().map(|(slots, room)| u64::from(*slots) * u64::from(*room.min(&each))).sum()
}

/// How many in each slot are enough for all of `jobs`, or all that there is room for.
fn share(open: &[(u32, u32)], jobs: u64) -> u32 {
    let most = open.iter().map(|(_, room)| *room).max().unwrap_or(1);
    (1..most).find(|each| taken(open, *each) >= jobs).unwrap_or(most)
}

fn start(step: &mut Step<'_>, jobs: Vec<JobId>, slot: SlotRef) {
    let mut attempts = Vec::with_capacity(jobs.len());
    for id in jobs {
        let lease = step.state.new_lease(slot);
        let job = step.state.job_mut(id);
        job.attempts += 1;
        let attempt = AttemptRef { job: id, number: job.attempts };
        step.state.set_phase(id, Phase::Running(lease));
        step.persist(Change::Start { attempt, slot });
        attempts.push(attempt);
    }
    step.send(crate::Message::Assign { worker: slot.worker, attempts });
}

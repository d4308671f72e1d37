//! The one place where jobs and workers change, so that counters, queues and deadlines always agree with them.

use crate::state::{Job, Phase, State, Sweep, Twins, Worker};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};
use taskvec_model::{
    id::{JobId, JobKey, SweepId, WorkerId},
    pack::PackKey,
    schedule::SlotRef,
    state::SweepState,
};

impl State {
    pub(crate) fn insert_job(&mut self, id: JobId, job: Job) {
        if let Some(sweep) = self.sweeps.get_mut(&job.sweep) {
            sweep.jobs.insert(id);
            self.jobs.insert(id, job);
            self.index(id);
        }
    }

    /// Moves a job to another phase.
    pub(crate) fn set_phase(&mut self, id: JobId, phase: Phase) {
        if self.jobs.contains_key(&id) {
            self.unindex(id);
            self.job_mut(id).phase = phase;
            self.index(id);
        }
    }

    /// Jobs are only removed with their sweep, and ids only come from the indexes kept here.
    pub(crate) fn job_mut(&mut self, id: JobId) -> &mut Job {
        self.jobs.get_mut(&id).expect("an indexed job is in memory")
    }

    fn index(&mut self, id: JobId) {
        let Some(job) = self.jobs.get(&id) else { return };
        let (sweep, key, state) = (job.sweep, job.key, job.phase.state());
        let (deadline, slot) = (job.phase.deadline(), slot_of(&job.phase));
        if let Some(found) = self.sweeps.get_mut(&sweep) {
            *found.counts.slot(state) += 1;
            if found.counts.open() == 0 {
                self.exhausted.insert(sweep);
            }
        }
        if let Some(at) = deadline {
            self.deadlines.insert((at, id));
        }
        if let Some(SlotRef { worker, number }) = slot {
            self.with_worker(worker, |w| {
                w.occupied.entry(number).or_default().insert(id);
            });
        }
        if state.ended() {
            return;
        }
        let twins = self.keys.entry(key).or_default();
        twins.members.insert(id);
        if deadline.is_some() {
            twins.turn = Some(id);
            self.refresh_twins(key);
        } else {
            self.refresh_ready(id);
        }
    }

    fn unindex(&mut self, id: JobId) {
        let Some(job) = self.jobs.get(&id) else { return };
        let (sweep, key, pack, state) = (job.sweep, job.key, job.pack, job.phase.state());
        let (deadline, slot) = (job.phase.deadline(), slot_of(&job.phase));
        if let Some(at) = deadline {
            self.deadlines.remove(&(at, id));
        }
        if let Some(SlotRef { worker, number }) = slot {
            self.with_worker(worker, |w| leave(&mut w.occupied, number, id));
        }
        if let Some(found) = self.sweeps.get_mut(&sweep) {
            *found.counts.slot(state) -= 1;
            if found.set_ready(id, pack, false) {
                self.refresh_sweep(sweep);
            }
        }
        let Some(twins) = self.keys.get_mut(&key) else { return };
        twins.members.remove(&id);
        if twins.turn == Some(id) {
            twins.turn = None;
            self.refresh_twins(key);
        }
        if self.keys.get(&key).is_some_and(|twins| twins.members.is_empty()) {
            self.keys.remove(&key);
        }
    }

    /// Someone took or left the turn of this key.
    fn refresh_twins(&mut self, key: JobKey) {
        let members: Vec<JobId> = self.keys.get(&key).into_iter().flat_map(|t| t.members.iter().copied()).collect();
        for id in members {
            self.refresh_ready(id);
        }
    }

    fn refresh_ready(&mut self, id: JobId) {
        let Some(job) = self.jobs.get(&id) else { return };
        let turn = self.keys.get(&job.key).and_then(|twins: &Twins| twins.turn);
        let could_start = job.phase == Phase::Ready && turn.is_none();
        let (sweep, pack) = (job.sweep, job.pack);
        let Some(found) = self.sweeps.get_mut(&sweep) else { return };
        if found.set_ready(id, pack, could_start) {
            self.refresh_sweep(sweep);
        }
    }

    fn refresh_sweep(&mut self, id: SweepId) {
        let Some(sweep) = self.sweeps.get(&id) else { return };
        let place = (Reverse(sweep.priority), id);
        if sweep.state == SweepState::Active && !sweep.ready.is_empty() {
            self.queue.insert(place);
        } else {
            self.queue.remove(&place);
        }
    }

    /// Changes a sweep's state or priority.
    pub(crate) fn with_sweep(&mut self, id: SweepId, change: impl FnOnce(&mut Sweep)) {
        if let Some(sweep) = self.sweeps.get_mut(&id) {
            self.queue.remove(&(Reverse(sweep.priority), id));
            change(sweep);
            self.refresh_sweep(id);
        }
    }

    pub(crate) fn with_worker(&mut self, id: WorkerId, change: impl FnOnce(&mut Worker)) {
        if let Some(worker) = self.workers.get_mut(&id) {
            self.free.remove(&(Reverse(worker.open_slots()), id));
            change(worker);
            if worker.open_slots() > 0 {
                self.free.insert((Reverse(worker.open_slots()), id));
            }
        }
    }

    /// Drops a sweep that has ended.
    pub(crate) fn forget(&mut self, id: SweepId) {
        let jobs = self.sweeps.get(&id).map(|sweep| sweep.jobs.clone()).unwrap_or_default();
        for job in jobs {
            self.unindex(job);
            self.jobs.remove(&job);
        }
        self.sweeps.remove(&id);
    }
}

impl Sweep {
    /// Notes whether a job could start. True: that is a change.
    fn set_ready(&mut self, id: JobId, pack: Option<PackKey>, could_start: bool) -> bool {
        match pack {
            Some(key) if could_start => _ = self.packs.entry(key).or_default().insert(id),
            Some(key) => leave(&mut self.packs, key, id),
            None => {}
        }
        if could_start { self.ready.insert(id) } else { self.ready.remove(&id) }
    }
}

/// Takes a job out of its group; an empty group is not kept.
fn leave<K: Ord>(groups: &mut BTreeMap<K, BTreeSet<JobId>>, key: K, job: JobId) {
    if let Some(group) = groups.get_mut(&key) {
        group.remove(&job);
        if group.is_empty() {
            groups.remove(&key);
        }
    }
}

fn slot_of(phase: &Phase) -> Option<SlotRef> {
    match phase {
        Phase::Running(lease) => Some(lease.slot),
        _ => None,
    }
}

//! What must always hold between two steps. Slow: for tests and for hunting a fault.

use crate::state::{Counts, Job, Phase, State};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};
use taskvec_model::{
    id::{JobId, SweepId, WorkerId},
    pack::PackKey,
    schedule::{Millis, SlotRef},
    state::{JobState, SweepState},
};

macro_rules! ensure {
    ($holds:expr, $($what:tt)+) => {
        if !$holds {
            return Err(format!($($what)+));
        }
    };
}

impl State {
    /// The first broken invariant, in words.
    pub fn check(&self) -> Result<(), String> {
        self.jobs.iter().try_for_each(|(id, job)| self.check_job(*id, job))?;
        self.check_sweeps()?;
        self.check_workers()?;
        self.check_keys()?;
        let deadlines: BTreeSet<(Millis, JobId)> =
            self.jobs.iter().filter_map(|(id, job)| Some((job.phase.deadline()?, *id))).collect();
        ensure!(self.deadlines == deadlines, "deadlines are {:?}, not {deadlines:?}", self.deadlines);
        ensure!(self.exhausted.is_empty(), "sweeps {:?} were not looked at", self.exhausted);
        let idle = self.free.first().zip(self.queue.first());
        ensure!(idle.is_none(), "a slot is free and a job could start: {idle:?}");
        Ok(())
    }

    fn check_job(&self, id: JobId, job: &Job) -> Result<(), String> {
        let state = job.phase.state();
        let needs: Vec<&Job> = job.needs.iter().filter_map(|need| self.jobs.get(need)).collect();
        let done = needs.iter().filter(|need| matches!(need.phase, Phase::Done { .. })).count();
        let unfinished = job.needs.len() - done;
        ensure!(job.unfinished == unfinished, "job {id}: counts {} unfinished needs of {unfinished}", job.unfinished);
        ensure!(state != JobState::Waiting || unfinished > 0, "job {id} waits for nothing");
        let started = matches!(state, JobState::Ready | JobState::Running);
        ensure!(!started || unfinished == 0, "job {id} is {state} with {unfinished} unfinished needs");
        let doomed = needs.iter().any(|need| need.phase.hopeless());
        ensure!(state.ended() || !doomed, "job {id} is {state}, and a job it needs will never be done");
        for need in &needs {
            ensure!(need.sweep == job.sweep, "job {id} needs a job of another sweep");
            ensure!(need.dependants.contains(&id), "job {id} is not told when a job it needs is done");
        }
        ensure!(state != JobState::Running || job.attempts > 0, "job {id} runs without an attempt");
        ensure!(self.sweeps.contains_key(&job.sweep), "job {id} has lost its sweep {}", job.sweep);
        Ok(())
    }

    fn check_sweeps(&self) -> Result<(), String> {
        type Packs = BTreeMap<PackKey, BTreeSet<JobId>>;
        let mut jobs: BTreeMap<SweepId, (BTreeSet<JobId>, Counts, BTreeSet<JobId>, Packs)> = BTreeMap::new();
        for (id, job) in &self.jobs {
            let (all, counts, ready, packs) = jobs.entry(job.sweep).or_default();
            all.insert(*id);
            *counts.slot(job.phase.state()) += 1;
            if job.phase == Phase::Ready && self.keys.get(&job.key).is_some_and(|twins| twins.turn.is_none()) {
                ready.insert(*id);
                if let Some(key) = job.pack {
                    packs.entry(key).or_default().insert(*id);
                }
            }
        }
        let mut queue = BTreeSet::new();
        for (id, sweep) in &self.sweeps {
            let (all, counts, ready, packs) = jobs.remove(id).unwrap_or_default();
            ensure!(!sweep.state.ended(), "sweep {id} is {} and still in memory", sweep.state);
            ensure!(counts.open() > 0, "sweep {id} is {}, but all its jobs have ended", sweep.state);
            ensure!(sweep.jobs == all, "sweep {id} has lost jobs: {:?}, not {all:?}", sweep.jobs);
            ensure!(sweep.counts == counts, "sweep {id} counts {:?}, not {counts:?}", sweep.counts);
            ensure!(sweep.ready == ready, "sweep {id}: could start {:?}, not {ready:?}", sweep.ready);
            ensure!(sweep.packs == packs, "sweep {id}: could share slots {:?}, not {packs:?}", sweep.packs);
            if sweep.state == SweepState::Active && !ready.is_empty() {
                queue.insert((Reverse(sweep.priority), *id));
            }
        }
        ensure!(self.queue == queue, "queue is {:?}, not {queue:?}", self.queue);
        Ok(())
    }

    fn check_workers(&self) -> Result<(), String> {
        let mut running: BTreeMap<WorkerId, BTreeMap<u32, BTreeSet<JobId>>> = BTreeMap::new();
        for (id, job) in &self.jobs {
            if let Phase::Running(lease) = &job.phase {
                let SlotRef { worker, number } = lease.slot;
                ensure!(self.workers.contains_key(&worker), "job {id} runs on no worker: {worker}");
                running.entry(worker).or_default().entry(number).or_default().insert(*id);
            }
        }
        let mut free = BTreeSet::new();
        for (id, worker) in &self.workers {
            let packs = running.remove(id).unwrap_or_default();
            let slots = worker.capacity.slots;
            ensure!(worker.occupied == packs, "worker {id} runs {:?}, not {packs:?}", worker.occupied);
            ensure!(packs.len() <= slots as usize, "worker {id} runs {packs:?} in {slots} slots");
            for jobs in packs.values().filter(|jobs| jobs.len() > 1) {
                let keys: BTreeSet<_> = jobs.iter().map(|job| self.jobs[job].pack).collect();
                ensure!(keys.len() == 1 && !keys.contains(&None), "jobs {jobs:?} cannot share a slot, and do");
            }
            if worker.open_slots() > 0 {
                free.insert((Reverse(worker.open_slots()), *id));
            }
        }
        ensure!(self.free == free, "free slots are {:?}, not {free:?}", self.free);
        Ok(())
    }

    fn check_keys(&self) -> Result<(), String> {
        let mut members: BTreeMap<_, BTreeSet<JobId>> = BTreeMap::new();
        let mut turns: BTreeMap<_, JobId> = BTreeMap::new();
        for (id, job) in self.jobs.iter().filter(|(_, job)| !job.phase.state().ended()) {
            members.entry(job.key).or_default().insert(*id);
            if job.phase.deadline().is_some() {
                let other = turns.insert(job.key, *id);
                ensure!(other.is_none(), "jobs {id} and {other:?} have the turn for the same work");
            }
        }
        ensure!(self.keys.len() == members.len(), "{} keys, not {}", self.keys.len(), members.len());
        for (key, twins) in &self.keys {
            ensure!(members.get(key) == Some(&twins.members), "twins of {key}: {:?}", twins.members);
            ensure!(turns.get(key).copied() == twins.turn, "turn of {key}: {:?}", twins.turn);
        }
        Ok(())
    }
}

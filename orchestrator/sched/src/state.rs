//! What the scheduler knows: sweeps that have not ended, their jobs, and the workers.

use crate::{effect::Effect, step};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};
use taskvec_model::{
    id::{AttemptRef, JobId, JobKey, RunId, SweepId, WorkerId},
    pack::PackKey,
    schedule::{Capacity, JobInfo, Millis, SlotRef, Snapshot, SweepInfo, WorkerInfo},
    state::{JobState, SweepState, WorkerState},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// How long an attempt lasts without a heartbeat.
    pub lease: Millis,
    /// Attempts of a job that may fail or expire; at the last of them the job has failed.
    pub retry_limit: u32,
    /// The pause after the first failure; doubles with each further one.
    pub backoff_base: Millis,
    pub backoff_max: Millis,
}

impl Default for Config {
    fn default() -> Self {
        Self { lease: 20_000, retry_limit: 3, backoff_base: 1_000, backoff_max: 60_000 }
    }
}

/// The scheduler's whole memory. Sweeps that have ended are not in it.
#[derive(Clone, Debug)]
pub struct State {
    pub(crate) config: Config,
    /// The time of the newest event.
    pub(crate) now: Millis,
    pub(crate) sweeps: BTreeMap<SweepId, Sweep>,
    pub(crate) jobs: BTreeMap<JobId, Job>,
    /// Connected and lost workers; not those that left.
    pub(crate) workers: BTreeMap<WorkerId, Worker>,
    /// Jobs that have not ended, by content key.
    pub(crate) keys: BTreeMap<JobKey, Twins>,
    /// Active sweeps with jobs that could start now, best first.
    pub(crate) queue: BTreeSet<(Reverse<i32>, SweepId)>,
    /// Workers that can take a job, most free slots first.
    pub(crate) free: BTreeSet<(Reverse<u32>, WorkerId)>,
    /// When leases and back-offs end.
    pub(crate) deadlines: BTreeSet<(Millis, JobId)>,
    /// Sweeps whose last job has just ended; empty between steps.
    pub(crate) exhausted: BTreeSet<SweepId>,
}

#[derive(Clone, Debug)]
pub(crate) struct Sweep {
    pub state: SweepState,
    pub priority: i32,
    pub jobs: BTreeSet<JobId>,
    pub counts: Counts,
    /// Jobs that could start now if the sweep is active. Plan order is id order, so its first is the next.
    pub ready: BTreeSet<JobId>,
    /// Those of them that can share a slot, by what they have in common.
    pub packs: BTreeMap<PackKey, BTreeSet<JobId>>,
}

#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub sweep: SweepId,
    pub run: RunId,
    pub key: JobKey,
    pub pack: Option<PackKey>,
    pub needs: Vec<JobId>,
    /// Jobs that need this one.
    pub dependants: Vec<JobId>,
    /// How many of `needs` are not done.
    pub unfinished: usize,
    /// Number of the newest attempt.
    pub attempts: i32,
    pub failures: u32,
    pub phase: Phase,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Waiting,
    Ready,
    /// Ready, but not before `until`.
    BackOff {
        until: Millis,
        reason: String,
    },
    Running(Lease),
    Done {
        /// Where it ran, if that is known: its checkpoints are cached there.
        worker: Option<WorkerId>,
    },
    /// The reason is not known after a restart; the store has it.
    Failed {
        reason: Option<String>,
    },
    Skipped {
        reason: Option<String>,
    },
    Cancelled,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    pub slot: SlotRef,
    /// Unknown after a restart.
    pub since: Option<Millis>,
    /// When the store last heard of it; unknown after a restart.
    pub renewed: Option<Millis>,
    pub ends: Millis,
}

#[derive(Clone, Debug)]
pub(crate) struct Worker {
    pub capacity: Capacity,
    pub connected: bool,
    pub draining: bool,
    /// What runs in each slot that is taken.
    pub occupied: BTreeMap<u32, BTreeSet<JobId>>,
}

/// Jobs of one content key that have not ended. One at a time has the turn.
#[derive(Clone, Debug, Default)]
pub(crate) struct Twins {
    pub members: BTreeSet<JobId>,
    /// The one that runs or is in its back-off; the others wait for it.
    pub turn: Option<JobId>,
}

/// Jobs of a sweep by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts([u32; 7]);

impl Counts {
    pub fn get(&self, state: JobState) -> u32 {
        self.0[state as usize]
    }

    /// In the order of `JobState::ALL`.
    pub fn all(&self) -> [u32; 7] {
        self.0
    }

    /// Jobs that have not ended.
    pub fn open(&self) -> u32 {
        JobState::ALL.iter().filter(|s| !s.ended()).map(|s| self.get(*s)).sum()
    }

    pub(crate) fn slot(&mut self, state: JobState) -> &mut u32 {
        &mut self.0[state as usize]
    }
}

impl Phase {
    pub fn state(&self) -> JobState {
        match self {
            Self::Waiting => JobState::Waiting,
            Self::Ready | Self::BackOff { .. } => JobState::Ready,
            Self::Running(_) => JobState::Running,
            Self::Done { .. } => JobState::Done,
            Self::Failed { .. } => JobState::Failed,
            Self::Skipped { .. } => JobState::Skipped,
            Self::Cancelled => JobState::Cancelled,
        }
    }

    pub fn deadline(&self) -> Option<Millis> {
        match self {
            Self::BackOff { until, .. } => Some(*until),
            Self::Running(lease) => Some(lease.ends),
            _ => None,
        }
    }

    /// Ended, and what needs this job can never run.
    pub fn hopeless(&self) -> bool {
        matches!(self, Self::Failed { .. } | Self::Skipped { .. } | Self::Cancelled)
    }
}

impl Worker {
    /// One that is not connected and runs nothing.
    pub fn new(capacity: Capacity, draining: bool) -> Self {
        Self { capacity, connected: false, draining, occupied: BTreeMap::new() }
    }

    /// Slots that a job may be put in now. One in which part of a pack has ended is not among them: whoever came later would
    /// have to wait for the others' next step, and leave the slot no earlier than they.
    pub fn open_slots(&self) -> u32 {
        if self.connected && !self.draining {
            self.capacity.slots.saturating_sub(self.occupied.len() as u32)
        } else {
            0
        }
    }

    /// The first that nothing runs in.
    pub fn free_slot(&self) -> u32 {
        (0..).find(|slot| !self.occupied.contains_key(slot)).unwrap_or(u32::MAX)
    }

    pub fn state(&self) -> WorkerState {
        match (self.draining, self.connected) {
            (true, _) => WorkerState::Draining,
            (false, true) => WorkerState::Connected,
            (false, false) => WorkerState::Lost,
        }
    }
}

impl State {
    /// Goes on from the store. Every running attempt has its full lease again, and every worker is away until it says
    /// Hello. The effects repair what the store cannot know (connections) or should not hold (a sweep that is complete
    /// but not marked); they are to be committed like those of a step.
    pub fn new(config: Config, snapshot: Snapshot, now: Millis) -> (Self, Vec<Effect>) {
        let mut state = Self {
            config,
            now,
            sweeps: BTreeMap::new(),
            jobs: BTreeMap::new(),
            workers: BTreeMap::new(),
            keys: BTreeMap::new(),
            queue: BTreeSet::new(),
            free: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            exhausted: BTreeSet::new(),
        };
        let effects = step::restore(&mut state, snapshot);
        (state, effects)
    }

    /// None: not in memory, since its sweep has ended or it does not exist.
    pub fn job_state(&self, job: JobId) -> Option<JobState> {
        Some(self.jobs.get(&job)?.phase.state())
    }

    /// None: it has ended or does not exist.
    pub fn sweep_state(&self, sweep: SweepId) -> Option<SweepState> {
        Some(self.sweeps.get(&sweep)?.state)
    }

    /// None: it left or never came.
    pub fn worker_state(&self, worker: WorkerId) -> Option<WorkerState> {
        Some(self.workers.get(&worker)?.state())
    }

    /// The sweep's jobs by state; none where it has ended.
    pub fn counts(&self, sweep: SweepId) -> Option<Counts> {
        Some(self.sweeps.get(&sweep)?.counts)
    }

    /// The running attempt of a job, and where.
    pub fn running(&self, job: JobId) -> Option<(AttemptRef, WorkerId)> {
        let found = self.jobs.get(&job)?;
        match &found.phase {
            Phase::Running(lease) => Some((AttemptRef { job, number: found.attempts }, lease.slot.worker)),
            _ => None,
        }
    }

    /// The attempts that run on a worker.
    pub fn attempts_on(&self, worker: WorkerId) -> Vec<AttemptRef> {
        let jobs: BTreeSet<JobId> =
            self.workers.get(&worker).into_iter().flat_map(|w| w.occupied.values().flatten()).copied().collect();
        jobs.into_iter().map(|job| AttemptRef { job, number: self.jobs[&job].attempts }).collect()
    }

    /// When the next `Event::Tick` is due.
    pub fn next_deadline(&self) -> Option<Millis> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// What the store should hold after all effects so far: the input of [`State::new`].
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            sweeps: self
                .sweeps
                .iter()
                .map(|(id, s)| SweepInfo { id: *id, state: s.state, priority: s.priority })
                .collect(),
            jobs: self.jobs.iter().map(|(id, job)| job.info(*id)).collect(),
            workers: self
                .workers
                .iter()
                .map(|(id, w)| WorkerInfo { id: *id, slots: w.capacity.slots, state: w.state() })
                .collect(),
        }
    }
}

impl Job {
    /// May it share a slot with others? One that has failed is tried alone: it may have been its fault, or theirs.
    pub(crate) fn sociable(&self) -> bool {
        self.pack.is_some() && self.failures == 0
    }

    /// Was its run under way before?
    pub(crate) fn begun(&self) -> bool {
        self.attempts > 0 || self.pack.is_some_and(|key| key.from > 0)
    }

    fn info(&self, id: JobId) -> JobInfo {
        JobInfo {
            id,
            sweep: self.sweep,
            run: self.run,
            key: self.key,
            pack: self.pack,
            needs: self.needs.clone(),
            state: self.phase.state(),
            attempts: self.attempts,
            failures: self.failures,
            slot: match &self.phase {
                Phase::Running(lease) => Some(lease.slot),
                _ => None,
            },
        }
    }
}

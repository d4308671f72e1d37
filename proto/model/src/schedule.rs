//! What the scheduler and the store say to each other: the snapshot it starts from and the changes it decides.

use crate::{
    id::{AttemptRef, JobId, JobKey, RunId, SweepId, WorkerId},
    pack::PackKey,
    state::{AttemptState, JobState, SweepState, WorkerState},
};

/// Milliseconds of the server's clock. Only differences mean anything.
pub type Millis = u64;

/// All that the scheduler must know to go on after a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Sweeps that have not ended.
    pub sweeps: Vec<SweepInfo>,
    /// All jobs of those sweeps, whatever their state.
    pub jobs: Vec<JobInfo>,
    /// Workers that have not left.
    pub workers: Vec<WorkerInfo>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SweepInfo {
    pub id: SweepId,
    pub state: SweepState,
    /// Higher goes first; 0 unless said otherwise.
    pub priority: i32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobInfo {
    pub id: JobId,
    pub sweep: SweepId,
    pub run: RunId,
    pub key: JobKey,
    /// Jobs with an equal one may share a slot; none shares its own.
    pub pack: Option<PackKey>,
    /// Jobs whose results it reads.
    pub needs: Vec<JobId>,
    pub state: JobState,
    /// Number of the newest attempt, 0 before the first.
    pub attempts: i32,
    /// Attempts that failed or expired since the job was submitted or last retried by hand.
    pub failures: u32,
    /// Where the running attempt is, if there is one.
    pub slot: Option<SlotRef>,
}

/// A slot of a worker, counted from 0. Attempts that run in one slot were assigned together, as a pack; it is free again
/// when the last of them has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SlotRef {
    pub worker: WorkerId,
    pub number: u32,
}

/// How much a worker takes at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    pub slots: u32,
    /// Runs in one slot; 1: it takes no packs.
    pub stack: u32,
    /// Bytes that the runs of one slot may take together, by [`PackKey::bytes`]. One alone may take more.
    pub stack_bytes: u64,
}

impl Capacity {
    /// Jobs of this kind that one slot takes.
    pub fn room(&self, pack: Option<PackKey>) -> u32 {
        let by_memory = |key: PackKey| u32::try_from(self.stack_bytes / key.bytes().max(1)).unwrap_or(u32::MAX);
        pack.map_or(1, |key| by_memory(key).min(self.stack).max(1))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerInfo {
    pub id: WorkerId,
    pub slots: u32,
    pub state: WorkerState,
}

/// One decided change. A batch of them is one transaction; a change whose attempt no longer holds the lease makes the
/// whole batch void.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A new attempt with a fresh lease; the job is running.
    Start {
        attempt: AttemptRef,
        slot: SlotRef,
    },
    /// The leases of these attempts last again their full time from now.
    Renew {
        attempts: Vec<AttemptRef>,
    },
    /// The attempt succeeded: its outcome is published and `jobs` (the job itself and those with the same key) are done.
    Complete {
        attempt: AttemptRef,
        jobs: Vec<JobId>,
    },
    /// The attempt ended otherwise. The job goes to `job_state`, with `failures` as its new count.
    End {
        attempt: AttemptRef,
        how: AttemptState,
        job_state: JobState,
        failures: u32,
        reason: Option<String>,
    },
    /// Jobs without a running attempt change state; `reason` becomes their error (none clears it).
    SetJobs {
        jobs: Vec<JobId>,
        state: JobState,
        reason: Option<String>,
    },
    /// Jobs get all their tries back.
    ForgetFailures {
        jobs: Vec<JobId>,
    },
    SetSweep {
        sweep: SweepId,
        state: SweepState,
    },
    SetPriority {
        sweep: SweepId,
        priority: i32,
    },
    SetWorker {
        worker: WorkerId,
        state: WorkerState,
    },
}

//! What can happen to the scheduler.

use taskvec_model::{
    id::{AttemptRef, JobId, SweepId, WorkerId},
    job::Failure,
    schedule::{Capacity, JobInfo, SweepInfo},
};

/// One thing that happened. Events name attempts and workers as their senders know them: late, repeated and unknown
/// ones are answered, and change nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A sweep was stored with all its jobs. Those that a stored result satisfies are done already.
    SweepSubmitted {
        sweep: SweepInfo,
        jobs: Vec<JobInfo>,
    },
    /// Start nothing more of this sweep; what runs goes on.
    Pause(SweepId),
    Resume(SweepId),
    /// End this sweep now. A worker is told to stop; its slot counts as free at once.
    Cancel(SweepId),
    /// Every failed, skipped or cancelled job of the sweep gets all its tries back. `sweep` and `jobs` are reloaded from
    /// the store and only looked at where the sweep has ended; a paused sweep stays paused.
    Retry {
        sweep: SweepInfo,
        jobs: Vec<JobInfo>,
    },
    /// The same for one job, the failed jobs it needs, and the jobs that were skipped because of them. A job in its
    /// back-off becomes ready at once.
    RetryJob {
        job: JobId,
        sweep: SweepInfo,
        jobs: Vec<JobInfo>,
    },
    SetPriority(SweepId, i32),
    /// A worker connected, for the first time or again. `attempts`: those it runs or holds outcomes of.
    WorkerHello {
        worker: WorkerId,
        capacity: Capacity,
        attempts: Vec<AttemptRef>,
    },
    /// Its connection is gone. It may come back before its leases end.
    WorkerLost(WorkerId),
    /// It is to take nothing new: its own wish, or the user's.
    WorkerDraining(WorkerId),
    WorkerLeft(WorkerId),
    Heartbeat {
        worker: WorkerId,
        attempts: Vec<AttemptRef>,
    },
    Succeeded {
        worker: WorkerId,
        attempt: AttemptRef,
    },
    Failed {
        worker: WorkerId,
        attempt: AttemptRef,
        failure: Failure,
    },
    /// Given back unfinished, by a worker that is about to leave.
    Released {
        worker: WorkerId,
        attempt: AttemptRef,
    },
    /// Time passed: leases and back-offs whose deadline is reached end. Due at `State::next_deadline`, and best sent after
    /// the events that were received before, so that heartbeats which waited behind a stalled server still count.
    Tick,
}

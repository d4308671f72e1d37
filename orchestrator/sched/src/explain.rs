//! Why a job is where it is, for the person who waits for it.

use crate::{
    retry::Seconds,
    state::{Job, Lease, Phase, State},
};
use std::{cmp::Reverse, fmt};
use taskvec_model::{
    id::{JobId, SweepId, WorkerId},
    schedule::{Millis, SlotRef},
    state::SweepState,
};

/// The answer to "why is this job not running?" Its `Display` is one line without the job's number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Explanation {
    /// Not in memory: its sweep has ended (the store knows how), or there is no such job.
    NotScheduled,
    /// `millis`: since when; unknown where the server was restarted in between. `beside`: jobs in the same slot.
    Running {
        worker: WorkerId,
        attempt: i32,
        millis: Option<Millis>,
        beside: Vec<JobId>,
    },
    /// Its worker is not connected; the attempt is given up if that lasts `millis` more.
    OutOfReach {
        worker: WorkerId,
        attempt: i32,
        millis: Millis,
    },
    /// The jobs it needs that are not done.
    Waiting {
        needs: Vec<JobId>,
    },
    BackOff {
        millis: Millis,
        reason: String,
    },
    Paused {
        sweep: SweepId,
    },
    /// `running`: or else that job is in its back-off.
    SameWork {
        job: JobId,
        running: bool,
    },
    /// No worker is connected that takes jobs. `draining`: connected workers that are about to leave.
    NoWorker {
        draining: usize,
    },
    /// Every slot of the connected workers is taken; `ahead` jobs go first.
    Queued {
        slots: u32,
        ahead: usize,
    },
    Done,
    Failed {
        reason: Option<String>,
    },
    Skipped {
        reason: Option<String>,
    },
    Cancelled,
}

impl State {
    /// As of the newest event.
    pub fn explain(&self, id: JobId) -> Explanation {
        let Some(job) = self.jobs.get(&id) else { return Explanation::NotScheduled };
        match &job.phase {
            Phase::Waiting => Explanation::Waiting { needs: self.unfinished_needs(job) },
            Phase::BackOff { until, reason } => {
                Explanation::BackOff { millis: until.saturating_sub(self.now), reason: reason.clone() }
            }
            Phase::Ready => self.explain_ready(id, job),
            Phase::Running(lease) => self.explain_running(id, job, lease),
            Phase::Done { .. } => Explanation::Done,
            Phase::Failed { reason } => Explanation::Failed { reason: reason.clone() },
            Phase::Skipped { reason } => Explanation::Skipped { reason: reason.clone() },
            Phase::Cancelled => Explanation::Cancelled,
        }
    }

    fn unfinished_needs(&self, job: &Job) -> Vec<JobId> {
        let done = |id: &JobId| self.jobs.get(id).is_some_and(|need| matches!(need.phase, Phase::Done { .. }));
        job.needs.iter().copied().filter(|id| !done(id)).collect()
    }

    fn explain_running(&self, id: JobId, job: &Job, lease: &Lease) -> Explanation {
        let (SlotRef { worker, number }, attempt) = (lease.slot, job.attempts);
        let Some(found) = self.workers.get(&worker).filter(|w| w.connected) else {
            return Explanation::OutOfReach { worker, attempt, millis: lease.ends.saturating_sub(self.now) };
        };
        let millis = lease.since.map(|since| self.now.saturating_sub(since));
        let pack = found.occupied.get(&number).into_iter().flatten();
        let beside = pack.copied().filter(|other| *other != id).collect();
        Explanation::Running { worker, attempt, millis, beside }
    }

    fn explain_ready(&self, id: JobId, job: &Job) -> Explanation {
        if self.sweep_state(job.sweep) == Some(SweepState::Paused) {
            return Explanation::Paused { sweep: job.sweep };
        }
        if let Some(twin) = self.keys.get(&job.key).and_then(|twins| twins.turn) {
            return Explanation::SameWork { job: twin, running: self.running(twin).is_some() };
        }
        let mut takers = self.workers.values().filter(|w| w.connected && !w.draining).peekable();
        if takers.peek().is_none() {
            let draining = self.workers.values().filter(|w| w.connected && w.draining).count();
            return Explanation::NoWorker { draining };
        }
        Explanation::Queued { slots: takers.map(|w| w.capacity.slots).sum(), ahead: self.ahead(id, job) }
    }

    fn ahead(&self, id: JobId, job: &Job) -> usize {
        let Some(own) = self.sweeps.get(&job.sweep) else { return 0 };
        let before = self.queue.range(..(Reverse(own.priority), job.sweep));
        let in_others = before.filter_map(|(_, sweep)| self.sweeps.get(sweep)).map(|sweep| sweep.ready.len());
        in_others.sum::<usize>() + own.ready.range(..id).count()
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let because = |f: &mut fmt::Formatter<'_>, word: &str, reason: &Option<String>| match reason {
            Some(reason) => write!(f, "{word}: {reason}"),
            None => f.write_str(word),
        };
        match self {
            Self::NotScheduled => f.write_str("not scheduled: its sweep has ended, or there is no such job"),
            Self::Running { worker, attempt, millis, beside } => {
                let since = millis.map(|millis| format!(" for {}", Seconds(millis))).unwrap_or_default();
                write!(f, "running on worker {worker}{since}, attempt {attempt}")?;
                if beside.is_empty() { Ok(()) } else { write!(f, ", in one slot with {}", Jobs(beside)) }
            }
            Self::OutOfReach { worker, attempt, millis } => write!(
                f,
                "attempt {attempt} is on worker {worker}, which is not connected; given up if that lasts {} more",
                Seconds(*millis)
            ),
            Self::Waiting { needs } => write!(f, "waits for {}", Jobs(needs)),
            Self::BackOff { millis, reason } => write!(f, "tried again in {}: {reason}", Seconds(*millis)),
            Self::Paused { sweep } => write!(f, "ready, but sweep {sweep} is paused"),
            Self::SameWork { job, running: true } => write!(f, "the same work runs as job {job}"),
            Self::SameWork { job, running: false } => {
                write!(f, "the same work is job {job}, which failed and is about to be tried again")
            }
            Self::NoWorker { draining: 0 } => f.write_str("ready, but no worker is connected"),
            Self::NoWorker { draining } => write!(f, "ready, but all connected workers ({draining}) are draining"),
            Self::Queued { slots, ahead } => {
                write!(f, "ready, but all slots ({slots}) are busy; jobs ahead of it: {ahead}")
            }
            Self::Done => f.write_str("done"),
            Self::Failed { reason } => because(f, "failed", reason),
            Self::Skipped { reason } => because(f, "skipped", reason),
            Self::Cancelled => f.write_str("cancelled"),
        }
    }
}

struct Jobs<'a>(&'a [JobId]);

impl fmt::Display for Jobs<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 5;
        let list: Vec<String> = self.0.iter().take(SHOWN).map(JobId::to_string).collect();
        write!(f, "{} {}", if self.0.len() == 1 { "job" } else { "jobs" }, list.join(", "))?;
        match self.0.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

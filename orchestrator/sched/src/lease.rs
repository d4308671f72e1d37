//! Who may speak for an attempt, and for how long.

use crate::state::{Job, Lease, Phase, State};
use taskvec_model::{
    id::{AttemptRef, JobId, WorkerId},
    schedule::{Millis, SlotRef},
    state::JobState,
};

impl State {
    /// The job, if this is its running attempt and it runs on this worker. Otherwise why not, for the worker's log.
    pub(crate) fn current(&self, worker: WorkerId, attempt: AttemptRef) -> Result<&Job, String> {
        let AttemptRef { job: id, number } = attempt;
        let Some(job) = self.jobs.get(&id) else {
            return Err(format!("job {id} is not scheduled any more: its sweep has ended"));
        };
        match &job.phase {
            _ if number > job.attempts || number < 1 => Err(format!("attempt {number} of job {id} was never started")),
            Phase::Running(_) if number < job.attempts => {
                Err(format!("attempt {number} of job {id} lost its lease: attempt {} is running", job.attempts))
            }
            Phase::Running(Lease { slot, .. }) if slot.worker != worker => {
                Err(format!("attempt {number} of job {id} belongs to worker {}, not to worker {worker}", slot.worker))
            }
            Phase::Running(_) => Ok(job),
            other => Err(format!("attempt {number} of job {id} has ended: the job is {}", describe(other.state()))),
        }
    }

    /// Notes that the worker runs a current attempt. True: the store must renew its lease too. That is asked for at most
    /// once in a third of a lease, so a lease ends between two thirds and all of its length after the last heartbeat.
    pub(crate) fn confirm(&mut self, id: JobId) -> bool {
        let (now, length) = (self.now, self.config.lease);
        let Some(Job { phase: Phase::Running(lease), .. }) = self.jobs.get_mut(&id) else { return false };
        let old = lease.ends;
        // The distance, so that a clock that was set back does not stop renewals.
        let due = lease.renewed.is_none_or(|at| now.abs_diff(at) >= length / 3);
        if due {
            lease.renewed = Some(now);
            lease.ends = now.saturating_add(length);
            let ends = lease.ends;
            self.deadlines.remove(&(old, id));
            self.deadlines.insert((ends, id));
        }
        due
    }

    /// Is its lease over, though no tick has ended it yet?
    pub(crate) fn overdue(&self, id: JobId) -> bool {
        self.jobs.get(&id).and_then(|job| job.phase.deadline()).is_some_and(|ends| ends <= self.now)
    }

    pub(crate) fn new_lease(&self, slot: SlotRef) -> Lease {
        Lease { slot, since: Some(self.now), renewed: Some(self.now), ends: self.now.saturating_add(self.config.lease) }
    }

    /// For an attempt that was already running when this state was made: the store's lease is older than this one.
    pub(crate) fn inherited_lease(&self, slot: SlotRef) -> Lease {
        Lease { since: None, renewed: None, ..self.new_lease(slot) }
    }

    /// Jobs whose deadline is reached, earliest first.
    pub(crate) fn due(&self, now: Millis) -> Vec<JobId> {
        self.deadlines.range(..=(now, JobId(i64::MAX))).map(|(_, job)| *job).collect()
    }
}

fn describe(state: JobState) -> &'static str {
    match state {
        JobState::Ready => "to be tried again",
        other => other.as_str(),
    }
}

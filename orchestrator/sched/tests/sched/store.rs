//! A store in memory that takes changes as the real one does: guarded, and nothing twice.

use std::collections::{BTreeMap, BTreeSet};
use taskvec_model::{
    id::{AttemptRef, JobId, JobKey, SweepId, WorkerId},
    schedule::{Capacity, Change, JobInfo, Millis, SlotRef, Snapshot, SweepInfo, WorkerInfo},
    state::{AttemptState, JobState, SweepState, WorkerState},
};

#[derive(Clone, Debug)]
pub struct Store {
    /// The database's clock.
    pub clock: Millis,
    lease: Millis,
    pub sweeps: BTreeMap<SweepId, SweepInfo>,
    pub jobs: BTreeMap<JobId, JobInfo>,
    pub workers: BTreeMap<WorkerId, WorkerInfo>,
    /// What they last said that they take; the real store does not know.
    pub capacities: BTreeMap<WorkerId, Capacity>,
    /// Slots in which something has started since the last event.
    fresh: BTreeSet<SlotRef>,
    attempts: BTreeMap<AttemptRef, AttemptState>,
    leases: BTreeMap<AttemptRef, Lease>,
    /// Published results: which attempt computed them.
    pub results: BTreeMap<JobKey, AttemptRef>,
    /// Keys that were asked for again by hand after they were published.
    reopened: BTreeSet<JobKey>,
}

#[derive(Clone, Debug)]
struct Lease {
    expires: Millis,
    /// None: by a load.
    renewed: Option<Millis>,
}

macro_rules! guard {
    ($holds:expr, $($what:tt)+) => {
        if !$holds {
            return Err(format!($($what)+));
        }
    };
}

impl Store {
    pub fn new(lease: Millis) -> Self {
        Self {
            clock: 0,
            lease,
            sweeps: BTreeMap::new(),
            jobs: BTreeMap::new(),
            workers: BTreeMap::new(),
            capacities: BTreeMap::new(),
            fresh: BTreeSet::new(),
            attempts: BTreeMap::new(),
            leases: BTreeMap::new(),
            results: BTreeMap::new(),
            reopened: BTreeSet::new(),
        }
    }

    /// What follows is one event's.
    pub fn event_at(&mut self, now: Millis) {
        self.clock = now;
        self.fresh.clear();
    }

    pub fn submit(&mut self, sweep: SweepInfo, jobs: &mut [JobInfo]) {
        for job in jobs {
            if self.results.contains_key(&job.key) {
                job.state = JobState::Done;
            }
            self.jobs.insert(job.id, job.clone());
        }
        self.sweeps.insert(sweep.id, sweep);
    }

    pub fn jobs_of(&self, sweep: SweepId) -> Vec<JobInfo> {
        self.jobs.values().filter(|job| job.sweep == sweep).cloned().collect()
    }

    /// Every running attempt has its full lease again.
    pub fn load(&mut self) -> Snapshot {
        let expires = self.clock.saturating_add(self.lease);
        self.leases.values_mut().for_each(|lease| *lease = Lease { expires, renewed: None });
        self.snapshot()
    }

    pub fn snapshot(&self) -> Snapshot {
        let sweeps: Vec<SweepInfo> = self.sweeps.values().filter(|s| !s.state.ended()).cloned().collect();
        let lives = |id: SweepId| sweeps.iter().any(|sweep| sweep.id == id);
        Snapshot {
            jobs: self.jobs.values().filter(|job| lives(job.sweep)).cloned().collect(),
            workers: self.workers.values().filter(|w| w.state != WorkerState::Left).cloned().collect(),
            sweeps,
        }
    }

    /// Every job's state, for comparing two histories.
    pub fn table(&self) -> BTreeMap<JobId, JobState> {
        self.jobs.iter().map(|(id, job)| (*id, job.state)).collect()
    }

    pub fn is_running(&self, attempt: AttemptRef) -> bool {
        self.attempts.get(&attempt) == Some(&AttemptState::Running)
    }

    pub fn known_attempts(&self) -> Vec<AttemptRef> {
        self.attempts.keys().copied().collect()
    }

    pub fn apply(&mut self, change: &Change) -> Result<(), String> {
        self.take(change).map_err(|why| format!("{change:?} is refused: {why}"))
    }

    fn take(&mut self, change: &Change) -> Result<(), String> {
        match change {
            Change::Start { attempt, slot } => self.start(*attempt, *slot),
            Change::Renew { attempts } => attempts.iter().try_for_each(|attempt| self.renew(*attempt)),
            Change::Complete { attempt, jobs } => self.complete(*attempt, jobs),
            Change::End { attempt, how, job_state, failures, .. } => self.end(*attempt, *how, *job_state, *failures),
            Change::SetJobs { jobs, state, .. } => jobs.iter().try_for_each(|job| self.set_job(*job, *state)),
            Change::ForgetFailures { jobs } => {
                jobs.iter().try_for_each(|job| self.job(*job).map(|job| job.failures = 0))
            }
            Change::SetSweep { sweep, state } => self.set_sweep(*sweep, *state),
            Change::SetPriority { sweep, priority } => {
                self.sweeps.get_mut(sweep).ok_or("no such sweep")?.priority = *priority;
                Ok(())
            }
            Change::SetWorker { worker, state } => {
                self.workers.get_mut(worker).ok_or("no such worker")?.state = *state;
                Ok(())
            }
        }
    }

    fn job(&mut self, id: JobId) -> Result<&mut JobInfo, String> {
        self.jobs.get_mut(&id).ok_or_else(|| format!("no job {id}"))
    }

    fn is_current(&self, attempt: AttemptRef) -> Result<(), String> {
        guard!(self.is_running(attempt), "{attempt} is not running");
        let job = &self.jobs[&attempt.job];
        guard!(job.state == JobState::Running && job.attempts == attempt.number, "{attempt} is not current: {job:?}");
        Ok(())
    }

    /// As above, and its lease is not over: needed for whatever the worker hands back.
    fn holds_lease(&self, attempt: AttemptRef) -> Result<(), String> {
        self.is_current(attempt)?;
        let lease = &self.leases[&attempt];
        guard!(
            lease.expires > self.clock,
            "the lease of {attempt} was over at {}, now it is {}",
            lease.expires,
            self.clock
        );
        Ok(())
    }

    fn renew(&mut self, attempt: AttemptRef) -> Result<(), String> {
        self.is_current(attempt)?;
        let (clock, length) = (self.clock, self.lease);
        let lease = self.leases.get(&attempt).and_then(|lease| lease.renewed);
        guard!(lease.is_none_or(|at| clock.abs_diff(at) >= length / 3), "{attempt} was renewed at {lease:?}");
        self.grant(attempt);
        Ok(())
    }

    fn grant(&mut self, attempt: AttemptRef) {
        let expires = self.clock.saturating_add(self.lease);
        self.leases.insert(attempt, Lease { expires, renewed: Some(self.clock) });
    }

    fn start(&mut self, attempt: AttemptRef, slot: SlotRef) -> Result<(), String> {
        let job = self.job(attempt.job)?.clone();
        guard!(job.state == JobState::Ready, "the job is {}", job.state);
        guard!(job.attempts + 1 == attempt.number, "attempt {} is the newest", job.attempts);
        guard!(self.sweeps[&job.sweep].state == SweepState::Active, "its sweep is {}", self.sweeps[&job.sweep].state);
        let twin = self.jobs.values().find(|other| other.key == job.key && other.state == JobState::Running);
        guard!(twin.is_none(), "the same work runs already: {twin:?}");
        let undone = job.needs.iter().find(|need| self.jobs[need].state != JobState::Done);
        guard!(undone.is_none(), "it needs {undone:?}");
        self.has_room(&job, slot)?;
        guard!(self.attempts.insert(attempt, AttemptState::Running).is_none(), "this attempt was made before");
        let job = self.job(attempt.job)?;
        (job.state, job.attempts, job.slot) = (JobState::Running, attempt.number, Some(slot));
        self.grant(attempt);
        Ok(())
    }

    /// A slot that nothing runs in, or one that was given to others of its kind by the same event.
    fn has_room(&mut self, job: &JobInfo, slot: SlotRef) -> Result<(), String> {
        let found = self.workers.get(&slot.worker).ok_or("no such worker")?;
        guard!(found.state == WorkerState::Connected, "the worker is {}", found.state);
        let there = self.jobs.values().filter(|other| other.slot.is_some_and(|s| s.worker == slot.worker));
        let used: BTreeSet<u32> = there.filter_map(|other| other.slot).map(|slot| slot.number).collect();
        let mates: Vec<&JobInfo> = self.jobs.values().filter(|other| other.slot == Some(slot)).collect();
        if mates.is_empty() {
            guard!(used.len() < found.slots as usize, "the worker's {} slots are taken", found.slots);
            self.fresh.insert(slot);
            return Ok(());
        }
        guard!(self.fresh.contains(&slot), "slot {slot:?} was given away before");
        guard!(
            job.pack.is_some() && mates.iter().all(|mate| mate.pack == job.pack),
            "it shares no slot with {mates:?}"
        );
        guard!(
            job.failures == 0 && mates.iter().all(|m| m.failures == 0),
            "one has failed, and is not alone: {mates:?}"
        );
        let room = self.capacities[&slot.worker].room(job.pack) as usize;
        guard!(mates.len() < room, "{} are in a slot for {room}", mates.len());
        Ok(())
    }

    fn complete(&mut self, attempt: AttemptRef, jobs: &[JobId]) -> Result<(), String> {
        self.holds_lease(attempt)?;
        guard!(jobs.contains(&attempt.job), "the job itself is not listed");
        let key = self.jobs[&attempt.job].key;
        for id in jobs {
            let job = self.job(*id)?;
            guard!(job.key == key, "job {id} is other work");
            guard!(!job.state.ended(), "job {id} is {}", job.state);
            guard!(*id == attempt.job || job.state != JobState::Running, "job {id} runs too");
            (job.state, job.slot) = (JobState::Done, None);
        }
        let before = self.results.insert(key, attempt);
        guard!(before.is_none() || self.reopened.remove(&key), "published before, by {before:?}");
        self.attempts.insert(attempt, AttemptState::Succeeded);
        Ok(())
    }

    fn end(&mut self, attempt: AttemptRef, how: AttemptState, to: JobState, failures: u32) -> Result<(), String> {
        match how {
            AttemptState::Failed => self.holds_lease(attempt)?,
            _ => self.is_current(attempt)?,
        }
        guard!(matches!(to, JobState::Ready | JobState::Failed | JobState::Cancelled), "a job cannot become {to}");
        let job = self.job(attempt.job)?;
        let counted = matches!(how, AttemptState::Failed | AttemptState::Expired);
        guard!(failures == job.failures + u32::from(counted), "{} failures before, {failures} now", job.failures);
        (job.state, job.slot, job.failures) = (to, None, failures);
        self.attempts.insert(attempt, how);
        Ok(())
    }

    fn set_job(&mut self, id: JobId, to: JobState) -> Result<(), String> {
        use JobState::{Cancelled, Failed, Ready, Skipped, Waiting};
        let from = self.job(id)?.state;
        let sensible = match to {
            Ready | Waiting => matches!(from, Waiting | Failed | Skipped | Cancelled),
            Skipped => from == Waiting,
            Cancelled => matches!(from, Waiting | Ready),
            _ => false,
        };
        guard!(sensible, "job {id} goes from {from} to {to}");
        let job = self.job(id)?;
        job.state = to;
        let key = job.key;
        if from.ended() && self.results.contains_key(&key) {
            self.reopened.insert(key);
        }
        Ok(())
    }

    fn set_sweep(&mut self, id: SweepId, to: SweepState) -> Result<(), String> {
        let mut jobs = self.jobs.values().filter(|job| job.sweep == id);
        match to {
            SweepState::Active | SweepState::Paused => {}
            SweepState::Done => guard!(jobs.all(|job| job.state == JobState::Done), "not all of its jobs are done"),
            _ => guard!(jobs.all(|job| job.state.ended()), "not all of its jobs have ended"),
        }
        self.sweeps.get_mut(&id).ok_or("no such sweep")?.state = to;
        Ok(())
    }
}

//! Gathers a list of changes into few groups, each of which is one round of statements.
//!
//! Changes of different jobs, sweeps and workers commute; those of one keep their order. A change joins the first group
//! of its kind that lies behind every group that touches the same thing.

use std::collections::BTreeMap;
use taskvec_model::{
    id::{JobId, SweepId, WorkerId},
    schedule::Change,
};

/// Changes of one kind, none of which touches what another touches.
#[derive(Debug, PartialEq)]
pub(crate) struct Group<'a> {
    pub kind: Kind,
    pub changes: Vec<&'a Change>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Start,
    Renew,
    Complete,
    End,
    SetJobs,
    ForgetFailures,
    SetSweep,
    SetPriority,
    SetWorker,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Thing {
    Job(JobId),
    Sweep(SweepId),
    Worker(WorkerId),
}

pub(crate) fn groups(changes: &[Change]) -> Vec<Group<'_>> {
    let mut groups: Vec<Group> = Vec::new();
    // The first group that may touch a thing.
    let mut free: BTreeMap<Thing, usize> = BTreeMap::new();
    for change in changes {
        let kind = kind(change);
        let things = things(change);
        let from = things.iter().filter_map(|t| free.get(t)).max().copied().unwrap_or(0);
        let at = groups.iter().skip(from).position(|g| g.kind == kind).map_or(groups.len(), |i| from + i);
        if at == groups.len() {
            groups.push(Group { kind, changes: Vec::new() });
        }
        groups[at].changes.push(change);
        free.extend(things.into_iter().map(|t| (t, at + 1)));
    }
    groups
}

fn kind(change: &Change) -> Kind {
    match change {
        Change::Start { .. } => Kind::Start,
        Change::Renew { .. } => Kind::Renew,
        Change::Complete { .. } => Kind::Complete,
        Change::End { .. } => Kind::End,
        Change::SetJobs { .. } => Kind::SetJobs,
        Change::ForgetFailures { .. } => Kind::ForgetFailures,
        Change::SetSweep { .. } => Kind::SetSweep,
        Change::SetPriority { .. } => Kind::SetPriority,
        Change::SetWorker { .. } => Kind::SetWorker,
    }
}

fn things(change: &Change) -> Vec<Thing> {
    let all = |jobs: &[JobId]| jobs.iter().copied().map(Thing::Job).collect();
    match change {
        Change::Start { attempt, .. } | Change::End { attempt, .. } => vec![Thing::Job(attempt.job)],
        Change::Renew { attempts } => attempts.iter().map(|a| Thing::Job(a.job)).collect(),
        Change::Complete { attempt, jobs } => jobs.iter().chain([&attempt.job]).copied().map(Thing::Job).collect(),
        Change::SetJobs { jobs, .. } | Change::ForgetFailures { jobs } => all(jobs),
        Change::SetSweep { sweep, .. } | Change::SetPriority { sweep, .. } => vec![Thing::Sweep(*sweep)],
        Change::SetWorker { worker, .. } => vec![Thing::Worker(*worker)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use taskvec_model::{id::AttemptRef, schedule::SlotRef, state::JobState};

    fn start(job: i64, number: i32) -> Change {
        let slot = SlotRef { worker: WorkerId(1), number: 0 };
        Change::Start { attempt: AttemptRef { job: JobId(job), number }, slot }
    }

    fn complete(job: i64) -> Change {
        Change::Complete { attempt: AttemptRef { job: JobId(job), number: 1 }, jobs: vec![JobId(job)] }
    }

    fn ready(job: i64) -> Change {
        Change::SetJobs { jobs: vec![JobId(job)], state: JobState::Ready, reason: None }
    }

    #[test]
    fn many_completions_with_their_followers_are_three_groups() {
        let changes: Vec<Change> =
            (0..100).flat_map(|i| [complete(3 * i), ready(3 * i + 1), start(3 * i + 1, 1)]).collect();
        let kinds: Vec<(Kind, usize)> = groups(&changes).iter().map(|g| (g.kind, g.changes.len())).collect();
        assert_eq!(kinds, [(Kind::Complete, 100), (Kind::SetJobs, 100), (Kind::Start, 100)]);
    }

    #[test]
    fn the_order_of_one_jobs_changes_is_kept() {
        let changes = [start(1, 1), complete(1), ready(1), start(1, 2), start(2, 1)];
        let kinds: Vec<(Kind, usize)> = groups(&changes).iter().map(|g| (g.kind, g.changes.len())).collect();
        assert_eq!(
            kinds,
            [(Kind::Start, 2), (Kind::Complete, 1), (Kind::SetJobs, 1), (Kind::Start, 1)],
            "job 2 joins the first group of starts, job 1's second start comes after its change of state"
        );
    }
}

//! A sweep, expanded: its runs and the DAG of their jobs. Made by `taskvec-sweep`, stored by `taskvec-store`.

use crate::{
    id::JobKey,
    job::{JobKind, JobWork, Purpose},
    spec::RunSpec,
};
use serde::Serialize;
use std::collections::BTreeSet;

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    pub name: String,
    /// The sweep file as JSON, as the user wrote it.
    pub spec: serde_json::Value,
    pub runs: Vec<PlannedRun>,
    /// In an order in which every job comes after the jobs it needs; also the order of preference for scheduling.
    pub jobs: Vec<PlannedJob>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlannedRun {
    pub spec: RunSpec,
    /// Only what the sweep varies: dotted path → value.
    pub params: serde_json::Value,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlannedJob {
    /// Index into `Plan::runs`.
    pub run: usize,
    /// The step of the checkpoint that is analysed, or the last step of a training segment; none where no step applies.
    pub step: Option<u64>,
    pub work: JobWork,
    pub key: JobKey,
    pub needs: Vec<Need>,
    /// Rough floating-point operations, for estimates and progress.
    pub flops: f64,
}

impl PlannedJob {
    pub fn kind(&self) -> JobKind {
        self.work.kind()
    }
}

/// An edge of the DAG: this job reads that checkpoint of that job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Need {
    /// Index into `Plan::jobs`.
    pub job: usize,
    pub step: u64,
    pub purpose: Purpose,
}

/// A stored result: which checkpoints of it are still there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedResult {
    pub checkpoints: BTreeSet<(u64, Purpose)>,
}

impl Plan {
    /// Which jobs a stored result already satisfies. `cached(key)` looks a result up.
    ///
    /// A result whose checkpoints were removed still satisfies a job, unless a job that must run needs one of them.
    pub fn satisfied(&self, cached: impl Fn(&JobKey) -> Option<CachedResult>) -> Vec<bool> {
        let mut wanted: Vec<BTreeSet<(u64, Purpose)>> = vec![BTreeSet::new(); self.jobs.len()];
        let mut out = vec![false; self.jobs.len()];
        for (i, job) in self.jobs.iter().enumerate().rev() {
            out[i] = cached(&job.key).is_some_and(|result| wanted[i].is_subset(&result.checkpoints));
            if !out[i] {
                for need in &job.needs {
                    wanted[need.job].insert((need.step, need.purpose));
                }
            }
        }
        out
    }
}

//! How sweeps and jobs stand.

use crate::{Store, error::StoreError, row::Place};
use taskvec_model::{
    id::{AttemptRef, JobId, RunId, SweepId},
    state::{AttemptState, JobState, SweepState},
};

/// How a sweep stands.
#[derive(Clone, Debug, PartialEq)]
pub struct SweepProgress {
    pub id: SweepId,
    pub name: String,
    pub state: SweepState,
    /// Jobs by state, in the order of [`JobState::ALL`].
    pub jobs: [u32; 7],
    /// Jobs that a stored result satisfied at submission.
    pub cached: u32,
    /// Rough floating-point operations of all jobs, and of those that are done.
    pub flops_total: f64,
    pub flops_done: f64,
    pub runs: Vec<RunProgress>,
}

/// How a run stands.
#[derive(Clone, Debug, PartialEq)]
pub struct RunProgress {
    pub id: RunId,
    /// Only what the sweep varies.
    pub params: serde_json::Value,
    /// As in `results.runs`.
    pub state: String,
    /// Training steps that finished segments cover, of `steps`; both 0 for runs without training.
    pub step: u64,
    pub steps: u64,
    /// The training segment that is running, from `step` on.
    pub training: Option<JobId>,
    /// The first of the other jobs that are running.
    pub analysing: Option<JobId>,
    pub jobs_done: u32,
    pub jobs_total: u32,
}

/// Where a job belongs and how it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobStatus {
    pub sweep: SweepId,
    pub run: RunId,
    pub state: JobState,
    /// Number of the newest attempt, 0 before the first.
    pub attempts: i32,
}

#[derive(sqlx::FromRow)]
struct RunRow {
    run_id: i64,
    params: serde_json::Value,
    state: String,
    jobs: Vec<i64>,
    step: i64,
    steps: i64,
    training: Option<i64>,
    analysing: Option<i64>,
    cached: i64,
    flops_total: f64,
    flops_done: f64,
}

impl Store {
    pub async fn sweep_progress(&self, sweep: SweepId) -> Result<SweepProgress, StoreError> {
        let head: Option<(String, String)> =
            sqlx::query_as("SELECT name, state FROM taskvec.sweeps WHERE sweep_id = $1")
                .bind(sweep.0)
                .fetch_optional(&self.pool)
                .await?;
        let (name, state) = head.ok_or(StoreError::Unknown { what: "sweep", id: sweep.0 })?;
        let state = Place { table: "sweeps", id: sweep }.name(&state)?;
        let mut out = SweepProgress {
            id: sweep,
            name,
            state,
            jobs: [0; 7],
            cached: 0,
            flops_total: 0.0,
            flops_done: 0.0,
            runs: Vec::new(),
        };
        for row in self.run_rows(sweep).await? {
            out.add(row)?;
        }
        Ok(out)
    }

    async fn run_rows(&self, sweep: SweepId) -> Result<Vec<RunRow>, StoreError> {
        let rows = sqlx::query_as(
            "SELECT r.run_id, r.params, j.cached, j.flops_total, j.flops_done, j.step, j.steps, j.training,
                 j.analysing,
                 array[j.waiting, j.ready, j.running, j.done, j.failed, j.skipped, j.cancelled] AS jobs,
                 taskvec.run_state(j.jobs, j.waiting + j.ready + j.running, j.running, j.done, j.failed, j.cancelled)
                     AS state
             FROM taskvec.runs r JOIN (
                 SELECT run_id, count(*) AS jobs,
                     count(*) FILTER (WHERE state = 'waiting') AS waiting,
                     count(*) FILTER (WHERE state = 'ready') AS ready,
                     count(*) FILTER (WHERE state = 'running') AS running,
                     count(*) FILTER (WHERE state = 'done') AS done,
                     count(*) FILTER (WHERE state = 'failed') AS failed,
                     count(*) FILTER (WHERE state = 'skipped') AS skipped,
                     count(*) FILTER (WHERE state = 'cancelled') AS cancelled,
                     count(*) FILTER (WHERE cached) AS cached,
                     sum(flops) AS flops_total,
                     coalesce(sum(flops) FILTER (WHERE state = 'done'), 0) AS flops_done,
                     coalesce(max(step) FILTER (WHERE kind IN ('train', 'finetune') AND state = 'done'), 0) AS step,
                     coalesce(max(step) FILTER (WHERE kind IN ('train', 'finetune')), 0) AS steps,
                     min(job_id) FILTER (WHERE kind IN ('train', 'finetune') AND state = 'running') AS training,
                     min(job_id) FILTER (WHERE kind NOT IN ('train', 'finetune') AND state = 'running') AS analysing
                 FROM taskvec.jobs WHERE sweep_id = $1 GROUP BY run_id
             ) AS j USING (run_id)
             ORDER BY r.run_id",
        )
        .bind(sweep.0)
        .fetch_all(&self.pool)
        .await?;
        Ok(rows)
    }

    /// Where a job belongs and how it stands.
    pub async fn job(&self, job: JobId) -> Result<JobStatus, StoreError> {
        let row: Option<(i64, i64, String, i32)> =
            sqlx::query_as("SELECT sweep_id, run_id, state, attempts FROM taskvec.jobs WHERE job_id = $1")
                .bind(job.0)
                .fetch_optional(&self.pool)
                .await?;
        let (sweep, run, state, attempts) = row.ok_or(StoreError::Unknown { what: "job", id: job.0 })?;
        let state = Place { table: "jobs", id: job }.name(&state)?;
        Ok(JobStatus { sweep: SweepId(sweep), run: RunId(run), state, attempts })
    }

    /// How an attempt stands; none if there never was one.
    pub async fn attempt_state(&self, attempt: AttemptRef) -> Result<Option<AttemptState>, StoreError> {
        let state: Option<String> =
            sqlx::query_scalar("SELECT state FROM taskvec.attempts WHERE job_id = $1 AND number = $2")
                .bind(attempt.job.0)
                .bind(attempt.number)
                .fetch_optional(&self.pool)
                .await?;
        state.map(|s| Place { table: "attempts", id: attempt.job }.name(&s)).transpose()
    }
}

impl SweepProgress {
    fn add(&mut self, row: RunRow) -> Result<(), StoreError> {
        let place = Place { table: "runs", id: row.run_id };
        let counts: Vec<u32> = row.jobs.iter().map(|n| place.unsigned(*n)).collect::<Result<_, _>>()?;
        for (sum, n) in self.jobs.iter_mut().zip(&counts) {
            *sum += n;
        }
        self.cached += place.unsigned::<_, u32>(row.cached)?;
        self.flops_total += row.flops_total;
        self.flops_done += row.flops_done;
        self.runs.push(RunProgress {
            id: RunId(row.run_id),
            params: row.params,
            state: row.state,
            step: place.unsigned(row.step)?,
            steps: place.unsigned(row.steps)?,
            training: row.training.map(JobId),
            analysing: row.analysing.map(JobId),
            jobs_done: counts[3],
            jobs_total: counts.iter().sum(),
        });
        Ok(())
    }
}

//! A new sweep: its runs, jobs and their needs, in one transaction.

use crate::{
    Leader,
    cache::{self, Found},
    error::StoreError,
};
use sqlx::{PgConnection, types::Json};
use std::collections::BTreeSet;
use taskvec_model::{
    id::{JobId, JobKey, RunId, SweepId},
    job::JobWork,
    plan::{Plan, PlannedJob},
    schedule::{JobInfo, SweepInfo},
    state::{JobState, SweepState},
};

/// Jobs per statement: each carries about a kilobyte of work.
const JOBS: usize = 5000;

/// Names one submission, chosen by the client at random.
pub type RequestId = [u8; 16];

/// What a client is told about its sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    pub sweep: SweepId,
    pub runs: usize,
    pub jobs: usize,
    /// Jobs that a stored result satisfied when it was submitted.
    pub cached: usize,
}

/// A sweep as it was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submitted {
    pub sweep: SweepInfo,
    pub jobs: Vec<JobInfo>,
    /// Jobs that a stored result satisfied.
    pub cached: usize,
}

impl Leader {
    /// The sweep that `request` has made already, if any.
    pub async fn receipt(&mut self, request: &RequestId) -> Result<Option<Receipt>, StoreError> {
        let found: Option<(i64, i64, i64, i64)> = sqlx::query_as(
            "SELECT sweep_id, (SELECT count(*) FROM taskvec.runs r WHERE r.sweep_id = s.sweep_id),
                    count(j.job_id), count(*) FILTER (WHERE j.cached)
             FROM taskvec.sweeps s LEFT JOIN taskvec.jobs j USING (sweep_id)
             WHERE s.request = $1 GROUP BY sweep_id",
        )
        .bind(request.as_slice())
        .fetch_optional(&mut self.connection)
        .await?;
        let count = |n: i64| usize::try_from(n).unwrap_or(0);
        Ok(found.map(|(sweep, runs, jobs, cached)| Receipt {
            sweep: SweepId(sweep),
            runs: count(runs),
            jobs: count(jobs),
            cached: count(cached),
        }))
    }

    /// Stores a sweep. Jobs that a stored result satisfies are done at once, and so is a sweep in which all are.
    /// `yaml` is the file as it was given. A `request` makes one sweep only: ask [`Leader::receipt`] first.
    pub async fn submit(
        &mut self,
        plan: &Plan,
        yaml: &str,
        priority: i32,
        request: Option<&RequestId>,
    ) -> Result<Submitted, StoreError> {
        check(plan)?;
        let mut tx = self.begin().await?;
        let keys: Vec<JobKey> = plan.jobs.iter().map(|j| j.key).collect();
        let found = cache::lookup(&mut tx, &keys).await?;
        let satisfied = plan.satisfied(|key| found.get(key).map(|(_, cached)| cached.clone()));
        let (submitted, runs) = number(&mut tx, plan, &satisfied, priority).await?;
        insert_sweep(&mut tx, plan, yaml, request, &submitted.sweep).await?;
        insert_runs(&mut tx, plan, submitted.sweep.id, &runs).await?;
        insert_jobs(&mut tx, plan, &submitted.jobs, &found, &satisfied).await?;
        insert_needs(&mut tx, plan, &submitted.jobs).await?;
        tx.commit().await?;
        Ok(submitted)
    }
}

/// Refuses what the tables cannot hold, so that no statement fails half-way with less to say.
fn check(plan: &Plan) -> Result<(), StoreError> {
    let bad = |why: String| Err(StoreError::BadPlan(why));
    for (i, run) in plan.runs.iter().enumerate() {
        if i64::try_from(run.spec.seed()).is_err() {
            return bad(format!("seed {} of run {} is above {}", run.spec.seed(), i + 1, i64::MAX));
        }
    }
    for (i, job) in plan.jobs.iter().enumerate() {
        if job.run >= plan.runs.len() || job.needs.iter().any(|n| n.job >= i) {
            return bad(format!("job {} belongs to no run or needs a later job", i + 1));
        }
        let steps = job.step.into_iter().chain(job.needs.iter().map(|n| n.step));
        if let Some(step) = steps.into_iter().find(|s| i64::try_from(*s).is_err()) {
            return bad(format!("step {step} of job {} is above {}", i + 1, i64::MAX));
        }
    }
    Ok(())
}

/// Gives out the next identifiers, without gaps: only the leader does, and it does so in a transaction. The second
/// value has those of the runs.
async fn number(
    connection: &mut PgConnection,
    plan: &Plan,
    satisfied: &[bool],
    priority: i32,
) -> Result<(Submitted, Vec<i64>), StoreError> {
    let (sweep, run, job): (i64, i64, i64) = sqlx::query_as(
        "SELECT (SELECT coalesce(max(sweep_id), 0) + 1 FROM taskvec.sweeps),
                (SELECT coalesce(max(run_id), 0) + 1 FROM taskvec.runs),
                (SELECT coalesce(max(job_id), 0) + 1 FROM taskvec.jobs)",
    )
    .fetch_one(connection)
    .await?;
    let id = |i: usize| JobId(job + i as i64);
    let state = |i: usize, planned: &PlannedJob| match satisfied[i] {
        true => JobState::Done,
        false if planned.needs.iter().all(|n| satisfied[n.job]) => JobState::Ready,
        false => JobState::Waiting,
    };
    let info = |(i, planned): (usize, &PlannedJob)| JobInfo {
        id: id(i),
        sweep: SweepId(sweep),
        run: RunId(run + planned.run as i64),
        key: planned.key,
        pack: planned.work.pack_key(),
        needs: planned.needs.iter().map(|n| id(n.job)).collect::<BTreeSet<_>>().into_iter().collect(),
        state: state(i, planned),
        attempts: 0,
        failures: 0,
        slot: None,
    };
    let cached = satisfied.iter().filter(|s| **s).count();
    let state = if cached == satisfied.len() { SweepState::Done } else { SweepState::Active };
    let sweep = SweepInfo { id: SweepId(sweep), state, priority };
    let runs = (run..).take(plan.runs.len()).collect();
    Ok((Submitted { sweep, jobs: plan.jobs.iter().enumerate().map(info).collect(), cached }, runs))
}

async fn insert_sweep(
    connection: &mut PgConnection,
    plan: &Plan,
    yaml: &str,
    request: Option<&RequestId>,
    sweep: &SweepInfo,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO taskvec.sweeps (sweep_id, name, state, priority, finished_at, spec, yaml, request)
         VALUES ($1, $2, $3, $4, CASE WHEN $5 THEN now() END, $6, $7, $8)",
    )
    .bind(sweep.id.0)
    .bind(&plan.name)
    .bind(sweep.state.as_str())
    .bind(sweep.priority)
    .bind(sweep.state.ended())
    .bind(Json(&plan.spec))
    .bind(yaml)
    .bind(request.map(RequestId::as_slice))
    .execute(connection)
    .await?;
    Ok(())
}

async fn insert_runs(
    connection: &mut PgConnection,
    plan: &Plan,
    sweep: SweepId,
    ids: &[i64],
) -> Result<(), StoreError> {
    let kinds: Vec<&str> = plan.runs.iter().map(|r| r.spec.kind()).collect();
    let seeds: Vec<i64> = plan.runs.iter().map(|r| r.spec.seed().cast_signed()).collect();
    let params: Vec<_> = plan.runs.iter().map(|r| Json(&r.params)).collect();
    let specs: Vec<_> = plan.runs.iter().map(|r| Json(&r.spec)).collect();
    sqlx::query(
        "INSERT INTO taskvec.runs (run_id, sweep_id, kind, seed, params, spec)
         SELECT run_id, $1, kind, seed, params, spec
         FROM unnest($2::bigint[], $3::text[], $4::bigint[], $5::jsonb[], $6::jsonb[])
             AS r(run_id, kind, seed, params, spec)",
    )
    .bind(sweep.0)
    .bind(ids)
    .bind(kinds)
    .bind(seeds)
    .bind(params)
    .bind(specs)
    .execute(connection)
    .await?;
    Ok(())
}

async fn insert_jobs(
    connection: &mut PgConnection,
    plan: &Plan,
    jobs: &[JobInfo],
    found: &Found,
    satisfied: &[bool],
) -> Result<(), StoreError> {
    let mut seen = BTreeSet::new();
    let repeats: Vec<bool> = jobs.iter().map(|j| !seen.insert((j.run, j.key))).collect();
    let all: Vec<usize> = (0..jobs.len()).collect();
    for part in all.chunks(JOBS) {
        let of = |value: fn(&JobInfo) -> i64| part.iter().map(|i| value(&jobs[*i])).collect::<Vec<i64>>();
        let result = |i: usize| satisfied[i].then(|| found.get(&jobs[i].key).map(|(id, _)| *id)).flatten();
        let works: Vec<Json<&JobWork>> = part.iter().map(|i| Json(&plan.jobs[*i].work)).collect();
        sqlx::query(
            "WITH w AS (
                 SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::text[], $5::bigint[], $6::bytea[],
                     $7::float8[], $8::boolean[], $9::text[], $10::bigint[], $11::jsonb[])
                     AS w(job_id, sweep_id, run_id, kind, step, key, flops, repeats, state, result_id, work)
             ), j AS (
                 INSERT INTO taskvec.jobs (job_id, sweep_id, run_id, kind, step, key, flops, repeats, cached, state,
                     result_id, finished_at)
                 SELECT job_id, sweep_id, run_id, kind, step, key, flops, repeats, result_id IS NOT NULL, state,
                     result_id, CASE WHEN result_id IS NOT NULL THEN now() END
                 FROM w
             )
             INSERT INTO taskvec.job_work (job_id, work) SELECT job_id, work FROM w",
        )
        .bind(of(|j| j.id.0))
        .bind(of(|j| j.sweep.0))
        .bind(of(|j| j.run.0))
        .bind(part.iter().map(|i| plan.jobs[*i].kind().as_str()).collect::<Vec<_>>())
        .bind(part.iter().map(|i| plan.jobs[*i].step.map(u64::cast_signed)).collect::<Vec<_>>())
        .bind(part.iter().map(|i| jobs[*i].key.0.as_slice()).collect::<Vec<_>>())
        .bind(part.iter().map(|i| plan.jobs[*i].flops).collect::<Vec<_>>())
        .bind(part.iter().map(|i| repeats[*i]).collect::<Vec<_>>())
        .bind(part.iter().map(|i| jobs[*i].state.as_str()).collect::<Vec<_>>())
        .bind(part.iter().map(|i| result(*i)).collect::<Vec<_>>())
        .bind(works)
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

async fn insert_needs(connection: &mut PgConnection, plan: &Plan, jobs: &[JobInfo]) -> Result<(), StoreError> {
    let edges = plan.jobs.iter().zip(jobs).flat_map(|(p, j)| p.needs.iter().map(|n| (j.id, n)));
    let (mut readers, mut read, mut steps, mut purposes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (reader, need) in edges {
        readers.push(reader.0);
        read.push(jobs[need.job].id.0);
        steps.push(need.step.cast_signed());
        purposes.push(need.purpose.as_str());
    }
    sqlx::query(
        "INSERT INTO taskvec.job_needs (job_id, needs_job_id, step, purpose)
         SELECT DISTINCT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::text[])",
    )
    .bind(readers)
    .bind(read)
    .bind(steps)
    .bind(purposes)
    .execute(connection)
    .await?;
    Ok(())
}

//! Success: an attempt's rows, checkpoints and completion become visible together.

use super::{Outcomes, all_touched, attempts::columns, handover};
use crate::{error::StoreError, metric, outcome::Outcome, row};
use sqlx::PgConnection;
use std::collections::{BTreeMap, BTreeSet};
use taskvec_model::{
    id::{AttemptRef, JobId},
    schedule::Change,
};

/// A success that the database has accepted.
struct Success<'a> {
    attempt: AttemptRef,
    jobs: &'a [JobId],
    outcome: &'a Outcome,
    key: Vec<u8>,
    kind: String,
}

/// Of running attempts that are the newest of their jobs and hold their lease. The other jobs wait or are ready.
pub(super) async fn complete(
    connection: &mut PgConnection,
    changes: &[&Change],
    outcomes: &Outcomes,
) -> Result<(), StoreError> {
    let mut done = Vec::new();
    for change in changes {
        let Change::Complete { attempt, jobs } = change else { continue };
        let none = || StoreError::Conflict(format!("{attempt} succeeds without an outcome"));
        done.push((*attempt, jobs.as_slice(), outcomes.get(attempt).ok_or_else(none)?));
    }
    for (attempt, _, outcome) in &done {
        outcome.check().map_err(|why| StoreError::BadOutcome { attempt: *attempt, why })?;
    }
    let mut owners = finish_attempts(connection, &done).await?;
    let successes: Vec<Success> = done
        .into_iter()
        .filter_map(|(attempt, jobs, outcome)| {
            let (key, kind) = owners.remove(&attempt.job.0)?;
            Some(Success { attempt, jobs, outcome, key, kind })
        })
        .collect();
    let results = put_results(connection, &successes).await?;
    put_checkpoints(connection, &successes, &results).await?;
    finish_jobs(connection, &successes, &results).await
}

type Done<'a> = (AttemptRef, &'a [JobId], &'a Outcome);

/// Gives the key and kind of each attempt's job.
async fn finish_attempts(
    connection: &mut PgConnection,
    done: &[Done<'_>],
) -> Result<BTreeMap<i64, (Vec<u8>, String)>, StoreError> {
    let attempts: Vec<AttemptRef> = done.iter().map(|(attempt, ..)| *attempt).collect();
    let (jobs, numbers) = columns(&attempts);
    let logs: Vec<_> = done.iter().map(|(.., outcome)| row::text(&outcome.log)).collect();
    let rows: Vec<(i64, Vec<u8>, String)> = sqlx::query_as(
        "UPDATE taskvec.attempts a SET state = 'succeeded', finished_at = clock_timestamp(), log = w.log
         FROM unnest($1::bigint[], $2::integer[], $3::text[]) AS w(job_id, number, log)
         JOIN taskvec.jobs j ON j.job_id = w.job_id AND j.attempts = w.number AND j.state = 'running'
         WHERE a.job_id = w.job_id AND a.number = w.number AND a.state = 'running'
             AND a.lease_expires_at > clock_timestamp()
         RETURNING j.job_id, j.key, j.kind",
    )
    .bind(jobs)
    .bind(numbers)
    .bind(logs)
    .fetch_all(connection)
    .await?;
    all_touched(attempts, rows.iter().map(|r| r.0).collect())?;
    Ok(rows.into_iter().map(|(job, key, kind)| (job, (key, kind))).collect())
}

/// The results by key; metric rows are stored only with a result that is new.
async fn put_results(
    connection: &mut PgConnection,
    successes: &[Success<'_>],
) -> Result<BTreeMap<Vec<u8>, i64>, StoreError> {
    let keys: Vec<&[u8]> = successes.iter().map(|s| s.key.as_slice()).collect();
    let kinds: Vec<&str> = successes.iter().map(|s| s.kind.as_str()).collect();
    let fresh: Vec<(Vec<u8>, i64)> = sqlx::query_as(
        "INSERT INTO taskvec.results (key, kind)
         SELECT key, kind FROM unnest($1::bytea[], $2::text[]) WITH ORDINALITY AS w(key, kind, n) ORDER BY n
         ON CONFLICT (key) DO NOTHING RETURNING key, result_id",
    )
    .bind(&keys)
    .bind(kinds)
    .fetch_all(&mut *connection)
    .await?;
    let mut fresh: BTreeMap<Vec<u8>, i64> = fresh.into_iter().collect();
    let all: BTreeMap<Vec<u8>, i64> = if fresh.len() == successes.len() {
        fresh.clone()
    } else {
        let rows: Vec<(Vec<u8>, i64)> =
            sqlx::query_as("SELECT key, result_id FROM taskvec.results WHERE key = ANY ($1)")
                .bind(&keys)
                .fetch_all(&mut *connection)
                .await?;
        rows.into_iter().collect()
    };
    let rows: Vec<_> =
        successes.iter().filter_map(|s| Some((fresh.remove(&s.key)?, &s.outcome.produced.metrics))).collect();
    metric::insert(connection, &rows).await?;
    Ok(all)
}

/// Also restores those that were removed from a result that was already stored.
async fn put_checkpoints(
    connection: &mut PgConnection,
    successes: &[Success<'_>],
    results: &BTreeMap<Vec<u8>, i64>,
) -> Result<(), StoreError> {
    let (mut ids, mut steps, mut purposes, mut digests) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for success in successes {
        for checkpoint in &success.outcome.produced.checkpoints {
            ids.push(results[&success.key]);
            steps.push(checkpoint.step.cast_signed());
            purposes.push(checkpoint.purpose.as_str());
            digests.push((success.attempt, checkpoint.blob.digest));
        }
    }
    if ids.is_empty() {
        return Ok(());
    }
    handover::record_blobs(connection, digests.iter().copied()).await?;
    let digests: Vec<&[u8]> = digests.iter().map(|(_, d)| d.0.as_slice()).collect();
    sqlx::query(
        "INSERT INTO taskvec.checkpoints (result_id, step, purpose, digest)
         SELECT result_id, step, purpose, digest
         FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::bytea[]) WITH ORDINALITY
             AS w(result_id, step, purpose, digest, n)
         ORDER BY n
         ON CONFLICT (result_id, step, purpose) DO NOTHING",
    )
    .bind(ids)
    .bind(steps)
    .bind(purposes)
    .bind(digests)
    .execute(connection)
    .await?;
    Ok(())
}

/// Jobs that are done need no handover any more. (In one statement: each costs a round trip at every completion.)
async fn finish_jobs(
    connection: &mut PgConnection,
    successes: &[Success<'_>],
    results: &BTreeMap<Vec<u8>, i64>,
) -> Result<(), StoreError> {
    let (mut jobs, mut ids, mut own, mut of) = (Vec::new(), Vec::new(), Vec::new(), BTreeMap::new());
    for success in successes {
        let all: BTreeSet<JobId> = success.jobs.iter().chain([&success.attempt.job]).copied().collect();
        for job in all {
            jobs.push(job.0);
            ids.push(results[&success.key]);
            own.push(job == success.attempt.job);
            of.insert(job, success.attempt);
        }
    }
    let touched: Vec<i64> = sqlx::query_scalar(
        "WITH forgotten AS (DELETE FROM taskvec.handovers WHERE job_id = ANY ($1::bigint[]))
         UPDATE taskvec.jobs j SET state = 'done', result_id = w.result_id, finished_at = clock_timestamp(), error = NULL
         FROM unnest($1::bigint[], $2::bigint[], $3::boolean[]) AS w(job_id, result_id, own)
         JOIN taskvec.results r USING (result_id)
         WHERE j.job_id = w.job_id AND j.key = r.key
             AND CASE WHEN w.own THEN j.state = 'running' ELSE j.state IN ('waiting', 'ready') END
         RETURNING j.job_id",
    )
    .bind(jobs)
    .bind(ids)
    .bind(own)
    .fetch_all(connection)
    .await?;
    let touched: BTreeSet<JobId> = touched.into_iter().map(JobId).collect();
    match of.into_iter().find(|(job, _)| !touched.contains(job)) {
        Some((job, attempt)) => Err(StoreError::Conflict(format!(
            "job {job} cannot be done with the result of {attempt}: it has another key, or is running or has ended"
        ))),
        None => Ok(()),
    }
}

//! The life of attempts, but for their success.

use super::{Outcomes, all_touched, handover};
use crate::{error::StoreError, row};
use sqlx::PgConnection;
use std::borrow::Cow;
use taskvec_model::{id::AttemptRef, schedule::Change, state::AttemptState};

/// Of ready jobs whose newest attempt is the one before.
pub(super) async fn start(connection: &mut PgConnection, changes: &[&Change], lease: i64) -> Result<(), StoreError> {
    let (mut attempts, mut workers, mut slots) = (Vec::new(), Vec::new(), Vec::new());
    for change in changes {
        if let Change::Start { attempt, slot } = change {
            attempts.push(*attempt);
            workers.push(slot.worker.0);
            slots.push(i32::try_from(slot.number).unwrap_or(i32::MAX));
        }
    }
    let (jobs, numbers) = columns(&attempts);
    let touched = sqlx::query_scalar(
        "WITH wanted AS (
             SELECT * FROM unnest($1::bigint[], $2::integer[], $3::bigint[], $4::integer[])
                 AS w(job_id, number, worker_id, slot)
         ), moved AS (
             UPDATE taskvec.jobs j SET state = 'running', attempts = w.number, worker_id = w.worker_id,
                 started_at = clock_timestamp(), finished_at = NULL
             FROM wanted w WHERE j.job_id = w.job_id AND j.state = 'ready' AND j.attempts = w.number - 1
             RETURNING j.job_id, j.attempts, j.worker_id, w.slot, j.started_at
         )
         INSERT INTO taskvec.attempts (job_id, number, worker_id, slot, state, started_at, lease_expires_at)
         SELECT job_id, attempts, worker_id, slot, 'running', started_at, started_at + $5 * interval '1 microsecond'
         FROM moved RETURNING job_id",
    )
    .bind(jobs)
    .bind(numbers)
    .bind(workers)
    .bind(slots)
    .bind(lease)
    .fetch_all(connection)
    .await?;
    all_touched(attempts, touched)
}

/// Of running attempts, even if their lease is over by the database's clock: the scheduler has not ended them.
pub(super) async fn renew(connection: &mut PgConnection, changes: &[&Change], lease: i64) -> Result<(), StoreError> {
    let mut attempts = Vec::new();
    for change in changes {
        if let Change::Renew { attempts: renewed } = change {
            attempts.extend_from_slice(renewed);
        }
    }
    let (jobs, numbers) = columns(&attempts);
    let touched = sqlx::query_scalar(
        "UPDATE taskvec.attempts a SET lease_expires_at = clock_timestamp() + $3 * interval '1 microsecond'
         FROM unnest($1::bigint[], $2::integer[]) AS w(job_id, number)
         WHERE a.job_id = w.job_id AND a.number = w.number AND a.state = 'running'
         RETURNING a.job_id",
    )
    .bind(jobs)
    .bind(numbers)
    .bind(lease)
    .fetch_all(connection)
    .await?;
    all_touched(attempts, touched)
}

/// One attempt's end, for `unnest`.
#[derive(Default)]
struct Ends<'a> {
    attempts: Vec<AttemptRef>,
    how: Vec<&'static str>,
    leased: Vec<bool>,
    job_states: Vec<&'static str>,
    ended: Vec<bool>,
    failures: Vec<i32>,
    reasons: Vec<Option<Cow<'a, str>>>,
    logs: Vec<Option<Cow<'a, str>>>,
}

/// Of running attempts that are the newest of their jobs; one that handed something back must hold its lease.
pub(super) async fn end(
    connection: &mut PgConnection,
    changes: &[&Change],
    outcomes: &Outcomes,
) -> Result<(), StoreError> {
    let mut e = Ends::default();
    for change in changes {
        if let Change::End { attempt, how, job_state, failures, reason } = change {
            let outcome = outcomes.get(attempt);
            e.attempts.push(*attempt);
            e.how.push(how.as_str());
            e.leased.push(outcome.is_some());
            e.job_states.push(job_state.as_str());
            e.ended.push(job_state.ended());
            e.failures.push(i32::try_from(*failures).unwrap_or(i32::MAX));
            e.reasons.push(reason.as_deref().map(row::text));
            e.logs.push(outcome.map(|o| row::text(&o.log)));
        }
    }
    let attempts = e.attempts.clone();
    let touched = update_ended(connection, e).await?;
    all_touched(attempts, touched)?;
    for change in changes {
        let Change::End { attempt, how, .. } = change else { continue };
        match (how, outcomes.get(attempt).and_then(|o| o.handover.as_ref())) {
            (AttemptState::Released, Some(handover)) => handover::put(connection, *attempt, handover).await?,
            // It may be why the attempt failed: the next one starts from the beginning.
            (AttemptState::Failed, _) => handover::forget(connection, &[attempt.job.0]).await?,
            _ => {}
        }
    }
    Ok(())
}

async fn update_ended(connection: &mut PgConnection, e: Ends<'_>) -> Result<Vec<i64>, StoreError> {
    let (jobs, numbers) = columns(&e.attempts);
    let touched = sqlx::query_scalar(
        "WITH wanted AS (
             SELECT * FROM unnest($1::bigint[], $2::integer[], $3::text[], $4::boolean[], $5::text[], $6::boolean[],
                 $7::integer[], $8::text[], $9::text[])
                 AS w(job_id, number, how, leased, job_state, ended, failures, reason, log)
         ), over AS (
             UPDATE taskvec.attempts a SET state = w.how, finished_at = clock_timestamp(), reason = w.reason, log = w.log
             FROM wanted w
             WHERE a.job_id = w.job_id AND a.number = w.number AND a.state = 'running'
                 AND (NOT w.leased OR a.lease_expires_at > clock_timestamp())
             RETURNING w.*
         )
         UPDATE taskvec.jobs j SET state = o.job_state, failures = o.failures,
             error = CASE WHEN o.ended OR o.how IN ('failed', 'expired') THEN o.reason END,
             finished_at = CASE WHEN o.ended THEN clock_timestamp() END
         FROM over o WHERE j.job_id = o.job_id AND j.state = 'running' AND j.attempts = o.number
         RETURNING j.job_id",
    )
    .bind(jobs)
    .bind(numbers)
    .bind(e.how)
    .bind(e.leased)
    .bind(e.job_states)
    .bind(e.ended)
    .bind(e.failures)
    .bind(e.reasons)
    .bind(e.logs)
    .fetch_all(connection)
    .await?;
    Ok(touched)
}

pub(super) fn columns(attempts: &[AttemptRef]) -> (Vec<i64>, Vec<i32>) {
    attempts.iter().map(|a| (a.job.0, a.number)).unzip()
}

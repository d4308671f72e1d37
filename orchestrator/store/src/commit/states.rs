//! Changes of state that concern no attempt.

use crate::{error::StoreError, row};
use sqlx::PgConnection;
use std::{borrow::Cow, collections::BTreeSet};
use taskvec_model::schedule::Change;

/// Neither a running job nor one that is done.
pub(super) async fn set_jobs(connection: &mut PgConnection, changes: &[&Change]) -> Result<(), StoreError> {
    let (mut ids, mut states, mut ended, mut reasons) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for change in changes {
        let Change::SetJobs { jobs, state, reason } = change else { continue };
        for job in jobs {
            ids.push(job.0);
            states.push(state.as_str());
            ended.push(state.ended());
            reasons.push(reason.as_deref().map(row::text));
        }
    }
    let touched = sqlx::query_scalar(
        "UPDATE taskvec.jobs j SET state = w.state, error = w.reason,
             finished_at = CASE WHEN w.ended THEN clock_timestamp() END
         FROM unnest($1::bigint[], $2::text[], $3::boolean[], $4::text[]) AS w(job_id, state, ended, reason)
         WHERE j.job_id = w.job_id AND j.state NOT IN ('running', 'done')
         RETURNING j.job_id",
    )
    .bind(&ids)
    .bind(states)
    .bind(ended)
    .bind::<Vec<Option<Cow<'_, str>>>>(reasons)
    .fetch_all(connection)
    .await?;
    all_there("job", "is unknown, running or done, so that its state cannot be set", ids, touched)
}

pub(super) async fn forget_failures(connection: &mut PgConnection, changes: &[&Change]) -> Result<(), StoreError> {
    let mut ids = Vec::new();
    for change in changes {
        if let Change::ForgetFailures { jobs } = change {
            ids.extend(jobs.iter().map(|j| j.0));
        }
    }
    let touched = sqlx::query_scalar("UPDATE taskvec.jobs SET failures = 0 WHERE job_id = ANY ($1) RETURNING job_id")
        .bind(&ids)
        .fetch_all(connection)
        .await?;
    all_there("job", "is unknown", ids, touched)
}

pub(super) async fn set_sweeps(connection: &mut PgConnection, changes: &[&Change]) -> Result<(), StoreError> {
    let (mut ids, mut states, mut ended) = (Vec::new(), Vec::new(), Vec::new());
    for change in changes {
        let Change::SetSweep { sweep, state } = change else { continue };
        ids.push(sweep.0);
        states.push(state.as_str());
        ended.push(state.ended());
    }
    let touched = sqlx::query_scalar(
        "UPDATE taskvec.sweeps s SET state = w.state, finished_at = CASE WHEN w.ended THEN clock_timestamp() END
         FROM unnest($1::bigint[], $2::text[], $3::boolean[]) AS w(sweep_id, state, ended)
         WHERE s.sweep_id = w.sweep_id RETURNING s.sweep_id",
    )
    .bind(&ids)
    .bind(states)
    .bind(ended)
    .fetch_all(connection)
    .await?;
    all_there("sweep", "is unknown", ids, touched)
}

pub(super) async fn set_priorities(connection: &mut PgConnection, changes: &[&Change]) -> Result<(), StoreError> {
    let (mut ids, mut priorities) = (Vec::new(), Vec::new());
    for change in changes {
        let Change::SetPriority { sweep, priority } = change else { continue };
        ids.push(sweep.0);
        priorities.push(*priority);
    }
    let touched = sqlx::query_scalar(
        "UPDATE taskvec.sweeps s SET priority = w.priority
         FROM unnest($1::bigint[], $2::integer[]) AS w(sweep_id, priority)
         WHERE s.sweep_id = w.sweep_id RETURNING s.sweep_id",
    )
    .bind(&ids)
    .bind(priorities)
    .fetch_all(connection)
    .await?;
    all_there("sweep", "is unknown", ids, touched)
}

pub(super) async fn set_workers(connection: &mut PgConnection, changes: &[&Change]) -> Result<(), StoreError> {
    let (mut ids, mut states) = (Vec::new(), Vec::new());
    for change in changes {
        let Change::SetWorker { worker, state } = change else { continue };
        ids.push(worker.0);
        states.push(state.as_str());
    }
    let touched = sqlx::query_scalar(
        "UPDATE taskvec.workers k SET state = w.state, left_at = CASE w.state WHEN 'left' THEN clock_timestamp() END
         FROM unnest($1::bigint[], $2::text[]) AS w(worker_id, state)
         WHERE k.worker_id = w.worker_id RETURNING k.worker_id",
    )
    .bind(&ids)
    .bind(states)
    .fetch_all(connection)
    .await?;
    all_there("worker", "is unknown", ids, touched)
}

fn all_there(what: &str, why: &str, wanted: Vec<i64>, touched: Vec<i64>) -> Result<(), StoreError> {
    let touched: BTreeSet<i64> = touched.into_iter().collect();
    match wanted.into_iter().find(|id| !touched.contains(id)) {
        Some(id) => Err(StoreError::Conflict(format!("{what} {id} {why}"))),
        None => Ok(()),
    }
}

//! One transaction for all that the scheduler decided at once.

mod attempts;
mod batch;
mod complete;
mod handover;
mod states;

use crate::{Leader, error::StoreError, outcome::Outcome};
use batch::{Group, Kind};
use sqlx::PgConnection;
use std::collections::{BTreeMap, BTreeSet};
use taskvec_model::{
    id::{AttemptRef, JobId},
    schedule::Change,
};

/// What workers handed back, by attempt.
pub(crate) type Outcomes = BTreeMap<AttemptRef, Outcome>;

impl Leader {
    /// Stores all `changes`, or none. `outcomes` holds what the attempts that end here handed back; an attempt that
    /// succeeds must have one, and an attempt that has one must still hold its lease.
    ///
    /// [`StoreError::Stale`] and [`StoreError::Conflict`] say that the scheduler's state is not the database's: rebuild
    /// it. After [`StoreError::Unavailable`] it is unknown whether the changes were stored.
    pub async fn commit(&mut self, changes: &[Change], outcomes: &Outcomes) -> Result<(), StoreError> {
        let lease = self.lease_micros();
        let mut tx = self.begin().await?;
        for group in batch::groups(changes) {
            store(&mut tx, &group, outcomes, lease).await?;
        }
        Ok(tx.commit().await?)
    }
}

async fn store(
    connection: &mut PgConnection,
    group: &Group<'_>,
    outcomes: &Outcomes,
    lease: i64,
) -> Result<(), StoreError> {
    let changes = &group.changes;
    match group.kind {
        Kind::Start => attempts::start(connection, changes, lease).await,
        Kind::Renew => attempts::renew(connection, changes, lease).await,
        Kind::End => attempts::end(connection, changes, outcomes).await,
        Kind::Complete => complete::complete(connection, changes, outcomes).await,
        Kind::SetJobs => states::set_jobs(connection, changes).await,
        Kind::ForgetFailures => states::forget_failures(connection, changes).await,
        Kind::SetSweep => states::set_sweeps(connection, changes).await,
        Kind::SetPriority => states::set_priorities(connection, changes).await,
        Kind::SetWorker => states::set_workers(connection, changes).await,
    }
}

/// Refuses the batch if a statement touched fewer attempts than it should have; names the first that it did not.
fn all_touched(wanted: impl IntoIterator<Item = AttemptRef>, touched: Vec<i64>) -> Result<(), StoreError> {
    let touched: BTreeSet<JobId> = touched.into_iter().map(JobId).collect();
    match wanted.into_iter().find(|a| !touched.contains(&a.job)) {
        Some(attempt) => Err(StoreError::Stale(attempt)),
        None => Ok(()),
    }
}

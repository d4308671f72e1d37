//! Where stopped training segments left off.

use crate::error::StoreError;
use sqlx::{PgConnection, types::Json};
use std::collections::BTreeSet;
use taskvec_model::{
    id::{AttemptRef, Digest},
    job::Handover,
};

/// Replaces what the job had.
pub(super) async fn put(
    connection: &mut PgConnection,
    attempt: AttemptRef,
    handover: &Handover,
) -> Result<(), StoreError> {
    let blobs: BTreeSet<Digest> =
        handover.produced.checkpoints.iter().chain([&handover.state]).map(|c| c.blob.digest).collect();
    record_blobs(connection, blobs.iter().map(|digest| (attempt, *digest))).await?;
    forget(connection, &[attempt.job.0]).await?;
    sqlx::query("INSERT INTO taskvec.handovers (job_id, handover) VALUES ($1, $2)")
        .bind(attempt.job.0)
        .bind(Json(handover))
        .execute(&mut *connection)
        .await?;
    let digests: Vec<&[u8]> = blobs.iter().map(|d| d.0.as_slice()).collect();
    sqlx::query("INSERT INTO taskvec.handover_blobs (job_id, digest) SELECT $1, unnest($2::bytea[])")
        .bind(attempt.job.0)
        .bind(digests)
        .execute(connection)
        .await?;
    Ok(())
}

pub(super) async fn forget(connection: &mut PgConnection, jobs: &[i64]) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM taskvec.handovers WHERE job_id = ANY ($1)").bind(jobs).execute(connection).await?;
    Ok(())
}

/// Notes that something refers to these blobs from now on. [`StoreError::MissingBlob`] where one is not stored.
pub(super) async fn record_blobs(
    connection: &mut PgConnection,
    blobs: impl Iterator<Item = (AttemptRef, Digest)>,
) -> Result<(), StoreError> {
    let blobs: Vec<(AttemptRef, Digest)> = blobs.collect();
    if blobs.is_empty() {
        return Ok(());
    }
    let digests: BTreeSet<&[u8]> = blobs.iter().map(|(_, d)| d.0.as_slice()).collect();
    let found: Vec<Vec<u8>> = sqlx::query_scalar(
        "UPDATE taskvec.blobs SET recorded_at = clock_timestamp() WHERE digest = ANY ($1) RETURNING digest",
    )
    .bind(digests.into_iter().collect::<Vec<_>>())
    .fetch_all(connection)
    .await?;
    let found: BTreeSet<&[u8]> = found.iter().map(Vec::as_slice).collect();
    match blobs.into_iter().find(|(_, digest)| !found.contains(digest.0.as_slice())) {
        Some((attempt, digest)) => Err(StoreError::MissingBlob { attempt, digest }),
        None => Ok(()),
    }
}

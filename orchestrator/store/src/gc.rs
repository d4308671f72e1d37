//! Removal of what nobody needs: resume checkpoints whose readers are done, blobs that nothing refers to, and chunks
//! of no blob.
//!
//! Three races are excluded. A leader that comes to rely on a checkpoint or a blob holds the row of `taskvec.leader`
//! shared, and every batch here holds it exclusively. An upload that declares a blob marks its blob and chunks as
//! wanted, and what was wanted since it was last recorded stays for the grace period. The conditions are checked again
//! on each row as it is locked.

use crate::{
    Store,
    chunk::{Micros, Removed},
    error::StoreError,
    row::Place,
};
use sqlx::{Postgres, Transaction};
use std::time::Duration;
use taskvec_model::id::Digest;

const BATCH: i64 = 500;

/// What [`Store::gc`] may remove.
#[derive(Clone, Copy, Debug)]
pub struct GcPolicy {
    /// What an upload declared less than this ago, and no checkpoint refers to yet, stays.
    pub grace: Duration,
    /// Only count.
    pub dry_run: bool,
}

/// What [`Store::gc`] removed, or would have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GcReport {
    pub checkpoints: u64,
    pub blobs: u64,
    pub chunks: u64,
    /// In chunks.
    pub bytes: u64,
}

/// Resume checkpoints that no job reads which is not done. A job that failed or was cancelled may be retried, so it
/// keeps what it reads.
const UNNEEDED: &str = "
    SELECT checkpoint_id FROM taskvec.checkpoints c
    WHERE purpose = 'resume' AND NOT EXISTS (
        SELECT FROM taskvec.jobs made
        JOIN taskvec.job_needs n ON n.needs_job_id = made.job_id
        JOIN taskvec.jobs reader ON reader.job_id = n.job_id
        WHERE made.result_id = c.result_id AND n.step = c.step AND n.purpose = c.purpose AND reader.state <> 'done'
    )";

/// Blobs that nothing refers to but the checkpoints in `unneeded`, and that no upload may be about to refer to; $1 is the
/// end of the grace period. Their chunks are free if nobody has wanted them since `since`.
const DEAD_BLOBS: &str = "
    SELECT b.digest, CASE WHEN recorded_at >= last_wanted_at
        THEN (extract(epoch FROM recorded_at) * 1000000)::bigint ELSE $1 END AS since
    FROM taskvec.blobs b
    WHERE (last_wanted_at < 'epoch'::timestamptz + $1 * interval '1 microsecond' OR recorded_at >= last_wanted_at)
        AND NOT EXISTS (
            SELECT FROM taskvec.checkpoints c
            WHERE c.digest = b.digest AND c.checkpoint_id NOT IN (SELECT checkpoint_id FROM unneeded)
        )
        AND NOT EXISTS (SELECT FROM taskvec.handover_blobs h WHERE h.digest = b.digest)";

impl Store {
    /// Removes what no policy keeps, in small transactions; may run beside everything else.
    pub async fn gc(&self, policy: GcPolicy) -> Result<GcReport, StoreError> {
        let grace = i64::try_from(policy.grace.as_micros()).unwrap_or(i64::MAX);
        let cutoff: Micros = sqlx::query_scalar("SELECT (extract(epoch FROM now()) * 1000000)::bigint - $1")
            .bind(grace)
            .fetch_one(&self.pool)
            .await?;
        let mut report = if policy.dry_run { self.count(cutoff).await? } else { self.sweep_up(cutoff).await? };
        self.idle_chunks(cutoff, policy.dry_run, &mut report).await?;
        Ok(report)
    }

    async fn sweep_up(&self, cutoff: Micros) -> Result<GcReport, StoreError> {
        let mut report = GcReport::default();
        loop {
            let removed = self.remove_checkpoints().await?;
            report.checkpoints += removed;
            if removed < BATCH.unsigned_abs() {
                break;
            }
        }
        loop {
            let (removed, chunks) = self.remove_blobs(cutoff).await?;
            report.blobs += removed;
            report.add(self.chunks.remove(&chunks, false).await?);
            if removed < BATCH.unsigned_abs() {
                return Ok(report);
            }
        }
    }

    /// What [`Self::sweep_up`] would remove.
    async fn count(&self, cutoff: Micros) -> Result<GcReport, StoreError> {
        let (checkpoints, blobs): (i64, i64) = sqlx::query_as(sqlx::AssertSqlSafe(format!(
            "WITH unneeded AS ({UNNEEDED}), dead AS ({DEAD_BLOBS})
             SELECT (SELECT count(*) FROM unneeded), (SELECT count(*) FROM dead)"
        )))
        .bind(cutoff)
        .fetch_one(&self.pool)
        .await?;
        let chunks: Vec<(Vec<u8>, Micros)> = sqlx::query_as(sqlx::AssertSqlSafe(format!(
            "WITH unneeded AS ({UNNEEDED}), dead AS ({DEAD_BLOBS})
             SELECT c.hash, max(dead.since) FROM taskvec.blob_chunks c LEFT JOIN dead USING (digest)
             GROUP BY c.hash HAVING bool_and(dead.digest IS NOT NULL)"
        )))
        .bind(cutoff)
        .fetch_all(&self.pool)
        .await?;
        let unsigned = |n: i64| n.unsigned_abs();
        let mut report = GcReport { checkpoints: unsigned(checkpoints), blobs: unsigned(blobs), ..Default::default() };
        report.add(self.chunks.remove(&digests(chunks)?, true).await?);
        Ok(report)
    }

    async fn remove_checkpoints(&self) -> Result<u64, StoreError> {
        let mut tx = self.alone().await?;
        let removed = sqlx::query(sqlx::AssertSqlSafe(format!(
            "DELETE FROM taskvec.checkpoints WHERE checkpoint_id IN
                 (SELECT checkpoint_id FROM ({UNNEEDED}) AS u ORDER BY checkpoint_id LIMIT {BATCH})"
        )))
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(removed.rows_affected())
    }

    /// Removes a batch of blobs; gives their number, and the chunks that no blob has any more.
    async fn remove_blobs(&self, cutoff: Micros) -> Result<(u64, Vec<(Digest, Micros)>), StoreError> {
        let mut tx = self.alone().await?;
        let dead: Vec<(Vec<u8>, Micros)> = sqlx::query_as(sqlx::AssertSqlSafe(format!(
            "WITH unneeded AS (SELECT 0::bigint AS checkpoint_id WHERE false) {DEAD_BLOBS}
             ORDER BY b.digest LIMIT {BATCH} FOR UPDATE OF b"
        )))
        .bind(cutoff)
        .fetch_all(&mut *tx)
        .await?;
        let (dead_digests, since): (Vec<Vec<u8>>, Vec<Micros>) = dead.into_iter().unzip();
        let freed: Vec<(Vec<u8>, Micros)> = sqlx::query_as(
            "SELECT c.hash, max(d.since) FROM unnest($1::bytea[], $2::bigint[]) AS d(digest, since)
             JOIN taskvec.blob_chunks c USING (digest)
             WHERE NOT EXISTS (
                 SELECT FROM taskvec.blob_chunks other WHERE other.hash = c.hash AND other.digest <> ALL ($1)
             ) GROUP BY c.hash",
        )
        .bind(&dead_digests)
        .bind(since)
        .fetch_all(&mut *tx)
        .await?;
        sqlx::query("DELETE FROM taskvec.blobs WHERE digest = ANY ($1)").bind(&dead_digests).execute(&mut *tx).await?;
        tx.commit().await?;
        Ok((dead_digests.len() as u64, digests(freed)?))
    }

    /// Chunks of uploads that never became a blob.
    async fn idle_chunks(&self, cutoff: Micros, dry_run: bool, report: &mut GcReport) -> Result<(), StoreError> {
        let mut after = None;
        loop {
            let idle = self.chunks.idle(cutoff, after, 1000).await?;
            let Some(last) = idle.last() else { return Ok(()) };
            after = Some(*last);
            let hashes: Vec<&[u8]> = idle.iter().map(|h| h.0.as_slice()).collect();
            let free: Vec<(Vec<u8>, Micros)> = sqlx::query_as(
                "SELECT hash, $2 FROM unnest($1::bytea[]) AS i(hash)
                 WHERE NOT EXISTS (SELECT FROM taskvec.blob_chunks c WHERE c.hash = i.hash)",
            )
            .bind(hashes)
            .bind(cutoff)
            .fetch_all(&self.pool)
            .await?;
            report.add(self.chunks.remove(&digests(free)?, dry_run).await?);
        }
    }

    /// A transaction that no leader's overlaps.
    async fn alone(&self) -> Result<Transaction<'static, Postgres>, StoreError> {
        let mut tx = self.pool.begin().await?;
        sqlx::query("SELECT FROM taskvec.leader FOR UPDATE").execute(&mut *tx).await?;
        Ok(tx)
    }
}

impl GcReport {
    fn add(&mut self, removed: Removed) {
        self.chunks += removed.chunks;
        self.bytes += removed.bytes;
    }
}

fn digests(rows: Vec<(Vec<u8>, Micros)>) -> Result<Vec<(Digest, Micros)>, StoreError> {
    let place = Place { table: "blob_chunks", id: "?" };
    rows.iter().map(|(hash, since)| Ok((place.digest(hash)?, *since))).collect()
}

//! Blobs: safetensors files as lists of chunks.

use crate::{
    Store,
    chunk::ChunkStore,
    error::{Corrupt, StoreError},
    row::Place,
};
use sqlx::PgPool;
use std::{sync::Arc, vec};
use taskvec_model::{
    id::{CheckpointId, Digest, RunId},
    job::{BlobRef, CheckpointRef},
};

/// What a blob is made of, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobManifest {
    pub blob: BlobRef,
    pub chunks: Vec<Digest>,
}

/// A checkpoint as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredCheckpoint {
    pub id: CheckpointId,
    pub checkpoint: CheckpointRef,
    /// Runs that have it, ascending.
    pub runs: Vec<RunId>,
}

impl Store {
    /// Which of the chunks must be uploaded, as indices. The others are safe from [`Store::gc`] for its grace period.
    pub async fn missing_chunks(&self, hashes: &[Digest]) -> Result<Vec<usize>, StoreError> {
        let sizes = self.chunks.want(hashes).await?;
        Ok(sizes.iter().enumerate().filter(|(_, size)| size.is_none()).map(|(i, _)| i).collect())
    }

    pub async fn put_chunk(&self, hash: Digest, bytes: &[u8]) -> Result<(), StoreError> {
        self.chunks.put(hash, bytes).await
    }

    /// Declares a blob whose chunks are stored. That its digest is that of all its bytes, whoever reads it verifies.
    pub async fn put_blob(&self, manifest: &BlobManifest) -> Result<(), StoreError> {
        let BlobManifest { blob, chunks } = manifest;
        let bad = |why| StoreError::BadBlob { blob: blob.digest, why };
        let total = self.bytes_of(manifest).await?;
        if total != blob.bytes || total == 0 {
            return Err(bad(format!("its chunks have {total} bytes, not {}", blob.bytes)));
        }
        let mut tx = self.pool.begin().await?;
        let fresh: bool = sqlx::query_scalar(
            "INSERT INTO taskvec.blobs (digest, bytes) VALUES ($1, $2)
             ON CONFLICT (digest) DO UPDATE SET last_wanted_at = clock_timestamp()
             RETURNING xmax = 0",
        )
        .bind(blob.digest.0.as_slice())
        .bind(i64::try_from(total).map_err(|e| bad(e.to_string()))?)
        .fetch_one(&mut *tx)
        .await?;
        if fresh {
            let hashes: Vec<&[u8]> = chunks.iter().map(|c| c.0.as_slice()).collect();
            sqlx::query(
                "INSERT INTO taskvec.blob_chunks (digest, ordinal, hash)
                 SELECT $1, ordinal, hash FROM unnest($2::bytea[]) WITH ORDINALITY AS c(hash, ordinal)",
            )
            .bind(blob.digest.0.as_slice())
            .bind(hashes)
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await?;
        // Between the first look and the commit the collector may have taken a chunk that no blob had yet. From here on it
        // sees this blob; and what it chose before is safe again, since this look renews each chunk's claim.
        self.bytes_of(manifest).await.map(|_| ())
    }

    /// The bytes of all chunks of a blob, which are safe from [`Store::gc`] for its grace period from now on.
    async fn bytes_of(&self, BlobManifest { blob, chunks }: &BlobManifest) -> Result<u64, StoreError> {
        let sizes = self.chunks.want(chunks).await?;
        match sizes.iter().filter(|s| s.is_none()).count() {
            0 => Ok(sizes.into_iter().flatten().sum()),
            missing => Err(StoreError::BadBlob {
                blob: blob.digest,
                why: format!("{missing} of its {} chunks are not stored; upload them first", chunks.len()),
            }),
        }
    }

    /// Opens a blob for reading.
    pub async fn open_blob(&self, digest: Digest) -> Result<BlobReader, StoreError> {
        let place = Place { table: "blobs", id: digest };
        let rows: Vec<(i64, Vec<u8>)> = sqlx::query_as(
            "SELECT b.bytes, c.hash FROM taskvec.blobs b JOIN taskvec.blob_chunks c USING (digest)
             WHERE digest = $1 ORDER BY c.ordinal",
        )
        .bind(digest.0.as_slice())
        .fetch_all(&self.pool)
        .await?;
        let bytes = rows.first().ok_or(StoreError::UnknownBlob(digest))?.0;
        let chunks = rows.iter().map(|(_, hash)| place.digest(hash)).collect::<Result<Vec<_>, _>>()?;
        Ok(BlobReader {
            pool: self.pool.clone(),
            store: self.chunks.clone(),
            blob: BlobRef { digest, bytes: place.unsigned(bytes)? },
            chunks: chunks.into_iter(),
        })
    }

    /// A checkpoint by its identifier.
    pub async fn checkpoint(&self, id: CheckpointId) -> Result<StoredCheckpoint, StoreError> {
        let row: Option<CheckpointRow> = sqlx::query_as(
            "SELECT c.step, c.purpose, digest, b.bytes,
                    array(SELECT DISTINCT run_id FROM taskvec.jobs j WHERE j.result_id = c.result_id ORDER BY run_id)
                        AS runs
             FROM taskvec.checkpoints c JOIN taskvec.blobs b USING (digest) WHERE checkpoint_id = $1",
        )
        .bind(id.0)
        .fetch_optional(&self.pool)
        .await?;
        let row = row.ok_or(StoreError::Unknown { what: "checkpoint", id: id.0 })?;
        let place = Place { table: "checkpoints", id };
        let blob = BlobRef { digest: place.digest(&row.digest)?, bytes: place.unsigned(row.bytes)? };
        let checkpoint = CheckpointRef { step: place.unsigned(row.step)?, purpose: place.name(&row.purpose)?, blob };
        Ok(StoredCheckpoint { id, checkpoint, runs: row.runs.into_iter().map(RunId).collect() })
    }
}

#[derive(sqlx::FromRow)]
struct CheckpointRow {
    step: i64,
    purpose: String,
    digest: Vec<u8>,
    bytes: i64,
    runs: Vec<i64>,
}

/// Reads a blob, a chunk at a time.
pub struct BlobReader {
    pool: PgPool,
    store: Arc<dyn ChunkStore>,
    blob: BlobRef,
    chunks: vec::IntoIter<Digest>,
}

impl BlobReader {
    pub fn blob(&self) -> BlobRef {
        self.blob
    }

    /// The next chunk, verified against its hash; none at the end. The blob's own digest is left to whoever puts the
    /// chunks together. [`StoreError::Corrupt`] names the chunk, the blob and the checkpoints that are made of it.
    pub async fn next(&mut self) -> Result<Option<(Digest, Vec<u8>)>, StoreError> {
        let Some(hash) = self.chunks.next() else { return Ok(None) };
        match self.store.get(hash).await {
            Ok(bytes) => Ok(Some((hash, bytes))),
            Err(StoreError::Corrupt(corrupt)) => Err(StoreError::Corrupt(self.name(corrupt).await?)),
            Err(error) => Err(error),
        }
    }

    async fn name(&self, corrupt: Corrupt) -> Result<Corrupt, StoreError> {
        let ids: Vec<i64> = sqlx::query_scalar(
            "SELECT checkpoint_id FROM taskvec.checkpoints WHERE digest = $1 ORDER BY checkpoint_id",
        )
        .bind(self.blob.digest.0.as_slice())
        .fetch_all(&self.pool)
        .await?;
        let checkpoints = ids.into_iter().map(CheckpointId).collect();
        Ok(Corrupt { blob: Some(self.blob.digest), checkpoints, ..corrupt })
    }
}

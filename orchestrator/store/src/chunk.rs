//! Where the bytes of checkpoints lie: pieces of at most 4 MiB, named by their BLAKE3 hash.
//!
//! The trait is the whole of what a store of bytes must do, so that an object store can take the place of PostgreSQL.

use crate::error::{Corrupt, StoreError};
use sqlx::PgPool;
use std::{collections::BTreeMap, pin::Pin};
use taskvec_model::id::Digest;

/// The largest chunk, in bytes.
pub const MAX_CHUNK_BYTES: usize = 4 << 20;

/// Microseconds since 1970 by the clock of the chunk store. Only compared with one another.
pub type Micros = i64;

pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// What [`ChunkStore::remove`] removed, or would have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    pub chunks: u64,
    pub bytes: u64,
}

/// Chunks by content. Every call may be repeated.
pub trait ChunkStore: Send + Sync {
    /// The size of each chunk, none where it is not stored whole. From now on they count as wanted.
    fn want<'a>(&'a self, hashes: &'a [Digest]) -> BoxFuture<'a, Vec<Option<u64>>>;
    /// Stores a chunk. [`StoreError::BadChunk`] if the bytes are not those that `hash` names.
    fn put<'a>(&'a self, hash: Digest, bytes: &'a [u8]) -> BoxFuture<'a, ()>;
    /// The bytes, verified. [`StoreError::Corrupt`] if they are gone or no longer those that were stored.
    fn get(&self, hash: Digest) -> BoxFuture<'_, Vec<u8>>;
    /// At most `limit` chunks that nobody has wanted since `before`, in the order of their hashes, from beyond `after`.
    fn idle(&self, before: Micros, after: Option<Digest>, limit: u32) -> BoxFuture<'_, Vec<Digest>>;
    /// Removes those that nobody has wanted since the time beside them; with `dry_run`, only counts them.
    fn remove<'a>(&'a self, chunks: &'a [(Digest, Micros)], dry_run: bool) -> BoxFuture<'a, Removed>;
}

/// Chunks in a table of the same database.
pub(crate) struct PgChunks {
    pool: PgPool,
}

impl PgChunks {
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    async fn sizes(&self, hashes: &[Digest]) -> Result<Vec<Option<u64>>, StoreError> {
        let rows: Vec<(Vec<u8>, i32)> = sqlx::query_as(
            "WITH wanted AS (
                 SELECT hash FROM taskvec.chunks WHERE hash = ANY ($1) AND NOT damaged ORDER BY hash FOR UPDATE
             )
             UPDATE taskvec.chunks c SET last_wanted_at = clock_timestamp() FROM wanted w WHERE c.hash = w.hash
             RETURNING c.hash, c.bytes",
        )
        .bind(raw(hashes))
        .fetch_all(&self.pool)
        .await?;
        let found: BTreeMap<Vec<u8>, i32> = rows.into_iter().collect();
        Ok(hashes.iter().map(|h| found.get(h.0.as_slice()).and_then(|n| u64::try_from(*n).ok())).collect())
    }

    async fn insert(&self, hash: Digest, bytes: &[u8]) -> Result<(), StoreError> {
        check(hash, bytes).map_err(|why| StoreError::BadChunk { chunk: hash, why })?;
        sqlx::query(
            "INSERT INTO taskvec.chunks AS c (hash, bytes, data) VALUES ($1, length($2), $2)
             ON CONFLICT (hash) DO UPDATE SET
                 last_wanted_at = clock_timestamp(), damaged = false,
                 data = CASE WHEN c.damaged THEN excluded.data ELSE c.data END",
        )
        .bind(hash.0.as_slice())
        .bind(bytes)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    async fn read(&self, hash: Digest) -> Result<Vec<u8>, StoreError> {
        let corrupt = |why| StoreError::Corrupt(Corrupt { chunk: hash, blob: None, checkpoints: Vec::new(), why });
        let data: Option<Vec<u8>> = sqlx::query_scalar("SELECT data FROM taskvec.chunks WHERE hash = $1")
            .bind(hash.0.as_slice())
            .fetch_optional(&self.pool)
            .await?;
        let data = data.ok_or_else(|| corrupt("is gone"))?;
        if check(hash, &data).is_err() {
            // So that the next upload replaces it.
            sqlx::query("UPDATE taskvec.chunks SET damaged = true WHERE hash = $1")
                .bind(hash.0.as_slice())
                .execute(&self.pool)
                .await?;
            return Err(corrupt("is damaged: its bytes do not match its hash"));
        }
        Ok(data)
    }

    async fn list_idle(&self, before: Micros, after: Option<Digest>, limit: u32) -> Result<Vec<Digest>, StoreError> {
        let rows: Vec<Vec<u8>> = sqlx::query_scalar(
            "SELECT hash FROM taskvec.chunks
             WHERE last_wanted_at < 'epoch'::timestamptz + $1 * interval '1 microsecond' AND ($2::bytea IS NULL OR hash > $2)
             ORDER BY hash LIMIT $3",
        )
        .bind(before)
        .bind(after.map(|d| d.0.to_vec()))
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await?;
        let place = crate::row::Place { table: "chunks", id: "?" };
        rows.iter().map(|hash| place.digest(hash)).collect()
    }

    async fn delete(&self, chunks: &[(Digest, Micros)], dry_run: bool) -> Result<Removed, StoreError> {
        let hashes: Vec<&[u8]> = chunks.iter().map(|(hash, _)| hash.0.as_slice()).collect();
        let since: Vec<Micros> = chunks.iter().map(|(_, since)| *since).collect();
        let query = if dry_run {
            "SELECT count(*), coalesce(sum(c.bytes), 0)::bigint
             FROM taskvec.chunks c JOIN unnest($1::bytea[], $2::bigint[]) AS g(hash, since) USING (hash)
             WHERE c.last_wanted_at <= 'epoch'::timestamptz + g.since * interval '1 microsecond'"
        } else {
            "WITH gone AS (
                 DELETE FROM taskvec.chunks c USING unnest($1::bytea[], $2::bigint[]) AS g(hash, since)
                 WHERE c.hash = g.hash AND c.last_wanted_at <= 'epoch'::timestamptz + g.since * interval '1 microsecond'
                 RETURNING c.bytes
             )
             SELECT count(*), coalesce(sum(bytes), 0)::bigint FROM gone"
        };
        let (count, bytes): (i64, i64) = sqlx::query_as(query).bind(hashes).bind(since).fetch_one(&self.pool).await?;
        Ok(Removed { chunks: count.unsigned_abs(), bytes: bytes.unsigned_abs() })
    }
}

impl ChunkStore for PgChunks {
    fn want<'a>(&'a self, hashes: &'a [Digest]) -> BoxFuture<'a, Vec<Option<u64>>> {
        Box::pin(self.sizes(hashes))
    }

    fn put<'a>(&'a self, hash: Digest, bytes: &'a [u8]) -> BoxFuture<'a, ()> {
        Box::pin(self.insert(hash, bytes))
    }

    fn get(&self, hash: Digest) -> BoxFuture<'_, Vec<u8>> {
        Box::pin(self.read(hash))
    }

    fn idle(&self, before: Micros, after: Option<Digest>, limit: u32) -> BoxFuture<'_, Vec<Digest>> {
        Box::pin(self.list_idle(before, after, limit))
    }

    fn remove<'a>(&'a self, chunks: &'a [(Digest, Micros)], dry_run: bool) -> BoxFuture<'a, Removed> {
        Box::pin(self.delete(chunks, dry_run))
    }
}

fn raw(hashes: &[Digest]) -> Vec<&[u8]> {
    hashes.iter().map(|h| h.0.as_slice()).collect()
}

fn check(hash: Digest, bytes: &[u8]) -> Result<(), String> {
    if bytes.is_empty() || bytes.len() > MAX_CHUNK_BYTES {
        return Err(format!("it has {} bytes; 1 to {MAX_CHUNK_BYTES} are allowed", bytes.len()));
    }
    let found = Digest(*blake3::hash(bytes).as_bytes());
    if found == hash { Ok(()) } else { Err(format!("its bytes hash to {found}")) }
}

//! Stored results, by content key.

use crate::{Store, error::StoreError, row::Place};
use sqlx::PgConnection;
use std::collections::{BTreeMap, BTreeSet};
use taskvec_model::{id::JobKey, plan::CachedResult};

impl Store {
    /// Those of the results `keys` that are stored, with the checkpoints that are still there.
    pub async fn cached(&self, keys: &[JobKey]) -> Result<BTreeMap<JobKey, CachedResult>, StoreError> {
        let mut connection = self.pool.acquire().await?;
        let found = lookup(&mut connection, keys).await?;
        Ok(found.into_iter().map(|(key, (_, cached))| (key, cached)).collect())
    }
}

/// A result with one of its checkpoints, or with none.
#[derive(sqlx::FromRow)]
struct Row {
    key: Vec<u8>,
    result_id: i64,
    step: Option<i64>,
    purpose: Option<String>,
}

/// Results by key, each with its identifier.
pub(crate) type Found = BTreeMap<JobKey, (i64, CachedResult)>;

pub(crate) async fn lookup(connection: &mut PgConnection, keys: &[JobKey]) -> Result<Found, StoreError> {
    let bytes: Vec<&[u8]> = keys.iter().map(|k| k.0.as_slice()).collect();
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT r.key, r.result_id, c.step, c.purpose
         FROM (SELECT DISTINCT key FROM unnest($1::bytea[]) AS k(key)) AS k
         JOIN taskvec.results r USING (key) LEFT JOIN taskvec.checkpoints c USING (result_id)",
    )
    .bind(bytes)
    .fetch_all(connection)
    .await?;
    let mut out = Found::new();
    for row in rows {
        let place = Place { table: "results", id: row.result_id };
        let empty = || (row.result_id, CachedResult { checkpoints: BTreeSet::new() });
        let (_, cached) = out.entry(place.digest(&row.key)?).or_insert_with(empty);
        if let (Some(step), Some(purpose)) = (row.step, row.purpose) {
            cached.checkpoints.insert((place.unsigned(step)?, place.name(&purpose)?));
        }
    }
    Ok(out)
}

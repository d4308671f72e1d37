//! Workers, as they introduce themselves.

use crate::{Store, error::StoreError, row};
use taskvec_model::id::WorkerId;

/// What a worker says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerRecord {
    pub name: String,
    pub host: String,
    /// `cpu`, `cuda:0` …
    pub devices: Vec<String>,
    pub slots: u32,
    pub threads_per_slot: u32,
    /// Runs that it takes into one slot.
    pub stack: u32,
    pub pid: u32,
    pub version: String,
    /// Chosen at random by the process.
    pub nonce: u64,
}

impl Store {
    /// The worker's identifier: the one it had, for a nonce that is known. It counts as connected from now on, or as
    /// still draining.
    pub async fn register_worker(&self, worker: &WorkerRecord) -> Result<WorkerId, StoreError> {
        let small = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
        let devices: Vec<_> = worker.devices.iter().map(|d| row::text(d)).collect();
        let id = sqlx::query_scalar(
            "INSERT INTO taskvec.workers (nonce, name, host, devices, slots, threads_per_slot, pid, version, stack, state)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 'connected')
             ON CONFLICT (nonce) DO UPDATE SET
                 name = excluded.name, host = excluded.host, devices = excluded.devices, slots = excluded.slots,
                 threads_per_slot = excluded.threads_per_slot, pid = excluded.pid, version = excluded.version,
                 stack = excluded.stack,
                 state = CASE workers.state WHEN 'draining' THEN 'draining' ELSE 'connected' END, left_at = NULL
             RETURNING worker_id",
        )
        .bind(worker.nonce.cast_signed())
        .bind(row::text(&worker.name))
        .bind(row::text(&worker.host))
        .bind(devices)
        .bind(small(worker.slots))
        .bind(small(worker.threads_per_slot))
        .bind(i64::from(worker.pid))
        .bind(row::text(&worker.version))
        .bind(small(worker.stack))
        .fetch_one(&self.pool)
        .await?;
        Ok(WorkerId(id))
    }
}

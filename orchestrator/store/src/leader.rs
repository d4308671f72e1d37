//! The one server that decides.
//!
//! It holds a session's advisory lock on a connection of its own, and everything it decides is stored on that very
//! connection: when the connection is gone, so are the lead and whatever was not committed. The epoch is a second fence,
//! for setups (a connection pooler, a failover) in which a session's lock proves less than it should.

use crate::{Store, error::StoreError, row::Place};
use sqlx::{Connection, PgConnection, Postgres, Transaction};
use std::time::Duration;
use taskvec_model::{
    id::{JobId, RunId, SweepId, WorkerId},
    job::JobWork,
    schedule::{JobInfo, SlotRef, Snapshot, SweepInfo, WorkerInfo},
};

/// The advisory lock: `taskvec` in ASCII.
const LOCK: i64 = 0x0074_6173_6b76_6563;

/// What is acknowledged is on disk, whatever the database's default; and the database notices within a minute that this
/// machine is gone, so that another can take the lead. The few statements of a commit come again and again with arrays of
/// other lengths; without planning them anew each time, 10 000 empty jobs took 18.6 s instead of 23.2 s.
const SETTINGS: [(&str, &str); 6] = [
    ("synchronous_commit", "on"),
    ("plan_cache_mode", "force_generic_plan"),
    ("tcp_keepalives_idle", "20"),
    ("tcp_keepalives_interval", "10"),
    ("tcp_keepalives_count", "3"),
    ("client_connection_check_interval", "5s"),
];

/// Stores the scheduler's decisions. After [`StoreError::Unavailable`] it is of no more use: take the lead again.
pub struct Leader {
    pub(crate) connection: PgConnection,
    pub(crate) lease: Duration,
    epoch: i64,
}

impl Store {
    /// Takes the lead, or says that another server has it.
    pub async fn try_lead(&self) -> Result<Leader, StoreError> {
        let options = (*self.pool.connect_options()).clone().options(SETTINGS);
        let mut connection = PgConnection::connect_with(&options).await?;
        let locked: bool =
            sqlx::query_scalar("SELECT pg_try_advisory_lock($1)").bind(LOCK).fetch_one(&mut connection).await?;
        if !locked {
            return Err(StoreError::AnotherLeader);
        }
        // Waits for the last transaction of an earlier leader.
        let epoch = sqlx::query_scalar("UPDATE taskvec.leader SET epoch = epoch + 1 RETURNING epoch")
            .fetch_one(&mut connection)
            .await?;
        Ok(Leader { connection, lease: Duration::from_secs(20), epoch })
    }
}

impl Leader {
    /// How long a lease lasts from its grant or renewal; 20 s unless set.
    pub fn set_lease(&mut self, lease: Duration) {
        self.lease = lease;
    }

    /// All that the scheduler must know to go on. Every running attempt gets its full lease again, as the scheduler
    /// that starts from this snapshot assumes.
    pub async fn load(&mut self) -> Result<Snapshot, StoreError> {
        let lease = self.lease_micros();
        let mut tx = self.begin().await?;
        sqlx::query(
            "UPDATE taskvec.attempts SET lease_expires_at = clock_timestamp() + $1 * interval '1 microsecond'
             WHERE state = 'running'",
        )
        .bind(lease)
        .execute(&mut *tx)
        .await?;
        let snapshot = Snapshot {
            sweeps: sweeps(&mut tx, None).await?,
            jobs: jobs(&mut tx, None).await?,
            workers: workers(&mut tx).await?,
        };
        tx.commit().await?;
        Ok(snapshot)
    }

    /// One sweep, ended or not, with all its jobs.
    pub async fn sweep(&mut self, sweep: SweepId) -> Result<(SweepInfo, Vec<JobInfo>), StoreError> {
        let mut tx = self.begin().await?;
        let info = sweeps(&mut tx, Some(sweep)).await?.pop();
        let info = info.ok_or(StoreError::Unknown { what: "sweep", id: sweep.0 })?;
        let jobs = jobs(&mut tx, Some(sweep)).await?;
        tx.commit().await?;
        Ok((info, jobs))
    }

    /// Gives the lead back at once.
    pub async fn resign(self) -> Result<(), StoreError> {
        Ok(self.connection.close().await?)
    }

    /// A transaction that commits only under this leader's epoch.
    pub(crate) async fn begin(&mut self) -> Result<Transaction<'_, Postgres>, StoreError> {
        let mut tx = self.connection.begin().await?;
        let ours = sqlx::query("SELECT FROM taskvec.leader WHERE epoch = $1 FOR SHARE")
            .bind(self.epoch)
            .fetch_optional(&mut *tx)
            .await?;
        if ours.is_none() {
            return Err(StoreError::Deposed);
        }
        Ok(tx)
    }

    pub(crate) fn lease_micros(&self) -> i64 {
        i64::try_from(self.lease.as_micros()).unwrap_or(i64::MAX)
    }
}

/// The given sweep, or those that have not ended.
async fn sweeps(connection: &mut PgConnection, sweep: Option<SweepId>) -> Result<Vec<SweepInfo>, StoreError> {
    let rows: Vec<(i64, String, i32)> = sqlx::query_as(
        "SELECT sweep_id, state, priority FROM taskvec.sweeps
         WHERE sweep_id = $1 OR ($1 IS NULL AND state IN ('active', 'paused')) ORDER BY sweep_id",
    )
    .bind(sweep.map(|s| s.0))
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|(id, state, priority)| {
            Ok(SweepInfo { id: SweepId(id), state: Place { table: "sweeps", id }.name(&state)?, priority })
        })
        .collect()
}

#[derive(sqlx::FromRow)]
struct JobRow {
    job_id: i64,
    sweep_id: i64,
    run_id: i64,
    key: Vec<u8>,
    needs: Vec<i64>,
    state: String,
    attempts: i32,
    failures: i32,
    worker_id: Option<i64>,
    slot: Option<i32>,
    /// Of jobs that may share a slot.
    work: Option<serde_json::Value>,
}

/// The jobs of the given sweep, or of those that have not ended.
async fn jobs(connection: &mut PgConnection, sweep: Option<SweepId>) -> Result<Vec<JobInfo>, StoreError> {
    let rows: Vec<JobRow> = sqlx::query_as(
        "SELECT j.job_id, j.sweep_id, j.run_id, j.key, j.state, j.attempts, j.failures,
                a.worker_id, a.slot, w.work,
                array(SELECT DISTINCT needs_job_id FROM taskvec.job_needs n WHERE n.job_id = j.job_id
                      ORDER BY needs_job_id) AS needs
         FROM taskvec.jobs j JOIN taskvec.sweeps s USING (sweep_id)
         LEFT JOIN taskvec.attempts a ON j.state = 'running' AND a.job_id = j.job_id AND a.number = j.attempts
         LEFT JOIN taskvec.job_work w ON j.kind = 'train' AND w.job_id = j.job_id
         WHERE s.sweep_id = $1 OR ($1 IS NULL AND s.state IN ('active', 'paused')) ORDER BY j.job_id",
    )
    .bind(sweep.map(|s| s.0))
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(JobInfo::try_from).collect()
}

impl TryFrom<JobRow> for JobInfo {
    type Error = StoreError;
    fn try_from(r: JobRow) -> Result<Self, StoreError> {
        let place = Place { table: "jobs", id: r.job_id };
        let slot = match (r.worker_id, r.slot) {
            (Some(worker), Some(slot)) => Some(SlotRef { worker: WorkerId(worker), number: place.unsigned(slot)? }),
            _ => None,
        };
        // Work that cannot be read is told when it is assigned; it must not keep everything else from being read.
        let work: Option<JobWork> = r.work.and_then(|work| serde_json::from_value(work).ok());
        Ok(Self {
            id: JobId(r.job_id),
            sweep: SweepId(r.sweep_id),
            run: RunId(r.run_id),
            key: place.digest(&r.key)?,
            pack: work.and_then(|work| work.pack_key()),
            needs: r.needs.into_iter().map(JobId).collect(),
            state: place.name(&r.state)?,
            attempts: r.attempts,
            failures: place.unsigned(r.failures)?,
            slot,
        })
    }
}

/// Workers that have not left.
async fn workers(connection: &mut PgConnection) -> Result<Vec<WorkerInfo>, StoreError> {
    let rows: Vec<(i64, i32, String)> =
        sqlx::query_as("SELECT worker_id, slots, state FROM taskvec.workers WHERE state <> 'left' ORDER BY worker_id")
            .fetch_all(connection)
            .await?;
    rows.into_iter()
        .map(|(id, slots, state)| {
            let place = Place { table: "workers", id };
            Ok(WorkerInfo { id: WorkerId(id), slots: place.unsigned(slots)?, state: place.name(&state)? })
        })
        .collect()
}

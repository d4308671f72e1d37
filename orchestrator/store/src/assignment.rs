//! What an attempt is given to start from.

use crate::{Store, error::StoreError, row::Place};
use std::collections::BTreeMap;
use taskvec_model::{
    id::JobId,
    job::{Assignment, BlobRef, CheckpointRef},
};

#[derive(sqlx::FromRow)]
struct InputRow {
    job_id: i64,
    needs_job_id: i64,
    step: i64,
    purpose: String,
    digest: Option<Vec<u8>>,
    bytes: Option<i64>,
}

/// Assignments by job; [`StoreError::MissingInput`] where a checkpoint that the job reads is gone.
pub type Assignments = BTreeMap<JobId, Result<Assignment, StoreError>>;

impl Store {
    /// The work of a job, the checkpoints it reads and where an earlier attempt left off.
    pub async fn assignment(&self, job: JobId) -> Result<Assignment, StoreError> {
        self.assignments(&[job]).await?.remove(&job).unwrap_or(Err(StoreError::Unknown { what: "job", id: job.0 }))
    }

    /// Many at once. A job that cannot be assigned does not stand in the way of the others.
    pub async fn assignments(&self, jobs: &[JobId]) -> Result<Assignments, StoreError> {
        let ids: Vec<i64> = jobs.iter().map(|j| j.0).collect();
        let works: Vec<(i64, serde_json::Value, Option<serde_json::Value>)> = sqlx::query_as(
            "SELECT job_id, w.work, h.handover FROM taskvec.job_work w LEFT JOIN taskvec.handovers h USING (job_id)
             WHERE job_id = ANY ($1)",
        )
        .bind(&ids)
        .fetch_all(&self.pool)
        .await?;
        let mut inputs = self.inputs(&ids).await?;
        let mut assign = |(id, work, handover): (i64, _, Option<_>)| {
            let place = Place { table: "job_work", id };
            Ok(Assignment {
                work: place.json(work)?,
                handover: handover.map(|h| Place { table: "handovers", id }.json(h)).transpose()?,
                inputs: inputs.remove(&id).unwrap_or_default().into_iter().map(input).collect::<Result<_, _>>()?,
            })
        };
        Ok(works.into_iter().map(|row| (JobId(row.0), assign(row))).collect())
    }

    async fn inputs(&self, jobs: &[i64]) -> Result<BTreeMap<i64, Vec<InputRow>>, StoreError> {
        let rows: Vec<InputRow> = sqlx::query_as(
            "SELECT n.job_id, n.needs_job_id, n.step, n.purpose, c.digest, b.bytes
             FROM taskvec.job_needs n JOIN taskvec.jobs made ON made.job_id = n.needs_job_id
             LEFT JOIN taskvec.checkpoints c
                 ON c.result_id = made.result_id AND c.step = n.step AND c.purpose = n.purpose
             LEFT JOIN taskvec.blobs b ON b.digest = c.digest
             WHERE n.job_id = ANY ($1) ORDER BY n.job_id, n.purpose, n.needs_job_id, n.step",
        )
        .bind(jobs)
        .fetch_all(&self.pool)
        .await?;
        let mut out: BTreeMap<i64, Vec<InputRow>> = BTreeMap::new();
        for row in rows {
            out.entry(row.job_id).or_default().push(row);
        }
        Ok(out)
    }
}

fn input(row: InputRow) -> Result<CheckpointRef, StoreError> {
    let place = Place { table: "job_needs", id: row.job_id };
    let (step, purpose) = (place.unsigned(row.step)?, place.name(&row.purpose)?);
    let (Some(digest), Some(bytes)) = (row.digest, row.bytes) else {
        return Err(StoreError::MissingInput { job: JobId(row.job_id), from: JobId(row.needs_job_id), step, purpose });
    };
    Ok(CheckpointRef { step, purpose, blob: BlobRef { digest: place.digest(&digest)?, bytes: place.unsigned(bytes)? } })
}

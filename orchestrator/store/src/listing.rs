//! Named listings, with the columns of the result views.

use crate::{Store, error::StoreError};
use sqlx::{Postgres, QueryBuilder};
use std::str::FromStr;
use taskvec_model::{
    id::{JobId, RunId, SweepId},
    job::BadName,
    table::Table,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listing {
    /// Newest first.
    Sweeps,
    Runs,
    Jobs,
    /// Newest first.
    Workers,
    Checkpoints,
    Attempts,
    /// Attempts with what their workers wrote.
    JobLogs,
}

impl Listing {
    pub const ALL: [Self; 7] =
        [Self::Sweeps, Self::Runs, Self::Jobs, Self::Workers, Self::Checkpoints, Self::Attempts, Self::JobLogs];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sweeps => "sweeps",
            Self::Runs => "runs",
            Self::Jobs => "jobs",
            Self::Workers => "workers",
            Self::Checkpoints => "checkpoints",
            Self::Attempts => "attempts",
            Self::JobLogs => "job_logs",
        }
    }

    /// Columns, tables and order. Tables go by fixed names: s(weeps), r(uns), j(obs), w(orkers), a(ttempts),
    /// c(heckpoints).
    fn shape(self) -> Shape {
        const ATTEMPTS: &str =
            "taskvec.attempts a JOIN taskvec.jobs j USING (job_id) JOIN taskvec.workers w ON w.worker_id = a.worker_id";
        match self {
            Self::Sweeps => Shape {
                columns: &["sweep_id", "name", "state", "submitted_at", "finished_at", "spec", "priority"],
                from: "results.sweeps s",
                filters: Filters { sweep: Some("s.sweep_id"), state: Some("s.state"), ..Filters::NONE },
                order: "s.sweep_id DESC",
            },
            Self::Runs => Shape {
                columns: &["run_id", "sweep_id", "kind", "state", "seed", "params", "spec"],
                from: "results.runs r",
                filters: Filters {
                    sweep: Some("r.sweep_id"),
                    run: Some("r.run_id"),
                    state: Some("r.state"),
                    ..Filters::NONE
                },
                order: "r.run_id",
            },
            Self::Jobs => Shape {
                columns: &[
                    "job_id",
                    "run_id",
                    "sweep_id",
                    "kind",
                    "step",
                    "state",
                    "attempts",
                    "worker",
                    "started_at",
                    "finished_at",
                    "error",
                    "cached",
                    "worker_id",
                ],
                from: "results.jobs j",
                filters: Filters::of_jobs("j.state"),
                order: "j.job_id",
            },
            Self::Workers => Shape {
                columns: &[
                    "worker_id",
                    "name",
                    "host",
                    "state",
                    "devices",
                    "slots",
                    "threads_per_slot",
                    "stack",
                    "(SELECT count(*) FROM taskvec.attempts a WHERE a.worker_id = w.worker_id AND a.state = 'running')
                         AS running",
                    "registered_at",
                    "left_at",
                    "version",
                    "pid",
                ],
                from: "taskvec.workers w",
                filters: Filters { state: Some("w.state"), ..Filters::NONE },
                order: "w.worker_id DESC",
            },
            Self::Checkpoints => Shape {
                columns: &["checkpoint_id", "run_id", "step", "bytes", "digest", "created_at", "purpose"],
                from: "results.checkpoints c JOIN taskvec.runs r USING (run_id)",
                filters: Filters { sweep: Some("r.sweep_id"), run: Some("run_id"), ..Filters::NONE },
                order: "run_id, step, purpose",
            },
            Self::Attempts => Shape {
                columns: &[
                    "job_id",
                    "a.number",
                    "a.state",
                    "w.name AS worker",
                    "w.worker_id",
                    "a.started_at",
                    "a.finished_at",
                    "a.lease_expires_at",
                    "a.reason",
                ],
                from: ATTEMPTS,
                filters: Filters::of_jobs("a.state"),
                order: "job_id, a.number",
            },
            Self::JobLogs => Shape {
                columns: &["job_id", "a.number", "a.state", "w.name AS worker", "a.reason", "a.log"],
                from: ATTEMPTS,
                filters: Filters::of_jobs("a.state"),
                order: "job_id, a.number",
            },
        }
    }
}

impl FromStr for Listing {
    type Err = BadName;
    fn from_str(s: &str) -> Result<Self, BadName> {
        Self::ALL.into_iter().find(|l| l.as_str() == s).ok_or_else(|| BadName { what: "listing", text: s.to_owned() })
    }
}

struct Shape {
    columns: &'static [&'static str],
    from: &'static str,
    filters: Filters,
    order: &'static str,
}

/// The column by which each filter narrows the listing; none where the filter means nothing to it.
struct Filters {
    sweep: Option<&'static str>,
    run: Option<&'static str>,
    job: Option<&'static str>,
    state: Option<&'static str>,
}

impl Filters {
    const NONE: Self = Self { sweep: None, run: None, job: None, state: None };

    fn of_jobs(state: &'static str) -> Self {
        Self { sweep: Some("j.sweep_id"), run: Some("j.run_id"), job: Some("j.job_id"), state: Some(state) }
    }
}

/// What to list. A filter that means nothing to the listing is ignored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListQuery {
    pub listing: Listing,
    pub sweep: Option<SweepId>,
    pub run: Option<RunId>,
    pub job: Option<JobId>,
    pub state: Option<String>,
    /// 0: all.
    pub limit: u32,
}

impl ListQuery {
    pub fn all(listing: Listing) -> Self {
        Self { listing, sweep: None, run: None, job: None, state: None, limit: 0 }
    }
}

impl Store {
    pub async fn list(&self, query: &ListQuery) -> Result<Table, StoreError> {
        let shape = query.listing.shape();
        let columns: Vec<&str> = shape.columns.iter().map(|c| name(c)).collect();
        let texts: Vec<String> = sql(query, &shape, &columns).build_query_scalar().fetch_all(&self.pool).await?;
        let rows = texts.iter().map(|row| serde_json::from_str(row)).collect::<Result<_, _>>();
        let rows = rows.map_err(|e| StoreError::Database(sqlx::Error::Decode(e.into())))?;
        Ok(Table { columns: columns.into_iter().map(str::to_owned).collect(), rows })
    }
}

fn sql(query: &ListQuery, shape: &Shape, columns: &[&str]) -> QueryBuilder<Postgres> {
    let out: Vec<String> = columns.iter().map(|c| format!("q.{c}")).collect();
    let mut sql = QueryBuilder::new(format!(
        "SELECT json_build_array({})::text FROM (SELECT {} FROM {} WHERE true",
        out.join(", "),
        shape.columns.join(", "),
        shape.from
    ));
    let filters = &shape.filters;
    let ids = [
        (filters.sweep, query.sweep.map(|s| s.0)),
        (filters.run, query.run.map(|r| r.0)),
        (filters.job, query.job.map(|j| j.0)),
    ];
    for (column, id) in ids {
        if let (Some(column), Some(id)) = (column, id) {
            sql.push(format!(" AND {column} = ")).push_bind(id);
        }
    }
    if let (Some(column), Some(state)) = (filters.state, &query.state) {
        sql.push(format!(" AND {column} = ")).push_bind(state.clone());
    }
    sql.push(format!(" ORDER BY {}", shape.order));
    if query.limit > 0 {
        sql.push(" LIMIT ").push_bind(i64::from(query.limit));
    }
    sql.push(") AS q");
    sql
}

/// The name under which a column of a query comes out.
fn name(column: &'static str) -> &'static str {
    column.rsplit([' ', '.']).next().unwrap_or(column)
}

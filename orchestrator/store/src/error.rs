//! What can go wrong, in terms that the caller can act on.

use taskvec_model::{
    id::{AttemptRef, CheckpointId, Digest, JobId},
    job::Purpose,
};

/// Every failure of the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database is away, starting, or out of connections. Nothing is known about the last commit: reconnect, read
    /// the state again and go on from there.
    #[error("the database cannot be reached: {0}")]
    Unavailable(#[source] sqlx::Error),
    #[error("the database refused: {0}")]
    Database(#[source] sqlx::Error),
    #[error("the database cannot be brought up to date: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    #[error("PostgreSQL {found} is too old: taskvec needs 15 or newer")]
    OldPostgres { found: String },
    #[error("another server leads on this database; stop it first, or wait until its connection is gone")]
    AnotherLeader,
    /// Another server has taken over since; this one must stop deciding.
    #[error("another server has taken over the lead")]
    Deposed,
    /// A guard refused a change: the attempt is not the newest, not running, or its lease is over. Nothing of the
    /// batch was stored; rebuild the scheduler's state from [`Leader::load`](crate::Leader::load).
    #[error("{0} no longer holds its job, or its job is not in the expected state")]
    Stale(AttemptRef),
    /// A change without an attempt met a state that it does not fit. Treated like `Stale`.
    #[error("{0}")]
    Conflict(String),
    /// What a worker handed back cannot be stored, now or ever. Only that attempt is at fault.
    #[error("{attempt} handed back what cannot be stored: {why}")]
    BadOutcome { attempt: AttemptRef, why: String },
    /// A checkpoint was named whose blob was never declared, or was removed since.
    #[error("{attempt} names blob {digest}, which is not stored; upload it first")]
    MissingBlob { attempt: AttemptRef, digest: Digest },
    #[error("there is no {what} {id}")]
    Unknown { what: &'static str, id: i64 },
    #[error("job {job} reads the {purpose} checkpoint at step {step} of job {from}, which is not stored")]
    MissingInput { job: JobId, from: JobId, step: u64, purpose: Purpose },
    #[error("there is no blob {0}")]
    UnknownBlob(Digest),
    #[error("blob {blob} cannot be declared: {why}")]
    BadBlob { blob: Digest, why: String },
    #[error("chunk {chunk} is refused: {why}")]
    BadChunk { chunk: Digest, why: String },
    #[error("{0}")]
    Corrupt(Corrupt),
    /// A stored row that this version cannot read.
    #[error("row {id} of {table} cannot be read: {why}")]
    BadRow { table: &'static str, id: String, why: String },
    #[error("the sweep cannot be stored: {0}")]
    BadPlan(String),
    #[error(
        "the role taskvec_reader cannot be set up: {0}. Either give the role in DATABASE_URL the right CREATEROLE, or \
         let an administrator run: CREATE ROLE taskvec_reader LOGIN; GRANT taskvec_reader TO <owner> WITH ADMIN OPTION"
    )]
    ReaderRole(String),
    #[error("the database URL is not understood ({0}); it looks like postgres://USER:PASSWORD@HOST:PORT/DATABASE")]
    BadUrl(String),
    /// The user's own query failed.
    #[error("{0}")]
    Sql(SqlError),
}

/// A chunk that is gone or whose bytes are not those that were stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corrupt {
    pub chunk: Digest,
    pub blob: Option<Digest>,
    pub checkpoints: Vec<CheckpointId>,
    pub why: &'static str,
}

impl std::fmt::Display for Corrupt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "chunk {} {}", self.chunk, self.why)?;
        if let Some(blob) = self.blob {
            write!(f, "; it is part of blob {blob}")?;
        }
        match self.checkpoints.as_slice() {
            [] => Ok(()),
            [one] => write!(f, ", checkpoint {one}"),
            many => {
                let ids: Vec<String> = many.iter().map(ToString::to_string).collect();
                write!(f, ", checkpoints {}", ids.join(", "))
            }
        }
    }
}

/// What PostgreSQL says about a user's query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqlError {
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
    /// SQLSTATE.
    pub code: Option<String>,
    /// Where in the query, in characters from 1.
    pub position: Option<usize>,
}

impl std::fmt::Display for SqlError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)?;
        if let Some(position) = self.position {
            write!(f, " (at character {position})")?;
        }
        if let Some(detail) = &self.detail {
            write!(f, "; {detail}")?;
        }
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, "; hint: {hint}"))
    }
}

impl StoreError {
    /// Will the same work again once the database is back?
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        if unavailable(&error) { Self::Unavailable(error) } else { Self::Database(error) }
    }
}

fn unavailable(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(e) => e.code().is_some_and(|code| unavailable_code(&code)),
        _ => false,
    }
}

/// Connection failures, shutdown and start-up, too many connections, and conflicts that a new try resolves.
fn unavailable_code(code: &str) -> bool {
    (code.starts_with("08") && code != "08P01")
        || matches!(code, "57P01" | "57P02" | "57P03" | "53300" | "40001" | "40P01")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_that_is_away_is_told_from_one_that_refuses() {
        assert!(StoreError::from(sqlx::Error::PoolTimedOut).is_unavailable());
        assert!(!StoreError::from(sqlx::Error::RowNotFound).is_unavailable());
        assert!(
            unavailable_code("57P03")
                && unavailable_code("08006")
                && !unavailable_code("23505")
                && !unavailable_code("08P01")
        );
    }

    #[test]
    fn errors_of_the_users_sql_say_all_that_postgres_says() {
        let error = SqlError {
            message: "column \"lss\" does not exist".into(),
            detail: None,
            hint: Some("Perhaps you meant \"loss\".".into()),
            code: Some("42703".into()),
            position: Some(8),
        };
        assert_eq!(
            error.to_string(),
            "column \"lss\" does not exist (at character 8); hint: Perhaps you meant \"loss\"."
        );
    }
}

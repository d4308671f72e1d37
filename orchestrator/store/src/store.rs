//! The owner's connections.

use crate::{
    chunk::{ChunkStore, PgChunks},
    error::StoreError,
};
use sqlx::{
    ConnectOptions, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use std::{str::FromStr, sync::Arc, time::Duration};

/// How long a caller waits for a connection before it is told that the database is away.
const ACQUIRE: Duration = Duration::from_secs(10);

/// The database, as its owner: everything but the scheduler's decisions, which only a [`Leader`](crate::Leader) may
/// store. Cheap to clone. Connections that break are replaced by themselves.
#[derive(Clone)]
pub struct Store {
    pub(crate) pool: PgPool,
    pub(crate) chunks: Arc<dyn ChunkStore>,
}

impl Store {
    /// `url` is `postgres://USER:PASSWORD@HOST:PORT/DATABASE`; for a Unix socket, HOST is its percent-encoded folder.
    pub async fn connect(url: &str, max_connections: u32) -> Result<Self, StoreError> {
        let pool = PgPoolOptions::new()
            .max_connections(max_connections)
            .acquire_timeout(ACQUIRE)
            .connect_with(options(url)?)
            .await?;
        Ok(Self { chunks: Arc::new(PgChunks::new(pool.clone())), pool })
    }

    /// Keeps the bytes of checkpoints elsewhere than in tables of this database. What is stored stays where it is.
    pub fn with_chunks(self, chunks: Arc<dyn ChunkStore>) -> Self {
        Self { chunks, ..self }
    }

    /// Where the bytes of checkpoints lie.
    pub fn chunks(&self) -> &dyn ChunkStore {
        &*self.chunks
    }

    /// Brings the schema up to date; migrations only go forward.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        let (number, found): (i32, String) =
            sqlx::query_as("SELECT current_setting('server_version_num')::integer, current_setting('server_version')")
                .fetch_one(&self.pool)
                .await?;
        if number < 150_000 {
            return Err(StoreError::OldPostgres { found });
        }
        let mut migrator = sqlx::migrate!("../../migrations");
        // By full name: by the search path it would be found elsewhere once a schema is named like the owner.
        migrator.create_schema("taskvec");
        migrator.dangerous_set_table_name("taskvec._sqlx_migrations");
        Ok(migrator.run(&self.pool).await?)
    }

    /// Does the database answer?
    pub async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT 1").execute(&self.pool).await?;
        Ok(())
    }

    /// Closes all connections, after what runs on them.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

/// Plans are made anew for every execution: one that was cached while a table was small would scan it for ever.
/// Statements are not logged: one of them sets a password.
pub(crate) fn options(url: &str) -> Result<PgConnectOptions, StoreError> {
    let options = PgConnectOptions::from_str(url).map_err(|e| StoreError::BadUrl(e.to_string()))?;
    Ok(options
        .application_name("taskvec")
        .options([("plan_cache_mode", "force_custom_plan")])
        .disable_statement_logging())
}

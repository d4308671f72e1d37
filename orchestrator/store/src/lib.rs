//! Everything that is kept, in PostgreSQL 15 or newer: sweeps, runs, jobs, attempts, workers, metric rows, checkpoints
//! and the bytes of checkpoints. All SQL of the project is here and in `migrations/`.
//!
//! Three ways in: [`Store`] as the owner, for everything but decisions; [`Leader`], of which there is one at a time,
//! for the scheduler's decisions; [`Reader`], for the users' own queries, which the database keeps from writing.
//!
//! Statements are strings that are checked when they run, not `query!` macros that are checked when they compile: a
//! build needs neither a live database nor committed descriptions of every statement, and the tests run every statement
//! against a real PostgreSQL.

mod assignment;
mod blob;
mod cache;
mod chunk;
mod commit;
mod error;
mod gc;
mod leader;
mod listing;
mod metric;
mod outcome;
mod reader;
mod reader_role;
mod row;
mod sql_text;
mod status;
mod store;
mod submit;
mod worker;

pub use assignment::Assignments;
pub use blob::{BlobManifest, BlobReader, StoredCheckpoint};
pub use chunk::{BoxFuture, ChunkStore, MAX_CHUNK_BYTES, Micros, Removed};
pub use error::{Corrupt, SqlError, StoreError};
pub use gc::{GcPolicy, GcReport};
pub use leader::Leader;
pub use listing::{ListQuery, Listing};
pub use outcome::Outcome;
pub use reader::{Reader, Rows};
pub use reader_role::READER;
pub use status::{JobStatus, RunProgress, SweepProgress};
pub use store::Store;
pub use submit::{Receipt, RequestId, Submitted};
pub use worker::WorkerRecord;

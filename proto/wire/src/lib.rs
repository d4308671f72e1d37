//! The generated gRPC code, and conversions between it and the domain.

pub mod pb {
    #![allow(clippy::all, clippy::pedantic, missing_docs)]
    tonic::include_proto!("taskvec.v1");
}

mod convert;
mod metrics;

pub use convert::{BadMessage, assign, assignment, attempt, digest, start};

/// The version that server and workers must share.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The largest message either side accepts, in bytes: a job's metrics, or a part of a table.
pub const MAX_MESSAGE: usize = 64 << 20;

/// The size into which blobs are cut; the last chunk may be shorter.
pub const CHUNK_BYTES: usize = 1 << 20;

//! Why a server does not start, and what clients are told.

use crate::{data_dir::DataDirError, embedded_postgres::PostgresError};
use std::{io, net::SocketAddr, path::PathBuf};
use taskvec_store::StoreError;
use tonic::Status;

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error(
        "listening on {0} without TLS would send the token and all data in the clear: give a certificate and a key, \
         listen on a loopback address, or allow it with --insecure-plaintext on a network you trust"
    )]
    Plaintext(SocketAddr),
    #[error("cannot listen on {address}: {source}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("cannot read {what} {}: {source}", path.display())]
    Tls { what: &'static str, path: PathBuf, source: io::Error },
    #[error("the certificate or key is not usable: {0}")]
    Certificate(#[source] tonic::transport::Error),
    #[error("there is no randomness for a token: {0}")]
    Token(#[source] io::Error),
    #[error("a server needs a token: give one, or a data folder to keep one in")]
    NoToken,
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the driver ended before it led; its log has the reason")]
    Driver,
}

/// For requests that a new try may satisfy: the driver restarts, or the database is away.
pub(crate) fn try_again(what: &str) -> Status {
    Status::unavailable(format!("{what}; try again in a moment"))
}

/// What a client is told of a failure of the store.
pub(crate) fn status(error: StoreError) -> Status {
    let text = error.to_string();
    match error {
        StoreError::Unavailable(_) => try_again(&text),
        StoreError::AnotherLeader | StoreError::Deposed | StoreError::Stale(_) | StoreError::Conflict(_) => {
            try_again(&text)
        }
        StoreError::Unknown { .. } | StoreError::UnknownBlob(_) => Status::not_found(text),
        StoreError::BadBlob { .. }
        | StoreError::BadChunk { .. }
        | StoreError::BadPlan(_)
        | StoreError::BadOutcome { .. }
        | StoreError::Sql(_) => Status::invalid_argument(text),
        StoreError::MissingBlob { .. } | StoreError::MissingInput { .. } => Status::failed_precondition(text),
        StoreError::Corrupt(_) => Status::data_loss(text),
        _ => {
            tracing::error!(error = %text, "the store failed");
            Status::internal(text)
        }
    }
}

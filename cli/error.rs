//! What can go wrong in a command, and the exit code it ends with.

use std::path::{Path, PathBuf};
use taskvec_agent::AgentError;
use taskvec_hub::HubError;
use taskvec_science::ScienceError;
use taskvec_server::ServerError;

#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// Wrong usage, an invalid sweep file, an unknown id.
    #[error("{0}")]
    Usage(String),
    /// The work itself failed; it was said where.
    #[error("{0}")]
    Failed(String),
    #[error("cannot reach a taskvec server at {server}: {reason}\n{remedy}")]
    Unreachable { server: String, reason: String, remedy: &'static str },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error(transparent)]
    Worker(#[from] AgentError),
    #[error(transparent)]
    Science(#[from] ScienceError),
    #[error(transparent)]
    Hub(#[from] HubError),
}

pub const START_ONE: &str = "  start one with `taskvec up` or `taskvec server start`, or name it with --server (TASKVEC_SERVER); \
     `--data DIR` uses the local stack of a folder";

impl CliError {
    /// 0 done, 1 failed work, 2 wrong usage or invalid sweep, 3 server unreachable.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Worker(AgentError::Unreachable { .. }) | Self::Unreachable { .. } => 3,
            Self::Worker(AgentError::Io { .. } | AgentError::System(_) | AgentError::Bug(_)) | Self::Failed(_) => 1,
            // What is left is a configuration that a worker or a server refuses before it does anything.
            Self::Worker(_) | Self::Usage(_) | Self::Io { .. } => 2,
            Self::Server(ServerError::Plaintext(_) | ServerError::NoToken | ServerError::Tls { .. }) => 2,
            Self::Server(_) | Self::Science(ScienceError::Tensor(_)) => 1,
            // A model or an input that cannot be used.
            Self::Science(_) => 2,
            Self::Hub(HubError::Disk { .. }) => 1,
            Self::Hub(error) if error.is_passing() => 1,
            Self::Hub(_) => 2,
        }
    }

    pub fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { path: path.as_ref().to_owned(), source }
    }

    /// The server's answer as an error of ours; `server` is where it was asked.
    pub fn status(server: &str, status: tonic::Status) -> Self {
        match status.code() {
            tonic::Code::Unavailable => {
                Self::Unreachable { server: server.to_owned(), reason: status.message().to_owned(), remedy: START_ONE }
            }
            tonic::Code::InvalidArgument
            | tonic::Code::NotFound
            | tonic::Code::FailedPrecondition
            | tonic::Code::ResourceExhausted
            | tonic::Code::Unauthenticated
            | tonic::Code::PermissionDenied => Self::Usage(status.message().to_owned()),
            code => Self::Failed(format!("the server answered {code:?}: {}", status.message())),
        }
    }
}

//! Why a worker process ends in other ways than by leaving.

use std::{io, path::PathBuf, time::Duration};
use taskvec_science::gpu;

#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("invalid worker configuration: {0}")]
    Config(String),

    #[error("device `{device}`: {reason}; `--device cpu` needs none")]
    NoGpu { device: String, reason: gpu::NoGpu },

    #[error(
        "`{0}` is not a device: `cpu`, or `cuda:N`, N being the GPU's number from 0, or several of them, `cuda:0,1`"
    )]
    UnknownDevice(String),

    #[error("server address `{url}`: {reason}")]
    Address { url: String, reason: String },

    #[error("server {url} was not reached within {} s: {reason}", .after.as_secs_f64())]
    Unreachable { url: String, after: Duration, reason: String },

    #[error("server {url} refused the token ({reason}); give the server's token with TASKVEC_TOKEN or --token")]
    Unauthorized { url: String, reason: String },

    #[error("server {url} refused this worker: {reason}")]
    Refused { url: String, reason: String },

    #[error("data folder {} is in use by another worker; give each worker its own with --scratch", .0.display())]
    DataDirInUse(PathBuf),

    #[error("{what} {}: {source}", .path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },

    #[error(
        "all {cores} CPU cores of this machine are claimed by other workers ({}); \
         stop one of them, or say with --threads how many threads this worker may use",
        .folder.display()
    )]
    NoFreeCore { cores: usize, folder: PathBuf },

    #[error("{} belongs to another user; remove it, or say with --threads how many threads to use", .0.display())]
    ForeignFolder(PathBuf),

    #[error("the operating system refused: {0}")]
    System(String),

    #[error("a fault in the worker itself: {0}")]
    Bug(String),
}

/// Attaches the path and the deed to an IO error.
pub(crate) trait AtPath<T> {
    fn at(self, what: &'static str, path: impl Into<PathBuf>) -> Result<T, AgentError>;
}

impl<T> AtPath<T> for io::Result<T> {
    fn at(self, what: &'static str, path: impl Into<PathBuf>) -> Result<T, AgentError> {
        self.map_err(|source| AgentError::Io { what, path: path.into(), source })
    }
}

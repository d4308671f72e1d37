//! What can go wrong in a job, and whether another try could help.

use std::path::PathBuf;
use taskvec_model::job::Retry;

#[derive(Debug, thiserror::Error)]
pub enum ScienceError {
    #[error(
        "training diverged at step {step}: the {what}{}; lower train.optimizer.learning_rate, raise train.warmup, or set \
         train.clip_norm",
        .last_loss.map(|l| format!(" (loss before: {l})")).unwrap_or_default()
    )]
    Diverged { step: u64, what: &'static str, last_loss: Option<f64> },

    #[error("checkpoint {}: {reason}", .path.display())]
    BadCheckpoint { path: PathBuf, reason: String },

    #[error("the job was given no {0} checkpoint to read")]
    MissingInput(taskvec_model::job::Purpose),

    #[error("a checkpoint could not be written: {0}")]
    Write(#[from] std::io::Error),

    /// Whatever receives checkpoints ([`crate::Sink`]) failed otherwise.
    #[error("a checkpoint could not be kept: {0}")]
    Sink(String),

    /// The sink asked for a stop and the job has nothing worth keeping.
    #[error("stopped on request before it was finished")]
    Stopped,

    #[error("selftest job {0} failed, as its sweep file asks (behaviour: fail)")]
    Selftest(u32),

    #[error("this version cannot compute `{0}` jobs; use a newer one on this worker")]
    NotHere(taskvec_model::job::JobKind),

    #[error("tensor operation: {0}")]
    Tensor(#[from] candle_core::Error),
}

impl ScienceError {
    pub fn retry(&self) -> Retry {
        match self {
            Self::Diverged { .. } | Self::BadCheckpoint { .. } | Self::MissingInput(_) | Self::NotHere(_) => {
                Retry::Never
            }
            Self::Write(_) | Self::Sink(_) | Self::Stopped | Self::Selftest(_) | Self::Tensor(_) => Retry::Allowed,
        }
    }
}

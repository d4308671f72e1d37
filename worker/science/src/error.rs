//! What can go wrong in a job, and whether another try could help.

use crate::{
    load::LoadError,
    task::{PromptError, TaskError},
    tokenizer::TokenizerError,
};
use std::path::PathBuf;
use taskvec_model::{job::Retry, spec::LoraLayers};

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

    /// What computes the runs of a slot together fails, so none of them goes on.
    #[error("the runs of this slot cannot be trained together: {0}")]
    Stack(String),

    #[error("hidden states cannot be had from this worker's device: {0}")]
    States(String),

    #[error("selftest job {0} failed, as its sweep file asks (behaviour: fail)")]
    Selftest(u32),

    #[error(transparent)]
    Load(#[from] LoadError),

    /// A file that a command was given.
    #[error("{}: {reason}", .path.display())]
    BadInput { path: PathBuf, reason: String },

    #[error(
        "row {row} of the batch would have {tokens} tokens, but the model was made for {context} at most: use fewer shots or \
         shorter inputs"
    )]
    TooLong { row: usize, tokens: usize, context: usize },

    #[error(
        "row {row} of the batch has the token {token}, but the model has embeddings for {vocabulary} only; is the tokenizer \
         another model's?"
    )]
    UnknownToken { row: usize, token: u32, vocabulary: usize },

    #[error(transparent)]
    Task(#[from] TaskError),

    #[error(transparent)]
    Prompt(#[from] PromptError),

    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),

    #[error(
        "the files of the model at {path} are others than when the sweep was planned (digest {found}, planned with {planned}): \
         bring those back, or submit the sweep again"
    )]
    OtherModel { path: String, planned: taskvec_model::id::Digest, found: taskvec_model::id::Digest },

    #[error("`lora.layers` asks for {}, but the model has {layers}", asked_layers(*.asked))]
    NoSuchLayers { asked: LoraLayers, layers: usize },

    #[error(
        "`lora.targets`: a {arch} model has no module {}; it has {}", quoted(.unknown), quoted(.known)
    )]
    NoSuchModules { arch: &'static str, unknown: Vec<String>, known: Vec<String> },

    #[error(
        "`lora.targets`: PEFT refuses adapters of a {arch} model's `{module}`, so that nobody could load the result; use {}",
        quoted(.known)
    )]
    NotForPeft { arch: &'static str, module: String, known: Vec<String> },

    #[error("the model's states after layer {layer} are not finite: are its files intact, and is `dtype` wide enough?")]
    NotFinite { layer: u32 },

    #[error("there is no latent task `{name}`; there are {}", .known.join(", "))]
    UnknownTask { name: String, known: Vec<String> },

    #[error("prompts with {shots} demonstrations have no site `{site}`")]
    NoSite { site: taskvec_model::spec::Site, shots: u32 },

    #[error("the job would give {rows} results ({of}); one job may give {most}: use fewer of them")]
    TooManyRows { rows: u64, of: &'static str, most: u64 },

    #[error(
        "`td`: the states of {points} prompts and their neighbours need {:.1} GB of memory, and there are {:.1} GB: lower \
         `samples_per_task`, use fewer layers or tasks, or a machine with more memory",
        *.needed as f64 / 1e9, *.there as f64 / 1e9
    )]
    NoRoomForStates { points: u64, needed: u64, there: u64 },

    #[error("tensor operation: {0}")]
    Tensor(#[from] candle_core::Error),
}

impl ScienceError {
    pub fn retry(&self) -> Retry {
        match self {
            // Another worker may have more memory; a disk that fails now may do later. A file that is wrong stays so.
            Self::Load(LoadError::NoRoom { .. } | LoadError::Io { .. } | LoadError::Tensor(_))
            | Self::NoRoomForStates { .. } => Retry::Allowed,
            Self::Diverged { .. }
            | Self::BadCheckpoint { .. }
            | Self::MissingInput(_)
            | Self::OtherModel { .. }
            | Self::NoSuchLayers { .. }
            | Self::NoSuchModules { .. }
            | Self::NotForPeft { .. }
            | Self::NotFinite { .. }
            | Self::NoSite { .. }
            | Self::UnknownTask { .. }
            | Self::Load(_)
            | Self::BadInput { .. }
            | Self::TooLong { .. }
            | Self::UnknownToken { .. }
            | Self::TooManyRows { .. } => Retry::Never,
            Self::Task(_) | Self::Prompt(_) | Self::Tokenizer(_) => Retry::Never,
            Self::Write(_)
            | Self::Sink(_)
            | Self::Stack(_)
            | Self::States(_)
            | Self::Stopped
            | Self::Selftest(_)
            | Self::Tensor(_) => Retry::Allowed,
        }
    }
}

fn asked_layers(layers: LoraLayers) -> String {
    match layers {
        LoraLayers::All => "all layers".to_owned(),
        LoraLayers::First(n) => format!("the first {n} layers"),
        LoraLayers::Last(n) => format!("the last {n} layers"),
        LoraLayers::Range(from, to) => format!("layers {from} to {to}"),
    }
}

fn quoted(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_disk_is_tried_again_and_a_wrong_file_is_not() {
        let path = || PathBuf::from("model.safetensors");
        let source = std::io::Error::other("input/output error");
        assert_eq!(ScienceError::from(LoadError::Io { path: path(), source }).retry(), Retry::Allowed);
        let memory = candle_core::Error::Msg("out of memory".to_owned());
        assert_eq!(ScienceError::from(LoadError::Tensor(memory)).retry(), Retry::Allowed);
        let wrong = LoadError::BadFile { path: path(), reason: "is cut short".to_owned() };
        assert_eq!(ScienceError::from(wrong).retry(), Retry::Never);
    }
}

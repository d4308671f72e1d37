//! The science of a job: synthetic data and tasks in words, the models and their training, and the analyses of checkpoints.
//!
//! No network, no database, no clock but for rates: a job is a function of its [`JobWork`] and its input checkpoints. What
//! it produces on the way goes through a [`Sink`]; what ends it is [`Executed`] or a [`ScienceError`].

pub mod analysis;
pub mod checkpoint;
mod course;
pub mod data;
pub mod engine;
mod error;
mod execute;
mod forward;
pub mod gpu;
pub mod hook;
pub mod load;
pub mod lora;
pub mod model;
mod models;
pub mod optim;
pub mod rng;
mod selftest;
mod stack;
pub mod task;
pub mod tokenizer;
pub mod train;

pub use error::ScienceError;
pub use execute::execute;
pub use forward::forward_file;
pub use models::Models;
pub use stack::{Member, MemberSink, execute_stack, execute_stack_on};
/// To be called first in `main` by every process that trains.
pub use taskvec_kernels::process::prepare as prepare_process;

use std::{io::Write, path::PathBuf};
#[cfg(doc)]
use taskvec_model::job::JobWork;
use taskvec_model::{
    job::{CheckpointRef, Progress, Purpose},
    metric::{Metrics, TrainLoss},
};

/// Where a running job sends what it produces, and where it hears that it should stop. Synchronous: the caller decides
/// about threads and channels.
pub trait Sink {
    /// Called often (every step of training): keep it cheap. After `Stop` the job ends at its next safe point. Of a step of
    /// training it comes before what is kept of it.
    fn progress(&mut self, progress: Progress) -> Control;

    /// Keeps a checkpoint. `write` writes the whole safetensors file, the same bytes at every call.
    fn checkpoint(
        &mut self,
        step: u64,
        purpose: Purpose,
        write: &mut WriteCheckpoint<'_>,
    ) -> Result<CheckpointRef, ScienceError>;

    fn train_loss(&mut self, row: TrainLoss);
}

/// Writes a checkpoint's bytes.
pub type WriteCheckpoint<'a> = dyn FnMut(&mut dyn Write) -> Result<(), ScienceError> + 'a;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    Continue,
    Stop,
}

/// Local safetensors files, already verified against their digests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inputs {
    /// The state at a step in [from, to) of a training segment.
    pub resume: Option<PathBuf>,
    /// The weights to analyse.
    pub weights: Option<PathBuf>,
}

/// How a job ended when nothing went wrong. Checkpoints and training losses went through the sink already.
#[derive(Clone, Debug, PartialEq)]
pub enum Executed {
    Finished(Metrics),
    /// Training stopped on request, between two steps; `at` is the state to go on from. Other jobs have nothing to keep
    /// and end in [`ScienceError::Stopped`].
    Stopped {
        at: CheckpointRef,
    },
}

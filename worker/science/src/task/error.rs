//! What can be wrong with the data of tasks in words, and with the prompts made of it.

use crate::tokenizer::TokenizerError;
use std::{fmt, path::PathBuf};
use taskvec_model::id::Digest;

/// How many faults of a file are shown; all are counted.
const SHOWN: usize = 20;

/// The data cannot be used as it is.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    #[error("{} cannot be read: {source}", .path.display())]
    Read { path: PathBuf, source: std::io::Error },

    #[error("{}: {reason}", .path.display())]
    Unusable { path: PathBuf, reason: String },

    #[error("{0}")]
    Faulty(Faults),

    #[error(
        "{} is not what the sweep was planned with: its digest is {found}, planned was {planned}; put the planned file \
         back, or plan the sweep anew", .path.display()
    )]
    Changed { path: PathBuf, found: Digest, planned: Digest },

    #[error("data.digits: {0} is not between 1 and {1}")]
    Digits(u32, u32),

    #[error("data.tasks: there is no task {}; there are {}", quoted(.unknown), quoted(.known))]
    UnknownTask { unknown: Vec<String>, known: Vec<String> },

    #[error("data.tasks: {} stands more than once", quoted(.0))]
    RepeatedTask(Vec<String>),
}

/// One place where a file is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The file, or the member of a folder or archive.
    pub file: String,
    /// From 1.
    pub line: usize,
    pub reason: String,
}

/// Every fault of the data, in the order of files and lines; never empty in a [`TaskError`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

impl Faults {
    pub(super) fn add(&mut self, file: &str, line: usize, reason: impl Into<String>) {
        self.0.push(Fault { file: file.to_owned(), line, reason: reason.into() });
    }

    /// # Errors
    /// [`TaskError::Faulty`] where there is one.
    pub(super) fn into_result(self) -> Result<(), TaskError> {
        if self.0.is_empty() { Ok(()) } else { Err(TaskError::Faulty(self)) }
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, Fault { file, line, reason }) in self.0.iter().take(SHOWN).enumerate() {
            write!(f, "{}{file}:{line}: {reason}", if i == 0 { "" } else { "\n" })?;
        }
        match self.0.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, "\n… and {more} more"),
        }
    }
}

/// No prompt can be made of the items, the template and the tokenizer.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    #[error("template.separator is empty: it ends the model's answer and parts demonstrations; use e.g. \"\\n\"")]
    NoSeparator,

    #[error(
        "task {task}: the output {output:?} contains template.separator {separator:?}, where the model's answer is taken \
         to end; use another separator"
    )]
    SeparatorInOutput { task: String, output: String, separator: String },

    #[error(
        "task {task} has {have} {split} items; {shots} demonstrations and a query need {}: give more data or fewer shots",
        .shots + 1
    )]
    TooFewItems { task: String, split: &'static str, have: usize, shots: usize },

    #[error("{0}")]
    Merged(Box<Merged>),

    #[error(
        "prompt {index} of task {task} with {shots} shots has {tokens} tokens and up to {answer} more for the answer; the \
         model's context is {context}: use fewer shots, shorter inputs or a shorter template"
    )]
    TooLong { task: String, shots: u32, index: u64, tokens: usize, answer: usize, context: usize },

    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// A token that begins before the answer and ends in it, so that there is no token just before the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    pub task: String,
    /// The end of the prompt.
    pub before: String,
    /// What is to follow it: gap and output.
    pub answer: String,
    /// The prompt's last tokens alone, as text, and what stands in their place when the answer follows.
    pub alone: Vec<String>,
    pub followed: Vec<String>,
}

impl fmt::Display for Merged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { task, before, answer, alone, followed } = self;
        write!(
            f,
            "task {task}: the tokenizer merges the end of the prompt with the answer, so no token ends just before it: \
             {before:?} ends in {alone:?}, but followed by {answer:?} it reads {followed:?}; begin template.gap with a \
             space (and end template.arrow without one), or use another arrow"
        )
    }
}

/// Names for an error: `A`, `B` and so on.
fn quoted(names: &[String]) -> String {
    names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ")
}

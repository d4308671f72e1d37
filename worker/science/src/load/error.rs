//! Why a model cannot be loaded, and what to do about it.

use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(
        "`{name}` is neither a file nor a folder here, and no copy of it is in {}. Place config.json, tokenizer.json and \
         model.safetensors (or model.safetensors.index.json with every shard it lists) in one folder and give its path; \
         where there is a network, `taskvec model fetch OWNER/NAME` brings a model of the HuggingFace hub into that cache",
        listed(.searched)
    )]
    NotFound { name: String, searched: Vec<PathBuf> },

    #[error("{}: has no revision `{revision}`; it has {}{}", .path.display(), some_of(.known), fetched(.path, .revision))]
    NoRevision { path: PathBuf, revision: String, known: Vec<String> },

    #[error(
        "{}: no revision matches `{pattern}`; there are {}{}", .path.display(), some_of(.known), fetched(.path, .pattern)
    )]
    NoMatch { path: PathBuf, pattern: String, known: Vec<String> },

    #[error("{}: {reason}", .path.display())]
    BadFolder { path: PathBuf, reason: String },

    #[error("{}: cannot be read: {source}", .path.display())]
    Io { path: PathBuf, source: std::io::Error },

    #[error("{}: {reason}", .path.display())]
    BadConfig { path: PathBuf, reason: String },

    #[error("{}: models of type `{found}` are not known; known are {}", .path.display(), .known.join(", "))]
    UnknownArchitecture { path: PathBuf, found: String, known: Vec<&'static str> },

    #[error("{}: {reason}", .path.display())]
    BadFile { path: PathBuf, reason: String },

    #[error("{}: lists shards that are not beside it: {}; the download is incomplete", .index.display(), some_of(.missing))]
    MissingShards { index: PathBuf, missing: Vec<String> },

    #[error(
        "{}: lacks the tensor `{tensor}` {expected:?}; config.json asks for it, so the two belong to different models or \
         the download is incomplete",
        .path.display()
    )]
    MissingTensor { path: PathBuf, tensor: String, expected: Vec<usize> },

    #[error(
        "{}: the tensor `{tensor}` is {found:?}, but config.json asks for {expected:?}; do the two belong to one model?",
        .path.display()
    )]
    Misshapen { path: PathBuf, tensor: String, expected: Vec<usize>, found: Vec<usize> },

    #[error(
        "{}: has tensors that a model of this config.json has no place for: {}; do the two belong to one model?",
        .path.display(), some_of(.tensors)
    )]
    ExtraTensors { path: PathBuf, tensors: Vec<String> },

    #[error(
        "{}: has {tokens} tokens, but the model has embeddings for {vocabulary}; is it another model's tokenizer?",
        .path.display()
    )]
    Vocabulary { path: PathBuf, tokens: usize, vocabulary: usize },

    #[error(
        "{}: its weights take {}, and there is room for {}; choose a smaller dtype or model, or a machine with more memory",
        .path.display(), gigabytes(*.needed), of_rooms(.rooms)
    )]
    NoRoom { path: PathBuf, needed: u64, rooms: Vec<(String, u64)> },

    #[error("tensor operation while loading: {0}")]
    Tensor(#[from] candle_core::Error),
}

impl LoadError {
    /// Is there nothing at all where the model should be? Otherwise there is something that cannot be used.
    pub fn is_absent(&self) -> bool {
        match self {
            Self::NotFound { .. } | Self::NoRevision { .. } | Self::NoMatch { .. } => true,
            Self::Io { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
            _ => false,
        }
    }

    pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { path: path.to_owned(), source }
    }

    pub(super) fn config(path: &Path, reason: impl Into<String>) -> Self {
        Self::BadConfig { path: path.to_owned(), reason: reason.into() }
    }
}

/// The first few names, and how many more there are.
fn some_of(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown = names.iter().take(SHOWN).map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
    match names.len() {
        0 => "none".to_owned(),
        n if n > SHOWN => format!("{shown} and {} more", n - SHOWN),
        _ => shown,
    }
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

fn of_rooms(rooms: &[(String, u64)]) -> String {
    let rooms: Vec<String> = rooms.iter().map(|(device, bytes)| format!("{} on {device}", gigabytes(*bytes))).collect();
    if rooms.is_empty() { "none of them on any device".to_owned() } else { rooms.join(", ") }
}

/// What to do for a revision of a model in a hub cache.
fn fetched(path: &Path, revision: &str) -> String {
    let folder = path.file_name().unwrap_or_default().to_string_lossy();
    match folder.strip_prefix("models--").and_then(|name| name.split_once("--")) {
        Some((owner, name)) => {
            format!(
                "; `taskvec model fetch {owner}/{name} --revision '{revision}'` brings what the HuggingFace hub has"
            )
        }
        None => String::new(),
    }
}

fn listed(paths: &[PathBuf]) -> String {
    match paths {
        [] => "a hub cache (none was found)".to_owned(),
        _ => paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", "),
    }
}

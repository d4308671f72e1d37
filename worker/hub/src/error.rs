//! Why a model could not be fetched, and what to do about it. No message holds the token.

use crate::name::Name;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error(
        "HF_HUB_OFFLINE is set, so nothing is fetched from the hub; unset it, or give the path of a folder with the model"
    )]
    Offline,

    #[error("there is no place for the hub's cache: set HF_HUB_CACHE, HF_HOME or HOME")]
    NoPlace,

    #[error("`{0}` is not the name of a model on the hub; those are OWNER/NAME, of letters, digits, `-`, `_` and `.`")]
    BadName(String),

    #[error("`{0}` is not the name of a revision; that is a branch, a tag or a commit")]
    BadRevision(String),

    #[error(
        "the hub at {endpoint} cannot be reached ({reason}); try again, or give the path of a folder with the model"
    )]
    Unreachable { endpoint: String, reason: String },

    #[error("the hub at {endpoint} cannot answer at the moment (status {status})")]
    Busy { endpoint: String, status: u16 },

    #[error(
        "the hub at {endpoint} does not show `{name}` (status {status}): there is no such model, or it is private, or its \
         terms are not accepted yet. Check the name; accept the terms at {endpoint}/{name}; {}", token_advice(*.with_token)
    )]
    Refused { endpoint: String, name: Name, status: u16, with_token: bool },

    #[error("the hub at {endpoint} has no model `{name}`; check the name")]
    NotFound { endpoint: String, name: Name },

    #[error("`{name}` has no revision `{revision}` on the hub; it has {}", some_of(.known))]
    NoRevision { name: Name, revision: String, known: Vec<String> },

    #[error("no revision of `{name}` on the hub matches `{pattern}`; there are {}", some_of(.known))]
    NoMatch { name: Name, pattern: String, known: Vec<String> },

    #[error("`{name}` cannot be read here: {reason}")]
    Unusable { name: Name, reason: String },

    #[error("the hub at {endpoint} has no file {file} in `{name}`, although it lists it")]
    NoFile { endpoint: String, name: Name, file: String },

    #[error("the hub's answer to {url} is not understood: {reason}")]
    BadAnswer { url: String, reason: String },

    #[error("{file} came with another content than the hub announced ({reason}); what came was thrown away: try again")]
    Damaged { file: String, reason: String },

    #[error("{}: {source}", .path.display())]
    Disk { path: PathBuf, source: std::io::Error },

    #[error("stopped on request; what came is kept, and goes on from there")]
    Stopped,
}

impl HubError {
    /// May the same succeed later, with nothing changed here?
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Busy { .. } | Self::Damaged { .. } | Self::Stopped)
    }

    pub(crate) fn disk(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Disk { path: path.to_owned(), source }
    }
}

fn token_advice(with_token: bool) -> &'static str {
    match with_token {
        true => "the token that was sent (HF_TOKEN, or the file that `hf auth login` writes) may not read it",
        false => "a token is read from HF_TOKEN, or from the file that `hf auth login` writes",
    }
}

/// The first few names, and how many more there are.
pub(crate) fn some_of(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown = names.iter().take(SHOWN).map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
    match names.len() {
        0 => "none".to_owned(),
        n if n > SHOWN => format!("{shown} and {} more", n - SHOWN),
        _ => shown,
    }
}

//! Which hub, which cache and which token: what HuggingFace's own tools read from the environment.

use crate::HubError;
use std::{
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
};

const ENDPOINT: &str = "https://huggingface.co";

#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// Without a slash at the end.
    pub endpoint: String,
    /// The folder with a folder for each model.
    pub cache: PathBuf,
    pub token: Option<String>,
}

impl Settings {
    /// `HF_ENDPOINT`; the cache at `HF_HUB_CACHE`, `HF_HOME`/hub or ~/.cache/huggingface/hub; the token of `HF_TOKEN`, or
    /// else of the file `HF_TOKEN_PATH`, `HF_HOME`/token or ~/.cache/huggingface/token.
    ///
    /// # Errors
    /// [`HubError::Offline`] where `HF_HUB_OFFLINE` is set; [`HubError::NoPlace`] where no variable leads to a cache.
    pub fn read(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, HubError> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let text = |name: &str| variable(name)?.into_string().ok().map(|text| text.trim().to_owned());
        let is_true = |word: String| ["1", "on", "yes", "true"].contains(&word.to_lowercase().as_str());
        if text("HF_HUB_OFFLINE").is_some_and(is_true) {
            return Err(HubError::Offline);
        }
        let path = |name: &str| variable(name).map(PathBuf::from);
        let home = path("HF_HOME").or_else(|| Some(path("HOME")?.join(".cache/huggingface")));
        let in_home = |name: &str| home.as_ref().map(|home| home.join(name));
        let cache = path("HF_HUB_CACHE").or_else(|| in_home("hub")).ok_or(HubError::NoPlace)?;
        let kept = path("HF_TOKEN_PATH").or_else(|| in_home("token"));
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        Ok(Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            cache,
            token: text("HF_TOKEN").or_else(|| read_token(&kept?)),
        })
    }
}

fn read_token(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|token| !token.is_empty())
}

/// Without the token.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = self.token.as_ref().map(|_| "[secret]");
        let mut shown = f.debug_struct("Settings");
        shown.field("endpoint", &self.endpoint).field("cache", &self.cache).field("token", &token).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(set: &[(&str, &str)]) -> Result<Settings, HubError> {
        let set = set.to_vec();
        Settings::read(move |name| set.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn places_are_those_of_huggingfaces_tools() {
        let cache = |set: &[(&str, &str)]| read(set).expect("settings").cache.display().to_string();
        assert_eq!(cache(&[("HOME", "/h")]), "/h/.cache/huggingface/hub");
        assert_eq!(cache(&[("HOME", "/h"), ("HF_HOME", "/f")]), "/f/hub");
        assert_eq!(cache(&[("HOME", "/h"), ("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")]), "/c");
        assert!(matches!(read(&[]), Err(HubError::NoPlace)));
        assert_eq!(read(&[("HOME", "/h")]).expect("settings").endpoint, "https://huggingface.co");
        assert_eq!(read(&[("HOME", "/h"), ("HF_ENDPOINT", "http://m/")]).expect("settings").endpoint, "http://m");
    }

    #[test]
    fn offline_means_offline() {
        for word in ["1", "ON", "Yes", "true"] {
            assert!(matches!(read(&[("HOME", "/h"), ("HF_HUB_OFFLINE", word)]), Err(HubError::Offline)), "{word}");
        }
        for word in ["0", "", "no"] {
            assert!(read(&[("HOME", "/h"), ("HF_HUB_OFFLINE", word)]).is_ok(), "{word}");
        }
    }

    #[test]
    fn tokens_come_from_the_variable_or_a_file_and_are_not_shown() {
        let dir = tempfile::tempdir().expect("a folder");
        let home = dir.path().display().to_string();
        std::fs::write(dir.path().join("token"), "hf_file\n").expect("writes");
        let token = |set: &[(&str, &str)]| read(set).expect("settings").token;
        assert_eq!(token(&[("HF_HOME", &home)]).as_deref(), Some("hf_file"));
        assert_eq!(token(&[("HF_HOME", &home), ("HF_TOKEN", "hf_said ")]).as_deref(), Some("hf_said"));
        let shown = format!("{:?}", read(&[("HF_HOME", &home)]).expect("settings"));
        assert!(!shown.contains("hf_file") && shown.contains("[secret]"), "{shown}");
    }
}

//! Names from outside, checked before they become parts of paths and addresses.

use crate::HubError;
use std::{fmt, path::Path, str::FromStr};

/// `OWNER/NAME` of a model on the hub.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name(String);

impl Name {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let is_part = |part: &str| {
            let known = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            (1..=96).contains(&part.len()) && part.chars().all(known) && !part.starts_with('.') && !part.contains("--")
        };
        match text.split_once('/') {
            Some((owner, name)) if is_part(owner) && is_part(name) => Ok(Self(text.to_owned())),
            _ => Err(HubError::BadName(text.to_owned())),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A branch, a tag or a commit; none is `main`. It becomes the path of a file in the cache.
pub(crate) fn revision(asked: Option<&str>) -> Result<&str, HubError> {
    let revision = asked.unwrap_or("main");
    let known = |c: char| !c.is_control() && !c.is_whitespace() && !r"\:*?[^~".contains(c);
    match revision.len() <= 200 && revision.chars().all(known) && revision.split('/').all(is_plain) {
        true => Ok(revision),
        false => Err(HubError::BadRevision(revision.to_owned())),
    }
}

/// One plain component of a path.
pub(crate) fn is_plain(name: &str) -> bool {
    Path::new(name).file_name() == Some(name.as_ref())
}

/// The digits of a digest or a commit, which become the name of a file or a folder.
pub(crate) fn is_hex(text: &str) -> bool {
    (8..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// As one component of an address.
pub(crate) fn encoded(text: &str) -> String {
    let keep = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    text.bytes().map(|b| if keep(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_the_hub_are_names() {
        for name in ["allenai/OLMo-1B-hf", "a/b", "meta-llama/Llama-3.1-8B", "x_y/z.w"] {
            assert_eq!(name.parse::<Name>().expect("a name").as_str(), name);
        }
        for name in ["gpt2", "", "/", "a/", "/b", "a/b/c", "../x", "a/..", "a/.b", "a b/c", "a/b?x", "é/b", "a/b--c"] {
            assert!(name.parse::<Name>().is_err(), "{name}");
        }
    }

    #[test]
    fn revisions_stay_in_their_folder_and_addresses_are_escaped() {
        for good in ["main", "step1000-tokens4B", "refs/pr/7", "v1.0", "é"] {
            assert_eq!(revision(Some(good)).expect("a revision"), good);
        }
        for bad in ["", ".", "..", "../x", "a/../b", "/etc", "a//b", "a b", "a*", "a\\b", "a\nb"] {
            assert!(revision(Some(bad)).is_err(), "{bad}");
        }
        assert_eq!(encoded("refs/pr/7"), "refs%2Fpr%2F7");
        assert_eq!(encoded("a?b=c#é"), "a%3Fb%3Dc%23%C3%A9");
    }
}

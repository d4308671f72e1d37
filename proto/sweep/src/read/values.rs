//! The sound values of a file, by path.

use crate::fault::Mark;
use serde_json::Value as Json;
use std::collections::BTreeMap;

/// The sound values of a tree by their dotted path, with their places. Values that are at fault are absent, so that
/// what depends on several values is checked exactly where all of them are known.
#[derive(Debug, Default)]
pub(crate) struct Values {
    pub(super) found: BTreeMap<String, Found>,
    /// Items of every list, sound or not.
    pub(super) lengths: BTreeMap<String, usize>,
}

#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub json: Json,
    pub place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub at: Mark,
    /// Is the value one that the grid varies?
    pub varied: bool,
}

impl Values {
    pub fn get(&self, path: &str) -> Option<&Found> {
        self.found.get(path)
    }

    pub fn whole(&self, path: &str) -> Option<u64> {
        self.get(path)?.json.as_u64()
    }

    /// How many items the list at `path` has; single ones may be at fault.
    pub fn items(&self, path: &str) -> usize {
        self.lengths.get(path).copied().unwrap_or(0)
    }

    pub fn word(&self, path: &str) -> Option<&str> {
        self.get(path)?.json.as_str()
    }

    /// Where to report that these values do not go together: at one that the grid varies, else at the first.
    pub fn blame(&self, paths: &[&str]) -> Mark {
        let places: Vec<Place> = paths.iter().filter_map(|p| self.get(p)).map(|f| f.place).collect();
        places.iter().rfind(|p| p.varied).or(places.first()).map_or(Mark::START, |p| p.at)
    }
}

//! Models and data as this process sees them, for planning.

use std::{cell::RefCell, sync::Arc};
use taskvec_model::spec::{Family, ModelIdentity};
use taskvec_science::{load, task};
use taskvec_sweep::Files;

/// What this process can look at.
pub fn seen() -> Arc<dyn Files + Send + Sync> {
    Arc::new(Here)
}

/// The files of this machine.
#[derive(Debug)]
struct Here;

impl Files for Here {
    fn model(&self, path: &str, revision: Option<&str>) -> Result<ModelIdentity, String> {
        load::identify(path, revision).map_err(|e| e.to_string())
    }

    fn revisions(&self, path: &str, pattern: &str) -> Result<Vec<String>, String> {
        load::revisions(path, pattern).map_err(|e| e.to_string())
    }

    fn data(&self, family: &Family) -> Result<Family, String> {
        task::identify(family).map_err(|e| e.to_string())
    }
}

/// Passes questions on, and remembers the first that had no answer: a client may plan where the models are not.
#[derive(Debug)]
pub struct Noting<'a> {
    files: &'a dyn Files,
    missing: RefCell<Option<String>>,
}

impl<'a> Noting<'a> {
    pub fn new(files: &'a dyn Files) -> Self {
        Self { files, missing: RefCell::new(None) }
    }

    /// Why the first question had no answer; none where all had one.
    pub fn missing(self) -> Option<String> {
        self.missing.into_inner()
    }

    fn note<T>(&self, answer: Result<T, String>) -> Result<T, String> {
        if let Err(why) = &answer {
            self.missing.borrow_mut().get_or_insert_with(|| why.clone());
        }
        answer
    }
}

impl Files for Noting<'_> {
    fn model(&self, path: &str, revision: Option<&str>) -> Result<ModelIdentity, String> {
        self.note(self.files.model(path, revision))
    }

    fn revisions(&self, path: &str, pattern: &str) -> Result<Vec<String>, String> {
        self.note(self.files.revisions(path, pattern))
    }

    fn data(&self, family: &Family) -> Result<Family, String> {
        self.note(self.files.data(family))
    }
}

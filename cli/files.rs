//! Models and data as this process sees them, for planning.

use std::{
    cell::{Cell, RefCell},
    sync::Arc,
};
use taskvec_model::spec::{Family, ModelIdentity};
use taskvec_science::{
    load::{self, LoadError},
    task::{self, TaskError},
};
use taskvec_sweep::{Files, Unseen};

/// What this process can look at.
pub fn seen() -> Arc<dyn Files + Send + Sync> {
    Arc::new(Here)
}

/// The files of this machine.
#[derive(Debug)]
struct Here;

impl Files for Here {
    fn model(&self, path: &str, revision: Option<&str>) -> Result<ModelIdentity, Unseen> {
        load::identify(path, revision).map_err(|e| of_model(&e))
    }

    fn revisions(&self, path: &str, pattern: &str) -> Result<Vec<String>, Unseen> {
        load::revisions(path, pattern).map_err(|e| of_model(&e))
    }

    fn data(&self, family: &Family) -> Result<Family, Unseen> {
        task::identify(family).map_err(|e| match &e {
            TaskError::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                Unseen::Absent(e.to_string())
            }
            _ => Unseen::Unusable(e.to_string()),
        })
    }
}

fn of_model(error: &LoadError) -> Unseen {
    match error.is_absent() {
        true => Unseen::Absent(error.to_string()),
        false => Unseen::Unusable(error.to_string()),
    }
}

/// Passes questions on, and remembers the first about something that is not here, for a client may plan where the models
/// are not; and whether something is here and of no use, which it is everywhere.
#[derive(Debug)]
pub struct Noting<'a> {
    files: &'a dyn Files,
    absent: RefCell<Option<String>>,
    unusable: Cell<bool>,
}

impl<'a> Noting<'a> {
    pub fn new(files: &'a dyn Files) -> Self {
        Self { files, absent: RefCell::new(None), unusable: Cell::new(false) }
    }

    /// The first that is not here, where nothing worse was seen.
    pub fn absent(self) -> Option<String> {
        self.absent.into_inner().filter(|_| !self.unusable.get())
    }

    fn note<T>(&self, answer: Result<T, Unseen>) -> Result<T, Unseen> {
        match &answer {
            Ok(_) => {}
            Err(Unseen::Absent(why)) => {
                self.absent.borrow_mut().get_or_insert_with(|| why.clone());
            }
            Err(Unseen::Unusable(_)) => self.unusable.set(true),
        }
        answer
    }
}

impl Files for Noting<'_> {
    fn model(&self, path: &str, revision: Option<&str>) -> Result<ModelIdentity, Unseen> {
        self.note(self.files.model(path, revision))
    }

    fn revisions(&self, path: &str, pattern: &str) -> Result<Vec<String>, Unseen> {
        self.note(self.files.revisions(path, pattern))
    }

    fn data(&self, family: &Family) -> Result<Family, Unseen> {
        self.note(self.files.data(family))
    }
}

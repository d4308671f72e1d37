//! What a plan depends on beyond the sweep file: models and data, as whoever plans sees them.

use crate::key::canonical_json;
use std::{collections::BTreeMap, fmt};
use taskvec_model::spec::{Family, ModelIdentity};

/// Why a question has no answer: what is missing or wrong, where, and what to do. It is shown beside the place in the sweep
/// file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unseen {
    /// There is nothing; whoever plans elsewhere may have it.
    Absent(String),
    /// There is something that cannot be used.
    Unusable(String),
}

impl fmt::Display for Unseen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Absent(why) | Self::Unusable(why)) = self;
        f.write_str(why)
    }
}

/// Looks at models and data where a sweep is planned.
pub trait Files: fmt::Debug {
    /// The model at `path`, or at a revision of it.
    ///
    /// # Errors
    /// There is no such model, or its files cannot be understood.
    fn model(&self, path: &str, revision: Option<&str>) -> Result<ModelIdentity, Unseen>;

    /// The revisions of the model at `path` whose names match `pattern`, in the order in which runs should come. In a
    /// pattern `*` stands for any text and `?` for any character.
    ///
    /// # Errors
    /// There is no such model. That nothing matches is none.
    fn revisions(&self, path: &str, pattern: &str) -> Result<Vec<String>, Unseen>;

    /// The same tasks with the hash of the file that they come from.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    fn data(&self, family: &Family) -> Result<Family, Unseen>;
}

/// Sees nothing: every model and data file is refused.
#[derive(Clone, Copy, Debug)]
pub struct NoFiles;

const NO_FILES: &str = "models and data cannot be looked at here; submit to a server that was started where they are";

impl Files for NoFiles {
    fn model(&self, _: &str, _: Option<&str>) -> Result<ModelIdentity, Unseen> {
        Err(Unseen::Absent(NO_FILES.to_owned()))
    }

    fn revisions(&self, _: &str, _: &str) -> Result<Vec<String>, Unseen> {
        Err(Unseen::Absent(NO_FILES.to_owned()))
    }

    fn data(&self, _: &Family) -> Result<Family, Unseen> {
        Err(Unseen::Absent(NO_FILES.to_owned()))
    }
}

type Answers<K, V> = BTreeMap<K, Result<V, String>>;

/// Faults are shown one per line, whatever an answer looks like.
fn in_one_line(unseen: Unseen) -> String {
    let text = unseen.to_string();
    let mut line = String::new();
    for part in text.lines().map(str::trim).filter(|part| !part.is_empty()) {
        let between = if line.is_empty() || line.ends_with([':', ';', ',']) { " " } else { "; " };
        line += between;
        line += part;
    }
    line.trim_start().to_owned()
}

/// Asks every question once: hashing a model reads all of it.
#[derive(Debug, Default)]
pub(crate) struct Look<'a> {
    files: Option<&'a dyn Files>,
    models: Answers<(String, Option<String>), ModelIdentity>,
    revisions: Answers<(String, String), Vec<String>>,
    data: Answers<String, Family>,
}

impl<'a> Look<'a> {
    pub fn at(files: &'a dyn Files) -> Self {
        Self { files: Some(files), ..Self::default() }
    }

    /// None where no files are looked at; so below.
    pub fn model(&mut self, path: &str, revision: Option<&str>) -> Option<Result<ModelIdentity, String>> {
        let files = self.files?;
        let key = (path.to_owned(), revision.map(str::to_owned));
        Some(self.models.entry(key).or_insert_with(|| files.model(path, revision).map_err(in_one_line)).clone())
    }

    pub fn revisions(&mut self, path: &str, pattern: &str) -> Option<Result<Vec<String>, String>> {
        let files = self.files?;
        let key = (path.to_owned(), pattern.to_owned());
        let ask = || files.revisions(path, pattern).map_err(in_one_line);
        Some(self.revisions.entry(key).or_insert_with(ask).clone())
    }

    /// Also none where the tasks come from no file.
    pub fn data(&mut self, family: &Family) -> Option<Result<Family, String>> {
        let files = self.files.filter(|_| family.file().is_some())?;
        let ask = || files.data(family).map_err(in_one_line);
        Some(self.data.entry(canonical_json(family)).or_insert_with(ask).clone())
    }
}

//! What a model's files are, so that results can be keyed by them.

use super::LoadError;
use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    sync::Mutex,
    time::SystemTime,
};
use taskvec_model::id::Digest;

/// A file as it was when it was hashed.
type Seen = (PathBuf, u64, Option<SystemTime>);

/// Digests of files this process has read: models are named again and again, and hashing one takes seconds to minutes.
static SEEN: Mutex<BTreeMap<Seen, Digest>> = Mutex::new(BTreeMap::new());

/// BLAKE3 over the names and digests of files, in the order of their names.
///
/// # Errors
/// Where one cannot be read.
pub(super) fn digest(files: &[PathBuf]) -> Result<Digest, LoadError> {
    let mut named = BTreeMap::new();
    for path in files {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        named.insert(name, digest_of(path)?);
    }
    let mut hasher = blake3::Hasher::new();
    for (name, digest) in named {
        hasher.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes()).update(&digest.0);
    }
    Ok(Digest(*hasher.finalize().as_bytes()))
}

fn digest_of(path: &Path) -> Result<Digest, LoadError> {
    let file = File::open(path).map_err(LoadError::io(path))?;
    let about = file.metadata().map_err(LoadError::io(path))?;
    let seen: Seen = (path.to_owned(), about.len(), about.modified().ok());
    let lock = || SEEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(known) = lock().get(&seen) {
        return Ok(*known);
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file).map_err(LoadError::io(path))?;
    let digest = Digest(*hasher.finalize().as_bytes());
    lock().insert(seen, digest);
    Ok(digest)
}

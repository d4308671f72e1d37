//! The worker's own folder: its lock, and the identity with which a restarted process reclaims finished outcomes.

use crate::error::{AgentError, AtPath};
use serde::{Deserialize, Serialize};
use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// What the server knows this worker by. Kept for a successor while the worker works, removed when it begins to drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// 0 until the server has given one.
    pub worker_id: i64,
    /// The server gives an id back only to whoever knows this number.
    pub nonce: u64,
}

/// The folder, locked for this process until dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    pub fn open(path: &Path) -> Result<Self, AgentError> {
        std::fs::create_dir_all(path).at("cannot create data folder", path)?;
        let lock = path.join("worker.lock");
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&lock).at("cannot open", &lock)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: file }),
            Err(TryLockError::WouldBlock) => Err(AgentError::DataDirInUse(path.to_owned())),
            Err(TryLockError::Error(source)) => Err(AgentError::Io { what: "cannot lock", path: lock, source }),
        }
    }

    pub fn spool(&self) -> PathBuf {
        self.path.join("spool")
    }

    pub fn cache(&self) -> PathBuf {
        self.path.join("cache")
    }

    fn identity_file(&self) -> PathBuf {
        self.path.join("identity.json")
    }

    /// The identity of the process that had this folder before and did not leave properly; else a new one.
    pub fn identity(&self) -> Result<Identity, AgentError> {
        if let Some(kept) = std::fs::read(self.identity_file()).ok().and_then(|b| serde_json::from_slice(&b).ok()) {
            return Ok(kept);
        }
        let nonce = getrandom::u64().map_err(|e| AgentError::System(format!("no random numbers: {e}")))?;
        Ok(Identity { worker_id: 0, nonce })
    }

    pub fn keep_identity(&self, identity: &Identity) -> Result<(), AgentError> {
        let text = serde_json::to_vec(identity).map_err(|e| AgentError::Bug(e.to_string()))?;
        write_atomically(&self.identity_file(), &text).at("cannot write", self.identity_file())
    }

    /// Nothing is left to reclaim.
    pub fn forget_identity(&self) {
        // Kept by mistake it does no harm: the server refuses an id that has left and gives a new one.
        let _ = std::fs::remove_file(self.identity_file());
    }
}

/// Ending of files that are not complete yet.
pub(crate) const UNFINISHED: &str = ".tmp";

/// Writes a file so that, whenever the process dies, either all of it is there or nothing. Not synced to disk, which
/// would cost more than a short job: after a power failure the file may be damaged, which its readers notice, and what
/// it said is worked out again.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(UNFINISHED);
    let unfinished = PathBuf::from(name);
    let written = (|| {
        let mut file = File::create(&unfinished)?;
        file.write_all(bytes)?;
        std::fs::rename(&unfinished, path)
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&unfinished);
    }
    written
}

/// Removes what an earlier process left half written.
pub(crate) fn remove_unfinished(folder: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().ends_with(UNFINISHED) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_worker_at_a_time() {
        let temp = tempfile::tempdir().unwrap();
        let first = DataDir::open(temp.path()).unwrap();
        let refused = DataDir::open(temp.path()).unwrap_err();
        assert!(matches!(&refused, AgentError::DataDirInUse(path) if path == temp.path()));
        assert!(refused.to_string().contains("--scratch"), "{refused}");
        drop(first);
        DataDir::open(temp.path()).unwrap();
    }

    #[test]
    fn an_identity_lasts_until_it_is_forgotten() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temp.path()).unwrap();
        let mut identity = dir.identity().unwrap();
        assert_eq!(identity.worker_id, 0);
        identity.worker_id = 7;
        dir.keep_identity(&identity).unwrap();
        assert_eq!(dir.identity().unwrap(), identity);
        dir.forget_identity();
        assert_ne!(dir.identity().unwrap(), identity);
    }
}

//! The data folder of a stack: one owner at a time, a place for its secrets, and the file by which clients find it.

use crate::secret::Secret;
use serde::{Deserialize, Serialize};
use std::{
    fs::{File, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    net::SocketAddr,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    #[error(
        "the data folder {} is in use by process {pid}: stop that one, reach it with `--data {}`, or choose another folder",
        folder.display(), folder.display()
    )]
    InUse { folder: PathBuf, pid: String },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

impl DataDirError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}

/// A locked data folder. The lock goes with the last clone, or with the process.
#[derive(Clone, Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: Arc<File>,
}

/// What `server.json` says: how a client on this machine reaches the running server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerFile {
    pub address: SocketAddr,
    pub tls: bool,
    pub pid: u32,
    pub version: String,
}

impl DataDir {
    /// Makes the folder where it is missing and locks it.
    ///
    /// # Errors
    /// [`DataDirError::InUse`] when another process holds it.
    pub fn open(path: &Path) -> Result<Self, DataDirError> {
        // Traversable, not listable: an unprivileged PostgreSQL may live inside; every file has its own mode.
        std::fs::DirBuilder::new().recursive(true).mode(0o711).create(path).map_err(DataDirError::io(path))?;
        let path = path.canonicalize().map_err(DataDirError::io(path))?;
        let lock = lock(&path)?;
        Ok(Self { path, _lock: Arc::new(lock) })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The secret kept under `name`, made at first use.
    ///
    /// # Errors
    /// When its file cannot be read or written.
    pub fn secret(&self, name: &str) -> Result<Secret, DataDirError> {
        let path = self.path.join(name);
        Secret::load_or_create(&path).map_err(DataDirError::io(&path))
    }

    /// Tells clients where the server listens.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn announce(&self, server: &ServerFile) -> Result<(), DataDirError> {
        write_atomically(&self.path.join("server.json"), server)
    }

    /// Clients will not look for a server any more.
    pub fn withdraw(&self) {
        // Already gone is as good.
        let _ = std::fs::remove_file(self.path.join("server.json"));
    }

    /// Where the server of `folder` listens: none when none has announced itself.
    ///
    /// # Errors
    /// When the file is there but cannot be read.
    pub fn find_server(folder: &Path) -> Result<Option<ServerFile>, DataDirError> {
        read_json(&folder.join("server.json"))
    }
}

fn lock(folder: &Path) -> Result<File, DataDirError> {
    let path = folder.join("lock");
    let io = || DataDirError::io(&path);
    let mut file = File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(io())?;
    match file.try_lock() {
        Ok(()) => {
            file.set_len(0).and_then(|()| file.rewind()).map_err(io())?;
            writeln!(file, "{}", std::process::id()).map_err(io())?;
            Ok(file)
        }
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            file.read_to_string(&mut pid).map_err(io())?;
            Err(DataDirError::InUse { folder: folder.to_owned(), pid: pid.trim().to_owned() })
        }
        Err(TryLockError::Error(e)) => Err(io()(e)),
    }
}

/// A JSON file, or none where it does not exist.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, DataDirError> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| DataDirError::io(path)(e.into())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(DataDirError::io(path)(e)),
    }
}

/// Readers see the old file or the new one.
pub(crate) fn write_atomically(path: &Path, value: &impl Serialize) -> Result<(), DataDirError> {
    let partial = path.with_extension("new");
    let write = || {
        let mut file = File::create(&partial)?;
        serde_json::to_writer(&mut file, value)?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        std::fs::rename(&partial, path)
    };
    write().map_err(DataDirError::io(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_owner_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let held = DataDir::open(folder.path()).unwrap();
        let refused = DataDir::open(folder.path()).unwrap_err().to_string();
        assert!(refused.contains(&format!("in use by process {}", std::process::id())), "{refused}");
        drop(held);
        DataDir::open(folder.path()).unwrap();
    }

    #[test]
    fn the_server_is_found_until_it_withdraws() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::open(&folder.path().join("deep/er")).unwrap();
        let server = ServerFile { address: "127.0.0.1:7420".parse().unwrap(), tls: false, pid: 7, version: "1".into() };
        assert_eq!(DataDir::find_server(data.path()).unwrap(), None);
        data.announce(&server).unwrap();
        assert_eq!(DataDir::find_server(data.path()).unwrap(), Some(server));
        data.withdraw();
        assert_eq!(DataDir::find_server(data.path()).unwrap(), None);
    }
}

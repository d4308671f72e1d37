//! Which CPU cores this worker may use: lock files that all workers of a user on this machine share.
//!
//! A core is claimed by an exclusive `flock` on its file. The kernel drops the lock when the process ends, however it
//! ends, so that no core stays claimed by a dead worker. The claim counts cores; it does not pin threads to them.
//! Workers in different containers do not see each other's claims: give those an explicit number of threads.

use crate::error::{AgentError, AtPath};
use std::{
    fs::{DirBuilder, File, OpenOptions, TryLockError},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

/// Claimed cores, free again when dropped.
#[derive(Debug)]
pub struct Claim {
    held: Vec<File>,
}

impl Claim {
    /// Claims every free core of the `cores` of this machine, with lock files in `folder`. At least one, or an error.
    pub fn free_cores(folder: &Path, cores: usize) -> Result<Self, AgentError> {
        open_folder(folder)?;
        let mut held = Vec::new();
        for core in 0..cores {
            let path = folder.join(format!("core-{core}"));
            let file =
                OpenOptions::new().create(true).truncate(false).write(true).open(&path).at("cannot open", &path)?;
            match file.try_lock() {
                Ok(()) => held.push(file),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(source)) => return Err(AgentError::Io { what: "cannot lock", path, source }),
            }
        }
        if held.is_empty() {
            return Err(AgentError::NoFreeCore { cores, folder: folder.to_owned() });
        }
        Ok(Self { held })
    }

    pub fn count(&self) -> usize {
        self.held.len()
    }
}

/// Where the workers of this user on this machine meet. Not XDG_RUNTIME_DIR: a service and a login shell of one user
/// may disagree about it.
pub fn machine_folder() -> PathBuf {
    std::env::temp_dir().join(format!("taskvec-cores-{}", rustix::process::getuid().as_raw()))
}

/// Makes the folder for this user alone. One that somebody else made first could hold cores back, so it is refused.
fn open_folder(folder: &Path) -> Result<(), AgentError> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder).at("cannot create", folder)?;
    let owner = std::fs::symlink_metadata(folder).at("cannot read", folder)?;
    if !owner.is_dir() || owner.uid() != rustix::process::getuid().as_raw() {
        return Err(AgentError::ForeignFolder(folder.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_claimers_never_share_a_core_and_a_dropped_claim_is_free() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cores");
        let first = Claim::free_cores(&path, 3).unwrap();
        assert_eq!(first.count(), 3);
        let refused = Claim::free_cores(&path, 3).unwrap_err();
        assert!(matches!(refused, AgentError::NoFreeCore { cores: 3, .. }));
        assert!(refused.to_string().contains("--threads"), "{refused}");
        // A larger machine view: only what is left over is handed out.
        let second = Claim::free_cores(&path, 5).unwrap();
        assert_eq!(second.count(), 2);
        drop(first);
        assert_eq!(Claim::free_cores(&path, 5).unwrap().count(), 3);
    }

    #[test]
    fn claimers_that_race_share_out_the_cores() {
        let folder = tempfile::tempdir().unwrap();
        let start = std::sync::Barrier::new(4);
        let claims: Vec<Option<Claim>> = std::thread::scope(|scope| {
            let claimers: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        start.wait();
                        Claim::free_cores(folder.path(), 8).ok()
                    })
                })
                .collect();
            claimers.into_iter().map(|c| c.join().unwrap()).collect()
        });
        assert_eq!(claims.iter().flatten().map(Claim::count).sum::<usize>(), 8);
    }
}

//! Finding the machine's own PostgreSQL server programs.

use super::PostgresError;
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// A folder with `postgres` and `initdb`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Binaries {
    pub folder: PathBuf,
    pub major: u32,
}

impl Binaries {
    pub fn program(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The first that is found, in this order: `PATH`, `pg_config --bindir`, the usual folders, newest first. Where a
    /// cluster exists already only its own major version will do.
    pub fn find(major: Option<u32>) -> Result<Self, PostgresError> {
        Self::choose(candidates(), major)
    }

    fn choose(folders: impl IntoIterator<Item = PathBuf>, wanted: Option<u32>) -> Result<Self, PostgresError> {
        let mut found = Vec::new();
        for folder in folders {
            let Some(binaries) = inspect(folder) else { continue };
            if wanted.is_none_or(|major| major == binaries.major) {
                return Ok(binaries);
            }
            found.push(binaries.major);
        }
        match wanted {
            Some(cluster) if !found.is_empty() => Err(PostgresError::WrongVersion { cluster, found }),
            _ => Err(PostgresError::NotInstalled),
        }
    }
}

fn candidates() -> Vec<PathBuf> {
    let mut out: Vec<PathBuf> =
        std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
    if let Ok(reply) = Command::new("pg_config").arg("--bindir").output() {
        out.push(PathBuf::from(String::from_utf8_lossy(&reply.stdout).trim()));
    }
    out.extend(versioned(Path::new("/usr/lib/postgresql"), "", "bin")); // Debian, Ubuntu
    out.extend(versioned(Path::new("/usr"), "pgsql-", "bin")); // Red Hat, PGDG
    for homebrew in ["/opt/homebrew/opt", "/usr/local/opt"] {
        out.extend(versioned(Path::new(homebrew), "postgresql@", "bin"));
        out.push(Path::new(homebrew).join("postgresql/bin"));
    }
    out
}

/// `parent/PREFIX<number>/inner`, the highest number first.
fn versioned(parent: &Path, prefix: &str, inner: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    let mut numbered: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()?;
            Some((number, entry.path().join(inner)))
        })
        .collect();
    numbered.sort_by(|a, b| b.cmp(a));
    numbered.into_iter().map(|(_, folder)| folder).collect()
}

fn inspect(folder: PathBuf) -> Option<Binaries> {
    // Debian links single programs into /usr/local/bin; their siblings are where the link points to.
    let postgres = folder.join("postgres").canonicalize().ok()?;
    let folder = postgres.parent()?.to_owned();
    if !folder.join("initdb").is_file() {
        return None;
    }
    let reply = Command::new(&postgres).arg("--version").output().ok()?;
    let major = parse_major(&String::from_utf8_lossy(&reply.stdout))?;
    Some(Binaries { folder, major })
}

/// Of `postgres (PostgreSQL) 15.18 (Debian …)` or `17beta1`.
fn parse_major(version: &str) -> Option<u32> {
    let number = version.split_whitespace().nth(2)?;
    let digits: String = number.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn fake(folder: &Path, major: u32) -> PathBuf {
        let bin = folder.join(major.to_string()).join("bin");
        std::fs::create_dir_all(&bin).unwrap();
        for name in ["postgres", "initdb"] {
            let text = format!("#!/bin/sh\necho 'postgres (PostgreSQL) {major}.3 (Some 1)'\n");
            std::fs::write(bin.join(name), text).unwrap();
            std::fs::set_permissions(bin.join(name), std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        bin
    }

    #[test]
    fn the_newest_is_taken_unless_a_cluster_decides() {
        let folder = tempfile::tempdir().unwrap();
        for major in [9, 14, 16] {
            fake(folder.path(), major);
        }
        let find = |wanted| Binaries::choose(versioned(folder.path(), "", "bin"), wanted);
        assert_eq!(find(None).unwrap().major, 16);
        assert_eq!(find(Some(14)).unwrap().major, 14);
        let message = find(Some(15)).unwrap_err().to_string();
        assert!(message.contains("version 15") && message.contains("16, 14, 9"), "{message}");
    }

    #[test]
    fn nothing_installed_says_what_to_install() {
        let message = Binaries::choose([PathBuf::from("/nonexistent")], None).unwrap_err().to_string();
        assert!(message.contains("apt-get install postgresql"), "{message}");
    }

    #[test]
    fn version_texts_are_read() {
        assert_eq!(parse_major("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"), Some(15));
        assert_eq!(parse_major("postgres (PostgreSQL) 18beta1"), Some(18));
        assert_eq!(parse_major("nonsense"), None);
    }
}

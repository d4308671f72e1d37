//! Tokens and passwords: random, never printed, compared in constant time.

use std::{
    fmt,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

/// A token or password. `Debug` hides it; [`Secret::reveal`] gives it away.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// Surrounding white space does not belong to a secret: files end with a newline.
    pub fn new(text: impl AsRef<str>) -> Self {
        Self(text.as_ref().trim().to_owned())
    }

    /// 32 random bytes as hexadecimal digits.
    ///
    /// # Errors
    /// When the operating system gives no randomness.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0_u8; 32];
        getrandom::fill(&mut bytes).map_err(|e| io::Error::other(e.to_string()))?;
        Ok(Self(bytes.iter().map(|b| format!("{b:02x}")).collect()))
    }

    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// The secret in the file at `path`; written there, readable by its owner only, when there is none yet.
    ///
    /// # Errors
    /// When the file can neither be read nor made, or is empty.
    pub fn load_or_create(path: &Path) -> io::Result<Self> {
        match std::fs::read_to_string(path) {
            Ok(text) if text.trim().is_empty() => {
                Err(io::Error::new(io::ErrorKind::InvalidData, "is empty; remove it to have a new one made"))
            }
            Ok(text) => Ok(Self::new(text)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let secret = Self::random()?;
                secret.write(path)?;
                Ok(secret)
            }
            Err(e) => Err(e),
        }
    }

    /// Written beside its place and renamed, so that a reader never sees half of it.
    fn write(&self, path: &Path) -> io::Result<()> {
        let partial = path.with_extension("new");
        let mut file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
        writeln!(file, "{}", self.0)?;
        file.sync_all()?;
        std::fs::rename(&partial, path)
    }
}

/// In constant time: how long it takes tells nothing about where the two differ.
impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        // `blake3::Hash` compares in constant time, and hashing makes the lengths equal.
        blake3::hash(self.0.as_bytes()) == blake3::hash(other.0.as_bytes())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn made_once_kept_private_and_never_printed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let made = Secret::load_or_create(&path).unwrap();
        assert_eq!(made.reveal().len(), 64);
        assert!(made == Secret::load_or_create(&path).unwrap());
        assert!(made != Secret::random().unwrap());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!format!("{made:?}").contains(made.reveal()));
    }

    #[test]
    fn an_empty_file_is_not_a_secret() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "\n").unwrap();
        assert!(Secret::load_or_create(&path).unwrap_err().to_string().contains("remove it"));
    }
}

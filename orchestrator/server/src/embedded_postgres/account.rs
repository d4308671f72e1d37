//! The account PostgreSQL runs under. It refuses root; anyone else runs it as themselves.

use super::PostgresError;
use std::{
    io,
    os::unix::fs::{MetadataExt as _, chown},
    path::Path,
};

/// An unprivileged account that root hands the cluster to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Account {
    pub uid: u32,
    pub gid: u32,
}

impl Account {
    /// None unless we are root.
    pub fn needed() -> Result<Option<Self>, PostgresError> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let passwd = std::fs::read_to_string("/etc/passwd").map_err(PostgresError::io("read", "/etc/passwd"))?;
        ["postgres", "nobody"].iter().find_map(|name| parse(&passwd, name)).map(Some).ok_or(PostgresError::NoAccount)
    }

    pub fn own(self, path: &Path) -> io::Result<()> {
        chown(path, Some(self.uid), Some(self.gid))
    }

    /// May the account walk from the root of the file system into `folder`? Access lists are not looked at.
    pub fn can_enter(self, folder: &Path) -> bool {
        folder.ancestors().filter(|a| !a.as_os_str().is_empty()).all(|ancestor| {
            std::fs::metadata(ancestor).is_ok_and(|meta| {
                let bit = match () {
                    () if meta.uid() == self.uid => 0o100,
                    () if meta.gid() == self.gid => 0o010,
                    () => 0o001,
                };
                meta.mode() & bit != 0
            })
        })
    }
}

fn parse(passwd: &str, name: &str) -> Option<Account> {
    let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut fields = line.split(':').skip(2);
    Some(Account { uid: fields.next()?.parse().ok()?, gid: fields.next()?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn accounts_are_read_from_passwd() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\npostgres:x:101:104:,,,:/var/lib/postgresql:/bin/bash\n";
        assert_eq!(parse(passwd, "postgres"), Some(Account { uid: 101, gid: 104 }));
        assert_eq!(parse(passwd, "nobody"), None);
    }

    #[test]
    fn a_closed_ancestor_keeps_a_stranger_out() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("a/b");
        std::fs::create_dir_all(&inner).unwrap();
        let stranger = Account { uid: 65_001, gid: 65_001 };
        let set = |mode| std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        set(0o711);
        assert!(stranger.can_enter(&inner));
        set(0o700);
        assert!(!stranger.can_enter(&inner));
    }
}

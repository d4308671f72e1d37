//! Where the server is: flags, then `TASKVEC_*` variables, then the configuration file.

use crate::{args::Global, client::Address, error::CliError};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// The folder of the local stack where none is named.
pub const DEFAULT_DATA: &str = ".taskvec";

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    server: Option<String>,
    token: Option<String>,
    tls_ca: Option<PathBuf>,
}

/// Which server a client command talks to.
pub enum Target {
    Address(Address),
    /// The local stack of a folder.
    Folder(PathBuf),
}

/// `--data`, else the named server, else the local stack in the current folder, where there is one.
pub fn target(global: &Global) -> Result<Target, CliError> {
    if let Some(data) = &global.data {
        return Ok(Target::Folder(data.clone()));
    }
    let file = read(file_path().as_deref())?;
    let server = global.server.clone().or(file.server);
    if server.is_none() && Path::new(DEFAULT_DATA).join("token").exists() {
        return Ok(Target::Folder(DEFAULT_DATA.into()));
    }
    let token = global.token.clone().or(file.token).ok_or_else(|| {
        CliError::Usage(
            "no token: give TASKVEC_TOKEN (the server keeps it in DATA/token), or --data DIR for the local stack of a folder"
                .to_owned(),
        )
    })?;
    let url = server.unwrap_or_else(|| "http://127.0.0.1:7420".to_owned());
    Ok(Target::Address(Address { url, token, tls_ca: global.tls_ca.clone().or(file.tls_ca) }))
}

/// `$XDG_CONFIG_HOME/taskvec/config.yaml`, else `~/.config/taskvec/config.yaml`.
fn file_path() -> Option<PathBuf> {
    let base = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
    let base = base.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".config")))?;
    Some(base.join("taskvec/config.yaml"))
}

fn read(path: Option<&Path>) -> Result<File, CliError> {
    let Some(path) = path.filter(|p| p.exists()) else {
        return Ok(File::default());
    };
    let text = std::fs::read_to_string(path).map_err(CliError::io(path))?;
    serde_yaml::from_str(&text)
        .map_err(|e| CliError::Usage(format!("{}: {e} (keys: server, token, tls_ca)", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_refuses_unknown_keys_and_may_be_absent() {
        assert!(read(Some(Path::new("/nowhere/config.yaml"))).is_ok());
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("config.yaml");
        std::fs::write(&path, "server: http://a:1\ntoken: t\n").expect("writes");
        assert_eq!(read(Some(&path)).expect("reads").server.as_deref(), Some("http://a:1"));
        std::fs::write(&path, "sever: x\n").expect("writes");
        assert!(read(Some(&path)).expect_err("refuses").to_string().contains("sever"));
    }
}

//! A private PostgreSQL for one data folder, run from the machine's own server programs.
//!
//! It listens on a Unix socket and on a loopback port only, restarts when it dies, outlives a killed server (which
//! finds it again), and is stopped in order with us.

mod account;
mod binaries;
mod cluster;
mod postmaster;

use crate::{
    data_dir::{DataDir, DataDirError},
    secret::Secret,
};
use cluster::{Cluster, DATABASE, Endpoint, OWNER};
use postmaster::Postmaster;
use std::{
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    process::ExitStatus,
    time::{Duration, Instant},
};
use tokio::{sync::watch, task::JoinHandle, time::sleep};

#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    #[error(
        "no PostgreSQL server programs (postgres, initdb) found in PATH, by pg_config, or in the usual folders: install \
         them (Debian, Ubuntu: apt-get install postgresql; Fedora: dnf install postgresql-server; macOS: brew install \
         postgresql@17), or give the server a database with --database-url"
    )]
    NotInstalled,
    #[error(
        "the cluster was made by PostgreSQL version {cluster}, but only {} was found: install version {cluster} \
         (Debian, Ubuntu: apt-get install postgresql-{cluster}) or move the data with pg_upgrade",
        found.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
    )]
    WrongVersion { cluster: u32, found: Vec<u32> },
    #[error(
        "PostgreSQL refuses to run as root and there is neither an account `postgres` nor `nobody`: make one, or start as another user"
    )]
    NoAccount,
    #[error("{} failed ({status}): {output}", program.display())]
    Program { program: PathBuf, status: ExitStatus, output: String },
    #[error("PostgreSQL did not start: {why}. The end of its log:\n{log}")]
    DidNotStart { why: String, log: String },
    #[error("could not {what} {}: {source}", path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error(transparent)]
    DataDir(#[from] DataDirError),
}

impl PostgresError {
    fn io(what: &'static str, path: impl AsRef<OsStr>) -> impl FnOnce(io::Error) -> Self {
        let path = PathBuf::from(path.as_ref());
        move |source| Self::Io { what, path, source }
    }
}

/// The way to the database for tools outside the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub host: String,
    pub port: u16,
    pub database: String,
}

impl Address {
    pub fn url(&self, role: &str, password: &Secret) -> String {
        format!("postgres://{role}:{}@{}:{}/{}", password.reveal(), self.host, self.port, self.database)
    }
}

/// A running, supervised PostgreSQL.
#[derive(Debug)]
pub struct EmbeddedPostgres {
    cluster: Cluster,
    password: Secret,
    pid: watch::Receiver<rustix::process::Pid>,
    stop: watch::Sender<bool>,
    supervisor: Option<JoinHandle<()>>,
    /// Keeps the folder locked for as long as PostgreSQL may run.
    _data: DataDir,
}

impl EmbeddedPostgres {
    /// Finds or makes the cluster of `data` and has it accept connections.
    ///
    /// # Errors
    /// When no programs are found, or PostgreSQL does not start; the message has the end of its log.
    pub async fn start(data: &DataDir) -> Result<Self, PostgresError> {
        let password = data.secret("postgres-password")?;
        let (owned, secret) = (data.clone(), password.clone());
        let opened = tokio::task::spawn_blocking(move || Cluster::open(&owned, &secret)).await;
        let cluster = opened.map_err(|e| PostgresError::io("prepare", data.path())(io::Error::other(e)))??;
        let postmaster = Postmaster::launch(&cluster).await?;
        let (tell_pid, pid) = watch::channel(postmaster.pid());
        let (stop, stopped) = watch::channel(false);
        let supervisor = tokio::spawn(supervise(cluster.clone(), postmaster, tell_pid, stopped));
        Ok(Self { cluster, password, pid, stop, supervisor: Some(supervisor), _data: data.clone() })
    }

    /// For the server itself: the owner of everything, through the socket where there is one.
    pub fn url_owner(&self) -> String {
        let (password, port) = (self.password.reveal(), self.cluster.port);
        match &self.cluster.endpoint {
            Endpoint::Socket(run) => {
                format!("postgres://{OWNER}:{password}@localhost:{port}/{DATABASE}?host={}", percent_encoded(run))
            }
            Endpoint::Loopback => format!("postgres://{OWNER}:{password}@127.0.0.1:{port}/{DATABASE}"),
        }
    }

    /// For readers: they add their own role and password.
    pub fn address(&self) -> Address {
        Address { host: "127.0.0.1".into(), port: self.cluster.port, database: DATABASE.into() }
    }

    /// Where the cluster lies.
    pub fn folder(&self) -> &Path {
        &self.cluster.folder
    }

    /// The postmaster's process id: another one after each restart.
    pub fn pid(&self) -> i32 {
        self.pid.borrow().as_raw_nonzero().get()
    }

    /// Fast shutdown, waited for.
    pub async fn stop(mut self) {
        let _ = self.stop.send(true);
        if let Some(supervisor) = self.supervisor.take() {
            // It panicked or was cancelled with its runtime: drop does the rest.
            let _ = supervisor.await;
        }
    }
}

/// Whoever forgets [`EmbeddedPostgres::stop`] still leaves nothing running.
impl Drop for EmbeddedPostgres {
    fn drop(&mut self) {
        if let Some(supervisor) = self.supervisor.take() {
            supervisor.abort();
        }
        let (pid, limit) = (*self.pid.borrow(), Instant::now() + Duration::from_secs(10));
        while postmaster::pid_in(&self.cluster.folder) == Some(pid)
            && postmaster::signal_stop(pid)
            && Instant::now() < limit
        {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Restarts the postmaster whenever it dies, until told to stop.
async fn supervise(
    cluster: Cluster,
    mut postmaster: Postmaster,
    tell_pid: watch::Sender<rustix::process::Pid>,
    mut stopped: watch::Receiver<bool>,
) {
    loop {
        tokio::select! {
            () = told(&mut stopped) => return postmaster.stop().await,
            how = postmaster.ended() => tracing::warn!(how, "PostgreSQL died; starting it again"),
        }
        let mut pause = Duration::from_millis(50);
        postmaster = loop {
            // Backends of a killed postmaster hold its memory for a moment: the next one refuses until they are gone.
            match Postmaster::launch(&cluster).await {
                Ok(launched) => break launched,
                Err(error) => tracing::warn!(%error, "PostgreSQL does not start yet"),
            }
            tokio::select! {
                () = told(&mut stopped) => return,
                () = sleep(pause) => pause = (pause * 2).min(Duration::from_secs(5)),
            }
        };
        let _ = tell_pid.send(postmaster.pid());
    }
}

/// Resolves when the flag is raised, or its owner is gone.
async fn told(stopped: &mut watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stop| *stop).await;
}

/// For the query part of a URL.
fn percent_encoded(path: &Path) -> String {
    let keep = |b: u8| b.is_ascii_alphanumeric() || b"-._~/".contains(&b);
    path.as_os_str()
        .as_encoded_bytes()
        .iter()
        .map(|&b| if keep(b) { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_with_odd_names_fit_into_a_url() {
        assert_eq!(percent_encoded(Path::new("/data/my run?&x")), "/data/my%20run%3F%26x");
    }
}

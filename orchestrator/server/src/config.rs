//! How a server is to be run. Values only: flags, environment and files are the command line's business.

use crate::{error::ServerError, secret::Secret};
use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use taskvec_sweep::{Files, Limits, NoFiles};

#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Port 0: any free one.
    pub listen: SocketAddr,
    /// None: kept in the data folder, made at first start.
    pub token: Option<Secret>,
    pub tls: Option<TlsFiles>,
    /// Allows a listener beyond loopback without TLS.
    pub insecure_plaintext: bool,
    pub database: Database,
    /// Holds the token and `server.json`. None: the embedded database's folder, if that is what is used.
    pub data_dir: Option<PathBuf>,
    /// How long an attempt lasts without a heartbeat.
    pub lease: Duration,
    /// How often workers report.
    pub heartbeat: Duration,
    /// Attempts of a job that may fail before it has failed.
    pub retry_limit: u32,
    /// The pause after a first failure, doubling up to `backoff_max`.
    pub backoff: Duration,
    pub backoff_max: Duration,
    /// What one sweep may ask for.
    pub limits: Limits,
    /// How sweeps on pretrained models are planned: with the models and data that this sees.
    pub files: Arc<dyn Files + Send + Sync>,
    /// Uploads younger than this are safe from `gc`.
    pub gc_grace: Duration,
    /// Connections to the database, besides the leader's and the readers'.
    pub connections: u32,
}

#[derive(Clone, Debug)]
pub enum Database {
    /// A private PostgreSQL in this folder.
    Embedded(PathBuf),
    /// `postgres://…`; never logged, for it has a password.
    Url(Secret),
}

/// PEM files.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl ServerConfig {
    /// On loopback, any port, with everything at its default; it sees no models.
    pub fn new(database: Database) -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            token: None,
            tls: None,
            insecure_plaintext: false,
            database,
            data_dir: None,
            lease: Duration::from_secs(20),
            heartbeat: Duration::from_secs(5),
            retry_limit: 3,
            backoff: Duration::from_secs(1),
            backoff_max: Duration::from_secs(60),
            limits: Limits::default(),
            files: Arc::new(NoFiles),
            gc_grace: Duration::from_secs(3600),
            connections: 16,
        }
    }

    pub(crate) fn folder(&self) -> Option<&Path> {
        match (&self.data_dir, &self.database) {
            (Some(folder), _) | (None, Database::Embedded(folder)) => Some(folder),
            (None, Database::Url(_)) => None,
        }
    }

    pub(crate) fn check(&self) -> Result<(), ServerError> {
        if self.tls.is_none() && !self.insecure_plaintext && !self.listen.ip().is_loopback() {
            return Err(ServerError::Plaintext(self.listen));
        }
        if self.token.is_none() && self.folder().is_none() {
            return Err(ServerError::NoToken);
        }
        Ok(())
    }

    pub(crate) fn sched(&self) -> taskvec_sched::Config {
        taskvec_sched::Config {
            lease: millis(self.lease),
            retry_limit: self.retry_limit,
            backoff_base: millis(self.backoff),
            backoff_max: millis(self.backoff_max),
        }
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_listens_in_the_clear_beyond_loopback_by_accident() {
        let mut config = ServerConfig::new(Database::Embedded("/data".into()));
        assert!(config.check().is_ok());
        config.listen = "0.0.0.0:7420".parse().unwrap();
        assert!(config.check().unwrap_err().to_string().contains("0.0.0.0:7420 without TLS"));
        config.insecure_plaintext = true;
        assert!(config.check().is_ok());
    }

    #[test]
    fn a_token_has_to_come_from_somewhere() {
        let mut config = ServerConfig::new(Database::Url(Secret::new("postgres://u:pw@h/d")));
        assert!(matches!(config.check(), Err(ServerError::NoToken)));
        config.token = Some(Secret::new("t"));
        assert!(config.check().is_ok());
        assert!(!format!("{config:?}").contains("pw"));
    }
}

//! A worker started by a test.

use crate::server::{FakeServer, TOKEN};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use taskvec_agent::{AgentError, Backoff, Execute, Secret, WorkerConfig, run_with};
use tempfile::TempDir;
use tokio::{sync::oneshot, task::JoinHandle};

pub struct Worker {
    task: JoinHandle<Result<(), AgentError>>,
    leave: Option<oneshot::Sender<()>>,
    leave_now: Option<oneshot::Sender<()>>,
}

pub fn config(server: &FakeServer, data: &TempDir) -> WorkerConfig {
    let mut config = WorkerConfig::new(format!("http://{}", server.address), Secret::new(TOKEN), data.path());
    config.name = "w1".into();
    config.threads = Some(1);
    config.backoff = Backoff { first: Duration::from_millis(5), max: Duration::from_millis(20) };
    config
}

impl Worker {
    pub fn start(config: WorkerConfig, execute: Arc<dyn Execute>) -> Self {
        let (leave, left) = oneshot::channel::<()>();
        let (leave_now, left_now) = oneshot::channel::<()>();
        let (left, left_now) = (heard(left), heard(left_now));
        let task = tokio::spawn(run_with(config, execute, left, left_now));
        Self { task, leave: Some(leave), leave_now: Some(leave_now) }
    }

    pub fn leave(&mut self) {
        self.leave.take().unwrap().send(()).unwrap();
    }

    pub fn leave_now(&mut self) {
        self.leave_now.take().unwrap().send(()).unwrap();
    }

    /// As a process that is killed: nothing more is said.
    pub async fn kill(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
    }

    pub async fn result(self) -> Result<(), AgentError> {
        tokio::time::timeout(Duration::from_secs(20), self.task).await.expect("the worker ends").unwrap()
    }
}

/// A request that never comes when its sender is dropped.
async fn heard(request: oneshot::Receiver<()>) {
    if request.await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Waits until it is so.
pub async fn eventually(what: &str, so: impl Fn() -> bool) {
    let waiting = async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

pub fn files(folder: PathBuf) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

pub fn spooled(data: &TempDir) -> usize {
    files(data.path().join("spool")).iter().filter(|name| !name.ends_with(".tmp")).count()
}

/// Nothing half written is left anywhere.
pub fn assert_clean(data: &Path) {
    for folder in ["", "spool", "cache"] {
        let files = files(data.join(folder));
        assert!(files.iter().all(|name| !name.ends_with(".tmp")), "{files:?}");
    }
}

//! What the tests of the server share: a whole stack in a temporary folder, a client, and a worker that does exactly
//! what a test says.
#![allow(dead_code, unused_imports, reason = "the benchmark uses a part of it")]

#[path = "../../../../../proto/sweep/tests/common/files.rs"]
mod files;
mod stack;
mod worker;

pub use stack::{Client, Stack};
pub use worker::{Identity, Worker, attempts};

use std::{future::Future, os::unix::fs::PermissionsExt as _, time::Duration};

/// Generous: the machine may be busy.
pub const LIMIT: Duration = Duration::from_secs(60);

/// A data folder that also PostgreSQL's unprivileged account may enter.
pub fn data_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    folder
}

pub fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// For what sends no event when it happens.
pub async fn eventually(mut holds: impl FnMut() -> bool) {
    within(async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[track_caller]
pub fn within<T>(future: impl Future<Output = T>) -> impl Future<Output = T> {
    let at = std::panic::Location::caller();
    async move { tokio::time::timeout(LIMIT, future).await.unwrap_or_else(|_| panic!("took too long, at {at}")) }
}

pub fn selftest(name: &str, jobs: u32) -> String {
    format!("version: 1\nname: {name}\nkind: selftest\nselftest: {{ jobs: {jobs} }}\nseed: 1\n")
}

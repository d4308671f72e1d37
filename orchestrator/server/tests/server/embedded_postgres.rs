//! The private PostgreSQL: made, found again, restarted, stopped.

use crate::common::{data_folder, eventually};
use std::os::unix::fs::PermissionsExt as _;
use taskvec_server::{data_dir::DataDir, embedded_postgres::EmbeddedPostgres};

fn alive(pid: i32) -> bool {
    // A zombie that nobody reaps is dead all the same.
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')))
}

#[tokio::test]
async fn starts_stops_and_keeps_its_port() {
    let folder = data_folder();
    let data = DataDir::open(folder.path()).unwrap();
    let first = EmbeddedPostgres::start(&data).await.unwrap();
    let (pid, url) = (first.pid(), first.url_owner());
    assert!(alive(pid));
    assert!(!format!("{first:?}").contains(url.split([':', '@']).nth(2).unwrap()), "the password is printed");
    first.stop().await;
    assert!(!alive(pid));

    let again = EmbeddedPostgres::start(&data).await.unwrap();
    assert_eq!(again.url_owner(), url);
    let pid = again.pid();
    drop(again);
    // It gives its file up a moment before it ends.
    eventually(|| !alive(pid)).await;
}

#[tokio::test]
async fn a_killed_postmaster_comes_back() {
    let folder = data_folder();
    let data = DataDir::open(folder.path()).unwrap();
    let postgres = EmbeddedPostgres::start(&data).await.unwrap();
    let first = postgres.pid();
    crate::common::kill(first);
    eventually(|| postgres.pid() != first && alive(postgres.pid())).await;
    postgres.stop().await;
}

#[test]
fn a_server_that_comes_back_finds_the_postmaster_of_the_one_before() {
    let folder = data_folder();
    let data = DataDir::open(folder.path()).unwrap();
    let runtime = || tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    // As if that process had been killed: its supervisor ends with its runtime, and nobody stops PostgreSQL.
    let killed = runtime();
    let first = killed.block_on(EmbeddedPostgres::start(&data)).unwrap();
    let pid = first.pid();
    std::mem::forget(first);
    drop(killed);
    assert!(alive(pid));

    runtime().block_on(async {
        let second = EmbeddedPostgres::start(&data).await.unwrap();
        assert_eq!(second.pid(), pid);
        second.stop().await;
        eventually(|| !alive(pid)).await;
    });
}

#[tokio::test]
async fn a_folder_closed_to_the_unprivileged_account_is_worked_around() {
    let folder = data_folder();
    let closed = folder.path().join("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o700)).unwrap();
    let data = DataDir::open(&closed.join("data")).unwrap();
    let postgres = EmbeddedPostgres::start(&data).await.unwrap();
    let cluster = postgres.folder().to_owned();
    postgres.stop().await;
    // Only root has another account run PostgreSQL, which could not enter.
    let elsewhere = rustix::process::geteuid().is_root();
    assert_eq!(!cluster.starts_with(data.path()), elsewhere);
    if elsewhere {
        std::fs::remove_dir_all(cluster.parent().unwrap()).unwrap();
    }
}

#[tokio::test]
async fn a_deep_folder_has_no_socket_but_works() {
    let folder = data_folder();
    let deep = folder.path().join("d".repeat(100));
    let data = DataDir::open(&deep).unwrap();
    let postgres = EmbeddedPostgres::start(&data).await.unwrap();
    assert!(postgres.url_owner().contains("@127.0.0.1:"), "no socket path of that length exists");
    postgres.stop().await;
}

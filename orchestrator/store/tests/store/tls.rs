//! A database on another machine, reached over TLS.

use crate::postgres::{OWNER, PASSWORD, start_with};
use sqlx::{Connection, PgConnection};
use std::{
    net::TcpListener,
    path::{Path, PathBuf},
};
use taskvec_store::{Store, StoreError};

/// The certificate of the server's tests: for `localhost`, signed by itself.
fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../server/tests/server/tls").join(name)
}

#[tokio::test]
async fn owner_and_reader_reach_the_database_encrypted_and_only_where_they_trust_it() {
    let port = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("an address").port();
    let settings = format!(
        "-c listen_addresses=127.0.0.1 -c port={port} -c ssl=on -c ssl_cert_file=../certificate.pem \
         -c ssl_key_file=../key.pem"
    );
    let _cluster = start_with(&settings, &[&fixture("certificate.pem"), &fixture("key.pem")]);
    let trusted = fixture("certificate.pem").display().to_string();
    let url = |options: &str| format!("postgres://{OWNER}:{PASSWORD}@localhost:{port}/postgres?{options}");

    let store = Store::connect(&url(&format!("sslmode=verify-full&sslrootcert={trusted}")), 2).await.expect("connects");
    store.migrate().await.expect("migrates");
    let reader = store.ensure_reader("secret").await.expect("a reader");
    assert!(reader.contains("sslmode=verify-full"), "as strict as the owner: {reader}");
    let mut reader = PgConnection::connect(&format!("{reader}&sslrootcert={trusted}")).await.expect("connects");
    let encrypted: bool = sqlx::query_scalar("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        .fetch_one(&mut reader)
        .await
        .expect("asks");
    assert!(encrypted);

    let stranger = Store::connect(&url("sslmode=verify-full"), 1).await.map(|_| ()).expect_err("not trusted");
    assert!(matches!(stranger, StoreError::Unavailable(_)), "{stranger:?}");
}

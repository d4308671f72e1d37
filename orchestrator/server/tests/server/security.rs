//! What travels in the clear, and to whom.

use crate::common::{Stack, data_folder, within};
use std::path::{Path, PathBuf};
use taskvec_server::{Database, ServerConfig, TlsFiles};
use taskvec_wire::pb::{self, admin_client::AdminClient};
use tonic::{
    Code,
    transport::{Certificate, ClientTlsConfig, Endpoint},
};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/server/tls").join(name)
}

#[tokio::test]
async fn a_server_with_a_certificate_speaks_tls_only_and_still_wants_its_token() {
    let folder = data_folder();
    let mut config = ServerConfig::new(Database::Embedded(folder.path().to_owned()));
    config.tls = Some(TlsFiles { certificate: fixture("certificate.pem"), key: fixture("key.pem") });
    let server = taskvec_server::start(config).await.unwrap();
    assert!(server.url().starts_with("https://127.0.0.1:"));

    let trusted = Certificate::from_pem(std::fs::read(fixture("certificate.pem")).unwrap());
    let tls = ClientTlsConfig::new().ca_certificate(trusted).domain_name("localhost");
    let channel = Endpoint::from_shared(server.url()).unwrap().tls_config(tls).unwrap().connect_lazy();
    let ask = |token: Option<String>| {
        let mut request = tonic::Request::new(pb::Empty {});
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        let mut client = AdminClient::new(channel.clone());
        within(async move { client.health(request).await.map(tonic::Response::into_inner) })
    };
    assert_eq!(ask(Some(server.token().reveal().to_owned())).await.unwrap().version, taskvec_wire::VERSION);
    assert_eq!(ask(None).await.unwrap_err().code(), Code::Unauthenticated);

    let clear = Endpoint::from_shared(format!("http://{}", server.address())).unwrap();
    let answer = within(async { AdminClient::new(clear.connect_lazy()).health(pb::Empty {}).await }).await;
    let refused = answer.unwrap_err();
    assert!(refused.message().contains("transport error"), "{refused:?}");
    within(server.shutdown()).await;
}

#[tokio::test]
async fn readers_cannot_write() {
    let mut stack = Stack::start().await;
    let client = stack.client().await;
    let refused = client.sql("DELETE FROM taskvec.sweeps").await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(client.sql("SELECT pg_read_file('/etc/passwd')").await.is_err());
    let url = client.queries.clone().sql_url(pb::Empty {}).await.unwrap().into_inner().url;
    assert!(url.starts_with("postgres://taskvec_reader:") && url.contains("@127.0.0.1:"), "{url}");
    stack.stop().await;
}

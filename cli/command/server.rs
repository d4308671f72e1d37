//! `taskvec server start`: the server alone.

use super::up;
use crate::{
    args::{Global, ServerCommand, ServerStart},
    config::DEFAULT_DATA,
    error::CliError,
};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use taskvec_server::{Database, Secret, ServerConfig, TlsFiles};

pub async fn run(global: &Global, args: ServerCommand) -> Result<(), CliError> {
    let ServerCommand::Start(args) = args;
    let data = global.data.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_DATA));
    let config = configured(args, &data, global.token.as_ref().map(Secret::new));
    let mut server = taskvec_server::start(config).await?;
    tracing::info!("listening on {}; the token is in {}", server.url(), data.join("token").display());
    let ended = tokio::select! {
        asked = up::interrupted() => asked,
        () = server.failed() => Err(CliError::Failed("the server failed; its log has the reason".to_owned())),
    };
    tracing::info!("stopping");
    server.shutdown().await;
    ended
}

fn configured(args: ServerStart, data: &Path, token: Option<Secret>) -> ServerConfig {
    let database = match args.database_url {
        Some(url) => Database::Url(Secret::new(url)),
        None => Database::Embedded(data.to_owned()),
    };
    let mut config = ServerConfig::new(database);
    config.listen = args.listen;
    config.files = crate::files::seen();
    config.token = token;
    config.data_dir = Some(data.to_owned());
    config.tls = args.tls_cert.zip(args.tls_key).map(|(certificate, key)| TlsFiles { certificate, key });
    config.insecure_plaintext = args.insecure_plaintext;
    config.lease = Duration::from_secs_f64(args.lease);
    // Four chances to be heard within a lease.
    config.heartbeat = config.lease / 4;
    config.retry_limit = args.retries;
    config
}

//! A connection to a server: its address, its token, and calls whose failures become errors with a remedy.

use crate::{
    args::{Global, Id},
    config::{self, Target},
    error::{CliError, START_ONE},
    stack::Stack,
};
use std::{path::Path, time::Duration};
use taskvec_model::table::Table;
use taskvec_wire::{
    MAX_MESSAGE,
    pb::{
        self, TablePart, admin_client::AdminClient, blobs_client::BlobsClient, queries_client::QueriesClient,
        sweeps_client::SweepsClient,
    },
};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

/// Puts the token on every call.
#[derive(Clone)]
pub struct Bearer(MetadataValue<Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

pub type Authorized = InterceptedService<Channel, Bearer>;

/// Where a server is and how to be let in.
#[derive(Clone)]
pub struct Address {
    pub url: String,
    pub token: String,
    pub tls_ca: Option<std::path::PathBuf>,
}

pub struct Client {
    pub address: Address,
    channel: Authorized,
    /// How the user calls the program for this server, for advice in messages.
    pub call: String,
    /// The local stack that was started for this command only.
    stack: Option<Stack>,
}

impl Client {
    /// The server that flags, environment and configuration file name; with `--data`, that folder's, started if need be.
    pub async fn connect(global: &Global) -> Result<Self, CliError> {
        match config::target(global)? {
            Target::Folder(data) => Self::of_folder(&data).await,
            Target::Address(address) => Self::at(address).await,
        }
    }

    async fn of_folder(data: &Path) -> Result<Self, CliError> {
        if let Some(address) = Stack::running(data)
            && let Ok(client) = Self::at(address).await
        {
            return Ok(client.of(data));
        }
        if !data.join("token").exists() {
            return Err(CliError::Usage(format!(
                "{} holds no local stack: `taskvec local SWEEP.yaml --data {0}` or `taskvec up --data {0}` makes one",
                data.display()
            )));
        }
        let stack = Stack::start(data, crate::stack::Options::database_only()).await?;
        let mut client = Self::at(stack.address()).await?.of(data);
        client.stack = Some(stack);
        Ok(client)
    }

    /// The server is that of a local stack's folder.
    pub fn of(self, data: &Path) -> Self {
        Self { call: format!("taskvec --data {}", data.display()), ..self }
    }

    pub async fn at(address: Address) -> Result<Self, CliError> {
        let unreachable =
            |reason: String| CliError::Unreachable { server: address.url.clone(), reason, remedy: START_ONE };
        let mut endpoint = Endpoint::from_shared(address.url.clone())
            .map_err(|_| {
                CliError::Usage(format!("`{}` is not a server address like http://127.0.0.1:7420", address.url))
            })?
            .connect_timeout(Duration::from_secs(5))
            .tcp_nodelay(true);
        if let Some(ca) = &address.tls_ca {
            let pem = std::fs::read(ca).map_err(CliError::io(ca))?;
            let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
            endpoint = endpoint.tls_config(tls).map_err(|e| CliError::Usage(format!("{}: {e}", ca.display())))?;
        }
        let channel = endpoint.connect().await.map_err(|e| unreachable(root_cause(&e)))?;
        let bearer = format!("Bearer {}", address.token)
            .parse()
            .map(Bearer)
            .map_err(|_| CliError::Usage("the token has characters that no token has".to_owned()))?;
        Ok(Self { channel: InterceptedService::new(channel, bearer), address, call: "taskvec".to_owned(), stack: None })
    }

    /// Stops the stack if it was started for this command.
    pub async fn close(self) -> Result<(), CliError> {
        match self.stack {
            Some(stack) => stack.stop().await,
            None => Ok(()),
        }
    }

    /// Does the server stop with this command?
    pub fn is_temporary(&self) -> bool {
        self.stack.is_some()
    }

    pub fn sweeps(&self) -> SweepsClient<Authorized> {
        SweepsClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    pub fn queries(&self) -> QueriesClient<Authorized> {
        QueriesClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    pub fn admin(&self) -> AdminClient<Authorized> {
        AdminClient::new(self.channel.clone())
    }

    pub fn blobs(&self) -> BlobsClient<Authorized> {
        BlobsClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// A server's refusal as an error.
    pub fn fault(&self, status: Status) -> CliError {
        CliError::status(&self.address.url, status)
    }

    pub async fn sql(&self, query: &str) -> Result<Table, CliError> {
        let request = pb::SqlRequest { query: query.to_owned() };
        let parts = self.queries().sql(request).await.map_err(|s| self.fault(s))?.into_inner();
        self.collect(parts).await
    }

    pub async fn list(&self, request: pb::ListRequest) -> Result<Table, CliError> {
        let parts = self.queries().list(request).await.map_err(|s| self.fault(s))?.into_inner();
        self.collect(parts).await
    }

    async fn collect(&self, mut parts: tonic::Streaming<TablePart>) -> Result<Table, CliError> {
        let mut table = Table::default();
        while let Some(part) = parts.message().await.map_err(|s| self.fault(s))? {
            if !part.columns.is_empty() {
                table.columns = part.columns;
            }
            for row in part.rows {
                let row = serde_json::from_str(&row)
                    .map_err(|e| CliError::Failed(format!("the server sent a row that is not JSON: {e}")))?;
                table.rows.push(row);
            }
        }
        Ok(table)
    }

    pub async fn sweep_id(&self, id: Id) -> Result<i64, CliError> {
        self.resolve(id, "sweep").await
    }

    pub async fn run_id(&self, id: Id) -> Result<i64, CliError> {
        self.resolve(id, "run").await
    }

    pub async fn job_id(&self, id: Id) -> Result<i64, CliError> {
        self.resolve(id, "job").await
    }

    pub async fn checkpoint_id(&self, id: Id) -> Result<i64, CliError> {
        self.resolve(id, "checkpoint").await
    }

    async fn resolve(&self, id: Id, what: &str) -> Result<i64, CliError> {
        if let Id::Number(n) = id {
            return Ok(n);
        }
        let newest = self.sql(&format!("SELECT max({what}_id) FROM results.{what}s")).await?;
        newest
            .rows
            .first()
            .and_then(|row| row.first()?.as_i64())
            .ok_or_else(|| CliError::Usage(format!("`last` names no {what}: there is none yet")))
    }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut at = error;
    while let Some(source) = at.source() {
        at = source;
    }
    at.to_string()
}

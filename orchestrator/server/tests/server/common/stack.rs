//! A server with its own PostgreSQL, and clients of it.

use super::{data_folder, files::Told, within};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use taskvec_server::{Database, RunningServer, Secret, ServerConfig};
use taskvec_wire::pb::{
    self, admin_client::AdminClient, blobs_client::BlobsClient, control_sweep_request::Action,
    queries_client::QueriesClient, sweeps_client::SweepsClient, workers_client::WorkersClient,
};
use tonic::{
    Request, Status, Streaming,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

pub struct Stack {
    folder: tempfile::TempDir,
    pub server: Option<RunningServer>,
    address: SocketAddr,
}

impl Stack {
    pub async fn start() -> Self {
        let folder = data_folder();
        let server = taskvec_server::start(Self::config(&folder)).await.unwrap();
        Self { address: server.address(), folder, server: Some(server) }
    }

    /// Leases long enough never to end in a test that is not about them.
    fn config(folder: &tempfile::TempDir) -> ServerConfig {
        let mut config = ServerConfig::new(Database::Embedded(folder.path().to_owned()));
        config.lease = Duration::from_secs(120);
        config.heartbeat = Duration::from_secs(1);
        config.backoff = Duration::from_millis(10);
        config.files = Arc::new(Told);
        config
    }

    pub async fn stop(&mut self) {
        within(self.server.take().unwrap().shutdown()).await;
    }

    /// At the same address and on the same data.
    pub async fn start_again(&mut self) {
        let mut config = Self::config(&self.folder);
        config.listen = self.address;
        self.server = Some(taskvec_server::start(config).await.unwrap());
    }

    /// Without a word to anybody.
    pub fn crash(&mut self) {
        drop(self.server.take());
    }

    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    pub fn server(&self) -> &RunningServer {
        self.server.as_ref().unwrap()
    }

    pub async fn client(&self) -> Client {
        Client::connect(self.address, self.server().token()).await
    }
}

#[derive(Clone)]
pub struct Bearer(MetadataValue<Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

type Authorised = InterceptedService<Channel, Bearer>;

#[derive(Clone)]
pub struct Client {
    pub sweeps: SweepsClient<Authorised>,
    pub queries: QueriesClient<Authorised>,
    pub admin: AdminClient<Authorised>,
    pub blobs: BlobsClient<Authorised>,
    pub workers: WorkersClient<Authorised>,
}

impl Client {
    pub async fn connect(address: SocketAddr, token: &Secret) -> Self {
        let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
        let bearer = Bearer(format!("Bearer {}", token.reveal()).parse().unwrap());
        Self {
            sweeps: SweepsClient::with_interceptor(channel.clone(), bearer.clone()),
            queries: QueriesClient::with_interceptor(channel.clone(), bearer.clone()),
            admin: AdminClient::with_interceptor(channel.clone(), bearer.clone()),
            blobs: BlobsClient::with_interceptor(channel.clone(), bearer.clone()),
            workers: WorkersClient::with_interceptor(channel, bearer),
        }
    }

    pub async fn submit(&self, yaml: &str) -> Result<pb::SubmitReply, Status> {
        self.submit_as(yaml, &[]).await
    }

    /// A submission that has a name, and may so be sent again.
    pub async fn submit_as(&self, yaml: &str, request: &[u8]) -> Result<pb::SubmitReply, Status> {
        let (yaml, file, request) = (yaml.into(), "test.yaml".into(), request.into());
        let request = pb::SubmitRequest { yaml, file, priority: 0, request };
        within(self.sweeps.clone().submit(request)).await.map(tonic::Response::into_inner)
    }

    pub async fn control(&self, sweep_id: i64, action: Action) -> Result<(), Status> {
        let request = pb::ControlSweepRequest { sweep_id, action: Some(action) };
        within(self.sweeps.clone().control_sweep(request)).await.map(drop)
    }

    pub async fn watch(&self, sweep_id: i64) -> Streaming<pb::SweepStatus> {
        within(self.sweeps.clone().watch(pb::SweepRequest { sweep_id })).await.unwrap().into_inner()
    }

    /// The first state for which `wanted` holds.
    pub async fn until(&self, sweep_id: i64, wanted: impl Fn(&pb::SweepStatus) -> bool) -> pb::SweepStatus {
        let mut states = self.watch(sweep_id).await;
        loop {
            let state = within(states.message()).await.unwrap().expect("the sweep ended before");
            if wanted(&state) {
                return state;
            }
        }
    }

    /// The last state.
    pub async fn wait(&self, sweep_id: i64) -> pb::SweepStatus {
        self.until(sweep_id, |status| ["done", "failed", "cancelled"].contains(&status.state.as_str())).await
    }

    pub async fn explain(&self, job_id: i64) -> Result<String, Status> {
        let reply = within(self.sweeps.clone().explain_job(pb::JobRequest { job_id })).await;
        reply.map(|reply| reply.into_inner().text)
    }

    /// A query's rows; the first part names the columns.
    pub async fn sql(&self, query: &str) -> Result<Vec<serde_json::Value>, Status> {
        let request = pb::SqlRequest { query: query.into() };
        let mut parts = within(self.queries.clone().sql(request)).await?.into_inner();
        let mut rows = Vec::new();
        while let Some(part) = within(parts.message()).await? {
            rows.extend(part.rows.iter().map(|row| serde_json::from_str::<serde_json::Value>(row).unwrap()));
        }
        Ok(rows)
    }

    pub async fn list(&self, request: pb::ListRequest) -> Result<(Vec<String>, Vec<serde_json::Value>), Status> {
        let mut parts = within(self.queries.clone().list(request)).await?.into_inner();
        let (mut columns, mut rows) = (Vec::new(), Vec::new());
        while let Some(part) = within(parts.message()).await? {
            columns.extend(part.columns);
            rows.extend(part.rows.iter().map(|row| serde_json::from_str::<serde_json::Value>(row).unwrap()));
        }
        Ok((columns, rows))
    }
}

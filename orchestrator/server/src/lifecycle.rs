//! From nothing to a listening server, and back in order.

use crate::{
    auth::TokenCheck,
    config::{Database, ServerConfig, TlsFiles},
    data_dir::{DataDir, ServerFile},
    driver::{Command, Driver, Handle, Live},
    embedded_postgres::EmbeddedPostgres,
    error::ServerError,
    secret::Secret,
    service::{self, Context},
};
use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};
use taskvec_store::{Reader, Store};
use taskvec_wire::VERSION;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle, time::timeout};
use tonic::{
    service::InterceptorLayer,
    transport::{Identity, Server, ServerTlsConfig, server::TcpIncoming},
};

/// Connections of users' own SQL.
const READERS: u32 = 4;
/// How long open calls may take to end at shutdown.
const GRACE: Duration = Duration::from_secs(5);

/// A server that listens. Ends with [`RunningServer::shutdown`]; when dropped, everything stops less politely.
pub struct RunningServer {
    address: SocketAddr,
    token: Secret,
    tls: bool,
    database_url: Secret,
    reader_url: String,
    driver: Handle,
    driving: JoinHandle<()>,
    serving: JoinHandle<()>,
    stop: watch::Sender<bool>,
    store: Store,
    data: Option<DataDir>,
    postgres: Option<EmbeddedPostgres>,
}

/// Database, migrations, lead, driver, listener: in this order.
///
/// # Errors
/// Whatever keeps it from listening; the message says what to do.
pub async fn start(config: ServerConfig) -> Result<RunningServer, ServerError> {
    config.check()?;
    let tls = config.tls.as_ref().map(read_tls).transpose()?;
    let data = config.folder().map(DataDir::open).transpose()?;
    let token = token(&config, data.as_ref())?;
    // Before the slow parts: an address in use should be said at once.
    let listener = listen(config.listen).await?;
    let address = listener.local_addr().map_err(|source| ServerError::Listen { address: config.listen, source })?;
    let (postgres, url) = database(&config, data.as_ref()).await?;
    let store = Store::connect(url.reveal(), config.connections).await?;
    store.migrate().await?;
    let (reader, reader_url) = readers(&store, data.as_ref(), postgres.as_ref()).await?;
    let live = Arc::new(Live::default());
    let (driver, driving) = Driver::start(&config, store.clone(), Arc::clone(&live)).await?;
    let (stop, stopping) = watch::channel(false);
    let context = Context {
        store: store.clone(),
        reader,
        reader_url: reader_url.as_str().into(),
        driver: driver.clone(),
        live,
        limits: Arc::new(config.limits.clone()),
        files: Arc::clone(&config.files),
        lease: config.lease,
        heartbeat: config.heartbeat,
        gc_grace: config.gc_grace,
        stopping,
    };
    let serving = serve(listener, tls, &context, token.clone())?;
    if let Some(data) = &data {
        let version = VERSION.to_owned();
        data.announce(&ServerFile { address, tls: config.tls.is_some(), pid: std::process::id(), version })?;
    }
    tracing::info!(%address, "listening");
    let tls = config.tls.is_some();
    Ok(RunningServer {
        address,
        token,
        tls,
        database_url: url,
        reader_url,
        driver,
        driving,
        serving,
        stop,
        store,
        data,
        postgres,
    })
}

impl RunningServer {
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://…` or `https://…`.
    pub fn url(&self) -> String {
        format!("{}://{}", if self.tls { "https" } else { "http" }, self.address)
    }

    pub fn token(&self) -> &Secret {
        &self.token
    }

    /// The owner's connection string.
    pub fn database_url(&self) -> &Secret {
        &self.database_url
    }

    /// A connection string for the read-only role.
    pub fn reader_url(&self) -> &str {
        &self.reader_url
    }

    /// The embedded database, where there is one.
    pub fn postgres(&self) -> Option<&EmbeddedPostgres> {
        self.postgres.as_ref()
    }

    /// Resolves if the server ends by itself, which only a defect makes it do.
    pub async fn failed(&mut self) {
        tokio::select! {
            _ = &mut self.driving => tracing::error!("the driver ended"),
            _ = &mut self.serving => tracing::error!("the listener ended"),
        }
    }

    /// In order: clients stop finding it, what was asked is decided and stored, workers are told to come back later,
    /// calls end, the lead is given up, PostgreSQL stops.
    pub async fn shutdown(mut self) {
        if let Some(data) = &self.data {
            data.withdraw();
        }
        if !self.driving.is_finished() && self.driver.send(Command::Shutdown).await.is_ok() {
            let _ = (&mut self.driving).await;
        }
        let _ = self.stop.send(true);
        if !self.serving.is_finished() && timeout(GRACE, &mut self.serving).await.is_err() {
            tracing::warn!("some calls did not end in time; cutting them off");
            self.serving.abort();
        }
        let _ = timeout(GRACE, self.store.close()).await;
        if let Some(postgres) = self.postgres.take() {
            postgres.stop().await;
        }
        tracing::info!("stopped");
    }
}

impl Drop for RunningServer {
    fn drop(&mut self) {
        self.driving.abort();
        self.serving.abort();
        if let Some(data) = &self.data {
            data.withdraw();
        }
    }
}

fn token(config: &ServerConfig, data: Option<&DataDir>) -> Result<Secret, ServerError> {
    match (&config.token, data) {
        (Some(token), _) => Ok(token.clone()),
        (None, Some(data)) => Ok(data.secret("token")?),
        (None, None) => Err(ServerError::NoToken),
    }
}

fn read_tls(files: &TlsFiles) -> Result<ServerTlsConfig, ServerError> {
    let read = |what, path: &Path| {
        std::fs::read(path).map_err(|source| ServerError::Tls { what, path: path.to_owned(), source })
    };
    let identity = Identity::from_pem(read("the certificate", &files.certificate)?, read("the key", &files.key)?);
    Ok(ServerTlsConfig::new().identity(identity))
}

async fn listen(address: SocketAddr) -> Result<TcpListener, ServerError> {
    TcpListener::bind(address).await.map_err(|source| ServerError::Listen { address, source })
}

async fn database(
    config: &ServerConfig,
    data: Option<&DataDir>,
) -> Result<(Option<EmbeddedPostgres>, Secret), ServerError> {
    match &config.database {
        Database::Url(url) => Ok((None, url.clone())),
        Database::Embedded(folder) => {
            // Usually the data folder itself, which is locked already.
            let own = match data {
                Some(data) if folder.canonicalize().is_ok_and(|folder| folder == data.path()) => data.clone(),
                _ => DataDir::open(folder)?,
            };
            let postgres = EmbeddedPostgres::start(&own).await?;
            let url = Secret::new(postgres.url_owner());
            Ok((Some(postgres), url))
        }
    }
}

async fn readers(
    store: &Store,
    data: Option<&DataDir>,
    postgres: Option<&EmbeddedPostgres>,
) -> Result<(Reader, String), ServerError> {
    let password = match data {
        Some(data) => data.secret("reader-password")?,
        None => Secret::random().map_err(ServerError::Token)?,
    };
    let url = store.ensure_reader(password.reveal()).await?;
    let reader = Reader::connect(&url, READERS).await?;
    // Tools outside know nothing of our socket.
    let shown = match postgres {
        Some(postgres) => postgres.address().url("taskvec_reader", &password),
        None => url,
    };
    Ok((reader, shown))
}

fn serve(
    listener: TcpListener,
    tls: Option<ServerTlsConfig>,
    context: &Context,
    token: Secret,
) -> Result<JoinHandle<()>, ServerError> {
    let mut server = Server::builder();
    if let Some(tls) = tls {
        server = server.tls_config(tls).map_err(ServerError::Certificate)?;
    }
    let router = server
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .max_concurrent_streams(256)
        .concurrency_limit_per_connection(64)
        .layer(InterceptorLayer::new(TokenCheck::new(token)))
        .add_routes(service::routes(context));
    // Small messages must not wait for each other's acknowledgement: that costs 40 ms a job.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let mut stopping = context.stopping.clone();
    Ok(tokio::spawn(async move {
        let stopped = async move { drop(stopping.wait_for(|stop| *stop).await) };
        if let Err(error) = router.serve_with_incoming_shutdown(incoming, stopped).await {
            tracing::error!(%error, "the listener failed");
        }
    }))
}

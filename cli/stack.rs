//! The local stack: embedded Postgres and server in this process, workers as its children.

use crate::{args::Stacking, client::Address, error::CliError};
use std::{
    fs::File,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};
use taskvec_server::{Database, RunningServer, ServerConfig, data_dir::DataDir};
use tokio::{
    process::{Child, Command},
    sync::watch,
    task::JoinHandle,
};

/// A worker that dies this often in a row at once is not started again.
const MOST_RESTARTS: u32 = 5;
/// How long a worker may take to finish or hand over when the stack stops.
const LEAVE_WITHIN: Duration = Duration::from_secs(60);

pub struct Options {
    pub listen: SocketAddr,
    pub workers: u32,
    /// Of the workers, in turn; at least one where there are workers.
    devices: Vec<String>,
    /// None: each run has a slot for itself.
    stacking: Option<Stacking>,
}

impl Options {
    /// On any port of loopback. Without a number of workers there are two, or one for each GPU.
    ///
    /// # Errors
    /// Devices that are none, or cannot be used.
    pub fn new(workers: Option<u32>, devices: Vec<String>, stacking: Stacking) -> Result<Self, CliError> {
        let devices = taskvec_agent::usable(&devices)?;
        let of_devices = if devices == ["cpu"] { 2 } else { devices.len() as u32 };
        let (workers, stacking) = (workers.unwrap_or(of_devices), Some(stacking));
        Ok(Self { devices, stacking, workers, ..Self::database_only() })
    }

    /// Enough to answer queries.
    pub fn database_only() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 0)), workers: 0, devices: Vec::new(), stacking: None }
    }
}

pub struct Stack {
    server: RunningServer,
    address: Address,
    stop: watch::Sender<bool>,
    workers: Vec<JoinHandle<()>>,
}

impl Stack {
    /// The server that runs on `data`, if one does.
    pub fn running(data: &Path) -> Option<Address> {
        let file = DataDir::find_server(data).ok()??;
        let token = std::fs::read_to_string(data.join("token")).ok()?;
        let scheme = if file.tls { "https" } else { "http" };
        Some(Address { url: format!("{scheme}://{}", file.address), token: token.trim().to_owned(), tls_ca: None })
    }

    pub async fn start(data: &Path, options: Options) -> Result<Self, CliError> {
        let mut config = ServerConfig::new(Database::Embedded(data.to_owned()));
        config.listen = options.listen;
        config.files = crate::files::seen();
        let server = taskvec_server::start(config).await?;
        let address = Address { url: server.url(), token: server.token().reveal().to_owned(), tls_ca: None };
        let (stop, stopped) = watch::channel(false);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = (cores / options.workers.max(1) as usize).max(1);
        let mut workers = Vec::new();
        for (number, device) in (1..=options.workers).zip(options.devices.iter().cycle()) {
            let stacking = options.stacking.map(|stacking| {
                // Of a GPU a worker takes what is free there.
                let of_machine = taskvec_agent::machine_bytes() / 2 / u64::from(options.workers);
                (stacking.stack, stacking.stack_memory.or((device == "cpu").then_some(of_machine)))
            });
            let (data, address, device) = (data.to_owned(), address.clone(), device.clone());
            let worker = LocalWorker { number, threads, device, stacking, data, address };
            workers.push(tokio::spawn(worker.keep_running(stopped.clone())));
        }
        Ok(Self { server, address, stop, workers })
    }

    pub fn address(&self) -> Address {
        self.address.clone()
    }

    /// Resolves when no worker is left: all of them died too often. Never, for a stack without workers.
    pub async fn out_of_workers(&mut self) {
        if self.workers.is_empty() {
            return std::future::pending().await;
        }
        while let Some(worker) = self.workers.last_mut() {
            // A supervisor that panicked keeps no worker either.
            let _ = worker.await;
            self.workers.pop();
        }
    }

    /// Workers finish or hand over, then the server and its database stop.
    pub async fn stop(self) -> Result<(), CliError> {
        // Nobody listens when there are no workers.
        let _ = self.stop.send(true);
        for worker in self.workers {
            // A supervisor that panicked has no child left to stop.
            let _ = worker.await;
        }
        self.server.shutdown().await;
        Ok(())
    }
}

struct LocalWorker {
    number: u32,
    threads: usize,
    device: String,
    /// Runs in a slot, and the memory that they may take.
    stacking: Option<(u32, Option<u64>)>,
    data: PathBuf,
    address: Address,
}

impl LocalWorker {
    /// Starts the worker, and again when it dies, until the stack stops.
    async fn keep_running(self, mut stopped: watch::Receiver<bool>) {
        let mut quick_deaths = 0;
        while quick_deaths < MOST_RESTARTS && !*stopped.borrow() {
            let started = Instant::now();
            let mut child = match self.spawn() {
                Ok(child) => child,
                Err(e) => {
                    tracing::error!("worker {} does not start: {e}", self.number);
                    return;
                }
            };
            // `wait` would close the pipe, and the worker would take that for our end.
            let _open = child.stdin.take();
            tokio::select! {
                status = child.wait() => {
                    tracing::warn!("worker {} ended ({status:?}); see {}", self.number, self.log().display());
                    quick_deaths = if started.elapsed() < Duration::from_secs(10) { quick_deaths + 1 } else { 0 };
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                _ = stopped.changed() => return leave(child).await,
            }
        }
        if quick_deaths == MOST_RESTARTS {
            tracing::error!("worker {} died {MOST_RESTARTS} times in a row and is given up", self.number);
        }
    }

    fn log(&self) -> PathBuf {
        self.data.join("logs").join(format!("worker-{}.log", self.number))
    }

    fn spawn(&self) -> std::io::Result<Child> {
        std::fs::create_dir_all(self.data.join("logs"))?;
        let log = File::options().create(true).append(true).open(self.log())?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["worker", "start", "--exit-with-parent", "--name", &format!("local-{}", self.number)]);
        command.args(["--device", &self.device]);
        if let Some((stack, bytes)) = self.stacking {
            command.args(["--stack", &stack.to_string()]);
            command.args(bytes.iter().flat_map(|bytes| ["--stack-memory".to_owned(), bytes.to_string()]));
        }
        command
            .args(["--threads", &self.threads.to_string(), "--scratch"])
            .arg(self.data.join("workers").join(self.number.to_string()))
            .env("TASKVEC_SERVER", &self.address.url)
            .env("TASKVEC_TOKEN", &self.address.token)
            .env_remove("TASKVEC_DATA")
            .env("RAYON_NUM_THREADS", self.threads.to_string())
            // Its end is the parent's end: the worker leaves when this pipe closes, however that comes about.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            // Ctrl-C is for the parent, which then stops its workers in order.
            .process_group(0)
            .spawn()
    }
}

/// SIGTERM, then patience, then SIGKILL.
async fn leave(mut child: Child) {
    let pid = child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()));
    if let Some(pid) = pid {
        // It may have ended by itself in this moment.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    if tokio::time::timeout(LEAVE_WITHIN, child.wait()).await.is_err() {
        tracing::warn!("a worker did not leave within {LEAVE_WITHIN:?} and is killed");
        // Already gone is as good.
        let _ = child.kill().await;
    }
}

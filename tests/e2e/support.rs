//! A stack of real processes in a temporary folder, and a few ways to hurt it.

pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};
use serde_json::Value;
use std::{
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// Long enough for a busy two-core machine; a test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(180);
pub const LEASE_SECONDS: f64 = 2.0;

/// A folder with a server, its database and workers; all of them end with it.
pub struct Stack {
    dir: TempDir,
    port: u16,
    /// The server has a certificate for `localhost`, and clients trust it.
    tls: bool,
    /// Set for the processes that are started from now on.
    environment: Vec<(&'static str, String)>,
    server: Option<Child>,
    workers: Vec<Option<Child>>,
}

#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(out: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("output is text");
        Self { code: out.status.code().unwrap_or(-1), stdout: text(out.stdout), stderr: text(out.stderr) }
    }
}

impl Ran {
    /// The output of a command that must have succeeded.
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self.stdout
    }
}

/// The program, with nothing of the caller's environment that would change what it does.
pub fn taskvec() -> Command {
    with_environment(Command::new(env!("CARGO_BIN_EXE_taskvec")))
}

fn with_environment(mut command: Command) -> Command {
    for name in ["TASKVEC_SERVER", "TASKVEC_TOKEN", "TASKVEC_DATA", "TASKVEC_TLS_CA", "DATABASE_URL", "RUST_LOG"] {
        command.env_remove(name);
    }
    for name in ["HF_HUB_CACHE", "HF_ENDPOINT", "HF_TOKEN", "HF_TOKEN_PATH"] {
        command.env_remove(name);
    }
    command
        .env("XDG_CONFIG_HOME", "/nonexistent")
        // No test asks the real hub.
        .env("HF_HOME", "/nonexistent")
        .env("HF_HUB_OFFLINE", "1")
        .env("COLUMNS", "200")
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null());
    command
}

pub fn sweep_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/sweeps").join(name)
}

fn tls_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("orchestrator/server/tests/server/tls").join(name)
}

fn free_port() -> u16 {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
    socket.local_addr().expect("an address").port()
}

/// A folder into which an unprivileged Postgres may look.
pub fn folder() -> TempDir {
    let dir = tempfile::Builder::new().prefix("taskvec-e2e-").tempdir().expect("a temporary folder");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).expect("permissions");
    dir
}

impl Stack {
    /// A server with a short lease and this many workers of one thread each.
    pub fn start(workers: usize) -> Self {
        let mut stack = Self::new(false);
        stack.start_server();
        for _ in 0..workers {
            stack.start_worker();
        }
        stack
    }

    /// A server that speaks TLS only, and no worker yet.
    pub fn with_tls() -> Self {
        let mut stack = Self::new(true);
        stack.start_server();
        stack
    }

    fn new(tls: bool) -> Self {
        Self { dir: folder(), port: free_port(), tls, environment: Vec::new(), server: None, workers: Vec::new() }
    }

    /// Nothing runs yet.
    pub fn idle() -> Self {
        Self::new(false)
    }

    /// Of server and workers that are started from now on.
    pub fn set_environment(&mut self, environment: &[(&'static str, String)]) {
        self.environment = environment.to_vec();
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn log(&self, name: &str) -> Stdio {
        let path = self.dir.path().join(format!("{name}.log"));
        let file = fs::OpenOptions::new().create(true).append(true).open(path).expect("a log file");
        file.into()
    }

    pub fn read_log(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(format!("{name}.log"))).unwrap_or_default()
    }

    pub fn start_server(&mut self) {
        let mut command = taskvec();
        command.args(["server", "start", "--data"]).arg(self.data());
        command.args(["--listen", &format!("127.0.0.1:{}", self.port), "--lease", &LEASE_SECONDS.to_string()]);
        if self.tls {
            command.arg("--tls-cert").arg(tls_file("certificate.pem")).arg("--tls-key").arg(tls_file("key.pem"));
        }
        command.envs(self.environment.iter().cloned());
        self.server =
            Some(command.stdout(Stdio::null()).stderr(self.log("server")).spawn().expect("the server starts"));
        self.wait_for("the server", |s| {
            s.data().join("server.json").exists() && s.client(&["sweep", "list"]).code == 0
        });
    }

    /// Index of the worker, for the calls below.
    pub fn start_worker(&mut self) -> usize {
        self.start_stacking_worker(1)
    }

    /// One that takes this many runs into its slot.
    pub fn start_stacking_worker(&mut self, stack: u32) -> usize {
        self.start_worker_with(&["--stack", &stack.to_string()])
    }

    /// One that is given these arguments.
    pub fn start_worker_with(&mut self, args: &[&str]) -> usize {
        let index = self.workers.len();
        let mut command = taskvec();
        command.args(["worker", "start", "--threads", "1", "--name", &format!("w{index}")]);
        command.args(args);
        if self.tls {
            self.address(&mut command);
        } else {
            command.arg("--data").arg(self.data());
        }
        command.arg("--scratch").arg(self.dir.path().join(format!("w{index}")));
        command.env("RAYON_NUM_THREADS", "1").envs(self.environment.iter().cloned());
        let log = self.log(&format!("w{index}"));
        self.workers.push(Some(command.stdout(Stdio::null()).stderr(log).spawn().expect("the worker starts")));
        index
    }

    /// A client command against this stack.
    pub fn client(&self, args: &[&str]) -> Ran {
        // A client that never ends (nothing makes progress) would hang the test.
        let mut command = Command::new("timeout");
        command.arg(PATIENCE.as_secs().to_string()).arg(env!("CARGO_BIN_EXE_taskvec"));
        let mut command = with_environment(command);
        self.address(command.args(args));
        command.output().expect("the client runs").into()
    }

    /// Where the server is, in the command's environment.
    fn address(&self, command: &mut Command) {
        let token = fs::read_to_string(self.data().join("token")).unwrap_or_default();
        command.env("TASKVEC_TOKEN", token.trim());
        if self.tls {
            command.env("TASKVEC_SERVER", format!("https://localhost:{}", self.port));
            command.env("TASKVEC_TLS_CA", tls_file("certificate.pem"));
        } else {
            command.env("TASKVEC_SERVER", format!("http://127.0.0.1:{}", self.port));
        }
    }

    pub fn submit(&self, file: &Path) -> i64 {
        let text = self.client(&["sweep", "submit", &file.display().to_string(), "-o", "json"]).ok();
        let reply: Value = serde_json::from_str(&text).expect("JSON");
        reply["sweep_id"].as_i64().expect("an id")
    }

    /// Waits for the newest sweep to end.
    pub fn wait(&self) -> Ran {
        self.client(&["sweep", "wait", "last"])
    }

    /// Rows of a query as JSON objects.
    pub fn sql(&self, query: &str) -> Vec<Value> {
        serde_json::from_str(&self.client(&["sql", "-o", "json", query]).ok()).expect("JSON rows")
    }

    /// The single value of a query.
    pub fn one(&self, query: &str) -> Value {
        let rows = self.sql(query);
        let row = rows.first().and_then(Value::as_object).unwrap_or_else(|| panic!("no row: {query}"));
        row.values().next().expect("a column").clone()
    }

    pub fn wait_for(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !done(self) {
            assert!(
                start.elapsed() < PATIENCE,
                "waited too long for {what}\nserver:\n{}\nw0:\n{}",
                self.read_log("server"),
                self.read_log("w0")
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn kill_server(&mut self) {
        kill_hard(self.server.take());
        // What a killed server leaves behind must not be taken for the next one's.
        fs::remove_file(self.data().join("server.json")).expect("the killed server had announced itself");
    }

    pub fn kill_worker(&mut self, index: usize) {
        kill_hard(self.workers[index].take());
    }

    /// SIGTERM; the worker's exit status.
    pub fn stop_worker(&mut self, index: usize) -> ExitStatus {
        let mut child = self.workers[index].take().expect("it runs");
        signal(Signal::TERM, child.id());
        child.wait().expect("it ends")
    }

    pub fn signal_worker(&self, index: usize, name: Signal) {
        signal(name, self.workers[index].as_ref().expect("it runs").id());
    }

    /// SIGKILL to the postmaster of the embedded Postgres.
    pub fn kill_postgres(&self) {
        let pid = self.postmaster();
        signal(Signal::KILL, pid);
    }

    /// The database as its owner: for doing what no user may.
    pub fn owner_url(&self) -> String {
        let password = fs::read_to_string(self.data().join("postgres-password")).expect("the owner's password");
        // The fourth line of the postmaster's file is its port.
        let file = fs::read_to_string(self.cluster().join("postmaster.pid")).expect("a running database");
        let port = file.lines().nth(3).expect("a port");
        format!("postgresql://taskvec_owner:{}@127.0.0.1:{port}/taskvec", password.trim())
    }

    /// The folder of the database cluster, which may lie outside the data folder when that one is private.
    fn cluster(&self) -> PathBuf {
        self.data().join("postgres")
    }

    fn postmaster(&self) -> u32 {
        let file = self.cluster().join("postmaster.pid");
        let text = fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        text.lines().next().and_then(|l| l.trim().parse().ok()).expect("a pid")
    }
}

fn kill_hard(child: Option<Child>) {
    let mut child = child.expect("it runs");
    child.kill().expect("it can be killed");
    child.wait().expect("it ends");
}

fn signal(signal: Signal, process: u32) {
    let pid = i32::try_from(process).ok().and_then(Pid::from_raw).expect("a process id");
    kill_process(pid, signal).unwrap_or_else(|e| panic!("{signal:?} to process {process}: {e}"));
}

impl Drop for Stack {
    fn drop(&mut self) {
        for mut child in self.workers.iter_mut().filter_map(Option::take) {
            // A stopped process cannot be asked; nothing here is worth a failure while another one is reported.
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Some(mut server) = self.server.take() {
            signal(Signal::TERM, server.id());
            let _ = server.wait();
        }
        if std::thread::panicking() {
            eprintln!("server log:\n{}", self.read_log("server"));
            for i in 0..self.workers.len() {
                eprintln!("worker {i} log:\n{}", self.read_log(&format!("w{i}")));
            }
        }
    }
}

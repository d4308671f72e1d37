//! The cluster on disk: where it lies, how it is made, and with which settings it runs.

use super::{
    PostgresError,
    account::Account,
    binaries::Binaries,
    postmaster::{is_alive, pid_in},
};
use crate::{
    data_dir::{DataDir, read_json, write_atomically},
    secret::Secret,
};
use serde::{Deserialize, Serialize};
use std::{
    fs::DirBuilder,
    io::Write as _,
    net::TcpListener,
    os::unix::{
        fs::{DirBuilderExt as _, OpenOptionsExt as _},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Superuser and owner of the database. Not named as a schema of ours: PostgreSQL's search path starts with the schema
/// of the user's own name.
pub(super) const OWNER: &str = "taskvec_owner";
pub(super) const DATABASE: &str = "taskvec";

/// Clusters of data folders that an unprivileged account cannot enter.
const ELSEWHERE: &str = "/var/lib/taskvec";

/// A log that has grown beyond this is put aside at the next start.
const LOG_BYTES: u64 = 16 << 20;

/// A Unix socket's whole path must fit into 107 bytes.
const SOCKET_PATH_MAX: usize = 107;

/// What `DATA/postgres.json` remembers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    /// Holds `postgres` (the cluster) and `run` (its socket). The data folder itself, or a folder under [`ELSEWHERE`].
    base: PathBuf,
    /// On 127.0.0.1.
    port: u16,
}

/// How the server itself reaches the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// The folder of the socket.
    Socket(PathBuf),
    /// 127.0.0.1, where a socket's path would be too long.
    Loopback,
}

#[derive(Clone, Debug)]
pub(super) struct Cluster {
    pub binaries: Binaries,
    pub account: Option<Account>,
    pub folder: PathBuf,
    pub endpoint: Endpoint,
    pub port: u16,
    pub log: PathBuf,
}

impl Cluster {
    /// Finds the cluster of `data`, or makes it.
    pub fn open(data: &DataDir, password: &Secret) -> Result<Self, PostgresError> {
        let account = Account::needed()?;
        let place = place(data, account)?;
        let folder = place.base.join("postgres");
        let binaries = Binaries::find(major_of(&folder)?)?;
        let run = place.base.join("run");
        let endpoint = match run.join(".s.PGSQL.65535.lock").as_os_str().len() {
            0..=SOCKET_PATH_MAX => Endpoint::Socket(run),
            _ => Endpoint::Loopback,
        };
        let log = data.path().join("postgres.log");
        let cluster = Self { binaries, account, folder, endpoint, port: place.port, log };
        cluster.prepare_folders(password)?;
        Ok(cluster)
    }

    fn prepare_folders(&self, password: &Secret) -> Result<(), PostgresError> {
        if let Endpoint::Socket(run) = &self.endpoint {
            make_dir(run, 0o711)?;
            self.hand_over(run)?;
        }
        if !self.folder.join("PG_VERSION").exists() {
            self.init(password)?;
        }
        Ok(())
    }

    /// Beside its place, then renamed: a cluster that is there is whole.
    fn init(&self, password: &Secret) -> Result<(), PostgresError> {
        tracing::info!(folder = %self.folder.display(), version = self.binaries.major, "making a PostgreSQL cluster");
        let partial = self.folder.with_extension("new");
        if partial.exists() {
            std::fs::remove_dir_all(&partial).map_err(PostgresError::io("remove", &partial))?;
        }
        make_dir(&partial, 0o700)?;
        self.hand_over(&partial)?;
        let secret = self.folder.with_extension("password");
        self.write_password(&secret, password)?;
        let mut initdb = self.command("initdb");
        initdb.arg("--pgdata").arg(&partial).arg("--pwfile").arg(&secret);
        initdb.args(["--username", OWNER, "--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C"]);
        let made = run(initdb.arg("--data-checksums"), "");
        std::fs::remove_file(&secret).map_err(PostgresError::io("remove", &secret))?;
        made?;
        let mut single = self.command("postgres");
        single.arg("--single").arg("-D").arg(&partial).arg("postgres");
        run(&mut single, &format!("CREATE DATABASE {DATABASE};\n"))?;
        std::fs::rename(&partial, &self.folder).map_err(PostgresError::io("rename", &partial))
    }

    fn write_password(&self, path: &Path, password: &Secret) -> Result<(), PostgresError> {
        let io = || PostgresError::io("write", path);
        let mut file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path).map_err(io())?;
        writeln!(file, "{}", password.reveal()).map_err(io())?;
        self.hand_over(path)
    }

    fn hand_over(&self, path: &Path) -> Result<(), PostgresError> {
        match self.account {
            Some(account) => account.own(path).map_err(PostgresError::io("change the owner of", path)),
            None => Ok(()),
        }
    }

    /// A PostgreSQL program under the right account, away from our terminal and from settings in our environment.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.binaries.program(program));
        if let Some(account) = self.account {
            command.uid(account.uid).gid(account.gid);
        }
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PG") {
                command.env_remove(name);
            }
        }
        // Ctrl-C goes to a whole process group: we stop PostgreSQL ourselves, after those who write to it.
        command.env("LC_ALL", "C").current_dir("/").process_group(0);
        command
    }

    /// The postmaster, with all settings on its command line: a changed default reaches existing clusters, too.
    pub fn postmaster(&self) -> Result<Command, PostgresError> {
        if std::fs::metadata(&self.log).is_ok_and(|log| log.len() > LOG_BYTES) {
            let old = self.log.with_extension("log.1");
            std::fs::rename(&self.log, &old).map_err(PostgresError::io("rename", &self.log))?;
        }
        let log = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&self.log)
            .map_err(PostgresError::io("open", &self.log))?;
        let errors = log.try_clone().map_err(PostgresError::io("open", &self.log))?;
        let sockets = match &self.endpoint {
            // Quoted, for this setting is a list.
            Endpoint::Socket(run) => format!("\"{}\"", run.display()),
            Endpoint::Loopback => String::new(),
        };
        let mut command = self.command("postgres");
        command.arg("-D").arg(&self.folder).stdin(Stdio::null()).stdout(log).stderr(errors);
        for setting in [
            "listen_addresses=127.0.0.1".to_owned(),
            format!("port={}", self.port),
            format!("unix_socket_directories={sockets}"),
            "max_connections=50".to_owned(),
            "shared_buffers=128MB".to_owned(),
            // What we acknowledge must survive a power cut.
            "fsync=on".to_owned(),
            "synchronous_commit=on".to_owned(),
            "full_page_writes=on".to_owned(),
            "max_wal_size=1GB".to_owned(),
            // The queries are short: compiling them costs more than it saves.
            "jit=off".to_owned(),
            "log_line_prefix=%m [%p] %u@%d ".to_owned(),
            "log_checkpoints=off".to_owned(),
            "logging_collector=off".to_owned(),
            // A dead client's backend must let go of the leader lock soon.
            "tcp_keepalives_idle=10".to_owned(),
            "tcp_keepalives_interval=5".to_owned(),
            "tcp_keepalives_count=3".to_owned(),
        ] {
            command.arg("-c").arg(setting);
        }
        Ok(command)
    }

    /// The end of PostgreSQL's log, for error messages.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text[text.len().saturating_sub(4096)..]).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(8)..].join("\n")
    }
}

/// Where the cluster lies and its port: decided once, then remembered. A port that someone else took is replaced.
fn place(data: &DataDir, account: Option<Account>) -> Result<Place, PostgresError> {
    let file = data.path().join("postgres.json");
    let known: Option<Place> = read_json(&file)?;
    let running = |place: &Place| pid_in(&place.base.join("postgres")).is_some_and(is_alive);
    let place = match known.clone() {
        Some(place) if running(&place) || is_free(place.port) => place,
        Some(place) => Place { port: free_port()?, ..place },
        None => Place { base: base(data, account)?, port: free_port()? },
    };
    if known.as_ref() != Some(&place) {
        write_atomically(&file, &place)?;
    }
    Ok(place)
}

fn base(data: &DataDir, account: Option<Account>) -> Result<PathBuf, PostgresError> {
    let inside = data.path();
    if account.is_none_or(|account| account.can_enter(inside)) {
        return Ok(inside.to_owned());
    }
    let elsewhere = Path::new(ELSEWHERE);
    make_dir(elsewhere, 0o711)?;
    // A name of its own, so that a new data folder at the path of a removed one starts empty.
    let name = Secret::random().map_err(PostgresError::io("make a name in", elsewhere))?;
    let base = elsewhere.join(&name.reveal()[..16]);
    make_dir(&base, 0o711)?;
    let note = base.join("data-folder");
    std::fs::write(&note, format!("{}\n", inside.display())).map_err(PostgresError::io("write", &note))?;
    tracing::info!(base = %base.display(), "PostgreSQL's account cannot enter {}: its cluster lies elsewhere", inside.display());
    Ok(base)
}

fn make_dir(path: &Path, mode: u32) -> Result<(), PostgresError> {
    DirBuilder::new().recursive(true).mode(mode).create(path).map_err(PostgresError::io("make", path))
}

/// The major version of an existing cluster.
fn major_of(folder: &Path) -> Result<Option<u32>, PostgresError> {
    let path = folder.join("PG_VERSION");
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(text.trim().parse().ok()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(PostgresError::io("read", &path)(e)),
    }
}

fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
}

fn free_port() -> Result<u16, PostgresError> {
    let bound = TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
    bound.map(|address| address.port()).map_err(PostgresError::io("bind a port of", "127.0.0.1"))
}

/// Runs a program to its end, with `input` on its standard input.
fn run(command: &mut Command, input: &str) -> Result<(), PostgresError> {
    let program = command.get_program().to_owned();
    let io = || PostgresError::io("run", &program);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(io())?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ended before reading says why itself.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(io())?;
    if output.status.success() {
        return Ok(());
    }
    let text = [output.stdout, output.stderr].concat();
    Err(PostgresError::Program {
        program: PathBuf::from(program),
        status: output.status,
        output: String::from_utf8_lossy(&text).trim().to_owned(),
    })
}

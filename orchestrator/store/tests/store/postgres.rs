//! A PostgreSQL of the tests' own, on a Unix socket, gone when the process is.

use std::{
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

pub const OWNER: &str = "taskvec";
pub const PASSWORD: &str = "owner-secret";

/// A running cluster. Ends with this value, or with the process.
pub struct Cluster {
    /// With the socket in it.
    folder: PathBuf,
    child: Child,
}

impl Cluster {
    /// The owner's connection string to a database.
    pub fn url(&self, database: &str) -> String {
        let folder = self.folder.display().to_string().replace('/', "%2F");
        format!("postgres://{OWNER}:{PASSWORD}@{folder}:5432/{database}")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        self.child.wait().expect("the shell ends");
    }
}

/// Starts a cluster with `settings` on the server's command line.
pub fn start(settings: &str) -> Cluster {
    start_with(settings, &[])
}

/// The same, with copies of `files` that only the server may read, beside its data folder.
pub fn start_with(settings: &str, files: &[&Path]) -> Cluster {
    let bin = binaries();
    let folder = tempfile::Builder::new().prefix("tv-").tempdir_in("/tmp").expect("a folder under /tmp").keep();
    let user = unprivileged();
    if let Some((uid, gid)) = user {
        chown(&folder, Some(uid), Some(gid)).expect("root may chown");
    }
    for file in files {
        let copy = folder.join(file.file_name().expect("a file"));
        std::fs::copy(file, &copy).expect("copies");
        std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o600)).expect("its owner may");
        if let Some((uid, gid)) = user {
            chown(&copy, Some(uid), Some(gid)).expect("root may chown");
        }
    }
    let run = |program: &Path| {
        let mut command = Command::new(program);
        if let Some((uid, gid)) = user {
            command.uid(uid).gid(gid);
        }
        command.current_dir(&folder);
        command
    };
    let secret = folder.join("password");
    std::fs::write(&secret, PASSWORD).expect("writes");
    let initdb = run(&bin.join("initdb"))
        .args(["-D", "data", "-U", OWNER, "-A", "scram-sha-256", "-E", "UTF8", "--locale=C", "-N", "--pwfile"])
        .arg(&secret)
        .output()
        .expect("initdb runs");
    assert!(initdb.status.success(), "initdb: {}", String::from_utf8_lossy(&initdb.stderr));
    // The shell ends the server, and removes its folder, when this process closes the pipe by ending in whatever way.
    let script = r#""$1/postgres" -D data -k "$PWD" -c listen_addresses= $2 >log 2>&1 & server=$!
        cat >/dev/null; kill -QUIT $server; wait $server; rm -rf "$PWD""#;
    let child = run(Path::new("/bin/sh"))
        .args(["-c", script, "sh"])
        .arg(&bin)
        .arg(settings)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .process_group(0)
        .spawn()
        .expect("a shell starts");
    wait(&folder);
    Cluster { folder, child }
}

fn wait(folder: &Path) {
    let from = Instant::now();
    let ready = || std::fs::read_to_string(folder.join("data/postmaster.pid")).is_ok_and(|t| t.contains("ready"));
    while !ready() {
        let log = || std::fs::read_to_string(folder.join("log")).unwrap_or_default();
        assert!(from.elapsed() < Duration::from_secs(60), "PostgreSQL does not start: {}", log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// `initdb` and `postgres` on PATH, where `pg_config` says, or in Debian's folders (the newest).
fn binaries() -> PathBuf {
    let mut places: Vec<PathBuf> = std::env::var_os("PATH").iter().flat_map(std::env::split_paths).collect();
    if let Ok(out) = Command::new("pg_config").arg("--bindir").output() {
        places.push(String::from_utf8_lossy(&out.stdout).trim().into());
    }
    let mut debian: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|d| d.path().join("bin"))
        .collect();
    debian.sort();
    places.extend(debian.into_iter().rev());
    let found = places.into_iter().find(|p| p.join("initdb").is_file() && p.join("postgres").is_file());
    found.expect("PostgreSQL's server programs; on Debian: apt-get install postgresql")
}

/// PostgreSQL refuses root: the user to run it as, if this is root.
fn unprivileged() -> Option<(u32, u32)> {
    let id = |args: &[&str]| -> Option<u32> {
        String::from_utf8(Command::new("id").args(args).output().ok()?.stdout).ok()?.trim().parse().ok()
    };
    if id(&["-u"]) != Some(0) {
        return None;
    }
    ["postgres", "nobody"].into_iter().find_map(|user| Some((id(&["-u", user])?, id(&["-g", user])?)))
}

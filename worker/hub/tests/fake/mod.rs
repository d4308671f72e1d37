//! A hub on this machine: the addresses, redirects and headers of the real one, for what a test puts into it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]
#![allow(dead_code, reason = "each test uses a part of it")]

use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex},
};

pub type Files = BTreeMap<String, Vec<u8>>;

/// The files of a folder, but for what tests expect of them.
pub fn files(folder: &Path) -> Files {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let named =
        entries.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(path).unwrap()));
    named.filter(|(name, _)| name != "expected.safetensors" && name != "config.v4.json").collect()
}

#[derive(Default)]
pub struct Repository {
    /// Branches and tags; a commit is named by the digest of what it has.
    pub revisions: BTreeMap<String, Files>,
    /// Who sends no token is refused.
    pub gated: bool,
}

/// What happens on the way.
#[derive(Default)]
pub struct Faults {
    /// A file, and after how many of its bytes connections break; so often.
    pub breaks: Option<(String, usize, u32)>,
    /// A file that comes with its last byte changed.
    pub damaged: Option<String>,
    /// Ranges are not honoured: the whole file comes.
    pub no_ranges: bool,
    /// Every answer is this status.
    pub status: Option<u16>,
    /// The content of files of this name comes only once this is taken back.
    pub held: Option<String>,
}

#[derive(Default)]
pub struct State {
    pub models: BTreeMap<String, Repository>,
    pub faults: Faults,
    pub asked: Vec<Asked>,
    /// A name, and that which it leads to now.
    pub renamed: Option<(String, String)>,
}

#[derive(Clone, Debug)]
pub struct Asked {
    pub path: String,
    pub range: Option<String>,
    pub token: Option<String>,
}

pub struct FakeHub {
    pub port: u16,
    pub state: Arc<Mutex<State>>,
}

impl FakeHub {
    /// With one model.
    pub fn with(name: &str, repository: Repository) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State::default()));
        state.lock().unwrap().models.insert(name.to_owned(), repository);
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let shared = shared.clone();
                // Whoever asks may go away in the middle.
                std::thread::spawn(move || drop(answer(&stream.unwrap(), port, &shared)));
            }
        });
        Self { port, state }
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn faults(&self, faults: Faults) {
        self.state.lock().unwrap().faults = faults;
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.state.lock().unwrap().asked.clone()
    }
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn commit(files: &Files) -> String {
    let all: Vec<u8> = files.iter().flat_map(|(name, bytes)| [name.as_bytes(), bytes].concat()).collect();
    digest(&all)[..40].to_owned()
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

fn plain(status: u16) -> Answer {
    Answer { status, headers: Vec::new(), body: b"{}".to_vec() }
}

fn json(value: &serde_json::Value) -> Answer {
    Answer { status: 200, headers: Vec::new(), body: value.to_string().into_bytes() }
}

fn answer(stream: &TcpStream, port: u16, state: &Mutex<State>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().unwrap()?;
    let path = first.split(' ').nth(1).unwrap().to_owned();
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    let asked = Asked { path, range: headers.remove("range"), token: headers.remove("authorization") };
    let (answer, cut) = {
        let mut state = state.lock().unwrap();
        state.asked.push(asked.clone());
        let answer = decide(&asked, port, &state);
        (answer, cut(&asked, &mut state.faults))
    };
    while state
        .lock()
        .unwrap()
        .faults
        .held
        .as_ref()
        .is_some_and(|file| asked.path.ends_with(file) && is_content(&asked))
    {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let mut out = stream;
    write!(out, "HTTP/1.1 {} x\r\nconnection: close\r\ncontent-length: {}\r\n", answer.status, answer.body.len())?;
    for (name, value) in &answer.headers {
        write!(out, "{name}: {value}\r\n")?;
    }
    write!(out, "\r\n")?;
    let body = &answer.body[..cut.map_or(answer.body.len(), |cut| cut.min(answer.body.len()))];
    out.write_all(body)
}

/// Neither a question about a file, which asks for its first byte alone, nor a redirect.
fn is_content(asked: &Asked) -> bool {
    let moves = asked.path.ends_with(".safetensors") && !asked.path.starts_with("/stored/");
    !moves && asked.range.as_deref() != Some("bytes=0-0")
}

/// After how many bytes this connection breaks.
fn cut(asked: &Asked, faults: &mut Faults) -> Option<usize> {
    let (file, bytes, times) = faults.breaks.as_mut()?;
    let hit = *times > 0 && asked.path.ends_with(file.as_str()) && is_content(asked);
    *times -= u32::from(hit);
    hit.then_some(*bytes)
}

fn decide(asked: &Asked, port: u16, state: &State) -> Answer {
    if let Some(status) = state.faults.status {
        return plain(status);
    }
    if let Some((old, new)) = state.renamed.as_ref().filter(|(old, _)| asked.path.contains(&format!("/{old}/"))) {
        let headers = vec![("location", asked.path.replace(old, new))];
        return Answer { status: 307, headers, body: Vec::new() };
    }
    for (name, repository) in &state.models {
        let api = format!("/api/models/{name}/");
        let about = asked.path.strip_prefix(&api);
        let resolve = asked.path.strip_prefix(&format!("/{name}/resolve/"));
        let stored = asked.path.strip_prefix(&format!("/stored/{name}/"));
        if (about.is_some() || resolve.is_some()) && repository.gated && asked.token.is_none() {
            return plain(401);
        }
        if let Some(rest) = about {
            return describe(rest, repository);
        }
        if let Some((commit, file)) = resolve.and_then(|rest| rest.split_once('/')) {
            return find(repository, commit, file)
                .map_or(plain(404), |bytes| resolved(asked, port, name, (commit, file), bytes, &state.faults));
        }
        if let Some((commit, file)) = stored.and_then(|rest| rest.split_once('/')) {
            let bytes = find(repository, commit, file).unwrap();
            return content(asked, bytes, file, &state.faults);
        }
    }
    plain(404)
}

fn find<'a>(repository: &'a Repository, wanted: &str, file: &str) -> Option<&'a Vec<u8>> {
    repository.revisions.values().find(|files| commit(files) == wanted)?.get(file)
}

/// `refs` and `revision/R`.
fn describe(rest: &str, repository: &Repository) -> Answer {
    let names: Vec<_> = repository.revisions.keys().map(|name| serde_json::json!({"name": name})).collect();
    if rest == "refs" {
        return json(&serde_json::json!({"branches": names, "converts": [], "tags": []}));
    }
    let revision = rest.strip_prefix("revision/").unwrap().replace("%2F", "/");
    let found = repository.revisions.iter().find(|(name, files)| **name == revision || commit(files) == revision);
    let Some((_, files)) = found else { return plain(404) };
    let siblings: Vec<_> = files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
    json(&serde_json::json!({"sha": commit(files), "siblings": siblings}))
}

/// Small files come from the hub itself; large ones lie elsewhere, at another name of this machine.
fn resolved(
    asked: &Asked,
    port: u16,
    name: &str,
    (commit, file): (&str, &str),
    bytes: &[u8],
    faults: &Faults,
) -> Answer {
    let mut answer = content(asked, bytes, file, faults);
    answer.headers.push(("x-repo-commit", commit.to_owned()));
    if !file.ends_with(".safetensors") {
        answer.headers.push(("etag", format!("\"{}\"", &digest(bytes)[..40])));
        return answer;
    }
    let headers = vec![
        ("x-repo-commit", commit.to_owned()),
        ("x-linked-etag", format!("\"{}\"", digest(bytes))),
        ("x-linked-size", bytes.len().to_string()),
        ("location", format!("http://localhost:{port}/stored/{name}/{commit}/{file}")),
    ];
    Answer { status: 302, headers, body: Vec::new() }
}

fn content(asked: &Asked, bytes: &[u8], file: &str, faults: &Faults) -> Answer {
    let mut bytes = bytes.to_vec();
    if faults.damaged.as_deref() == Some(file) {
        *bytes.last_mut().unwrap() ^= 1;
    }
    let Some(range) = asked.range.as_ref().filter(|_| !faults.no_ranges) else {
        return Answer { status: 200, headers: Vec::new(), body: bytes };
    };
    let (from, to) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    let (from, to): (usize, usize) = (from.parse().unwrap(), to.parse().unwrap_or(bytes.len() - 1));
    let range = format!("bytes {from}-{to}/{}", bytes.len());
    Answer { status: 206, headers: vec![("content-range", range)], body: bytes[from..=to].to_vec() }
}

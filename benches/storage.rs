//! One 256 MiB blob up and down through a real stack, against `cp` and against Postgres `COPY` of the same bytes.
//!
//! `cargo bench --bench storage`; needs `psql` beside PostgreSQL's server programs.

use std::{
    error::Error,
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Stdio},
    time::Instant,
};
use taskvec_wire::{
    CHUNK_BYTES, MAX_MESSAGE,
    pb::{self, blobs_client::BlobsClient},
};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};

const CHUNKS: usize = 256;

type Failure = Box<dyn Error>;
type Blobs = BlobsClient<InterceptedService<Channel, Bearer>>;

#[derive(Clone)]
struct Bearer(MetadataValue<Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let dir = tempfile::Builder::new().prefix("taskvec-bench-").tempdir()?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711))?;
    let bytes = pseudo_random(CHUNKS * CHUNK_BYTES);
    let data = dir.path().join("data");
    let stack = Stack::start(&data)?;
    let mut blobs = stack.blobs().await?;

    let file = dir.path().join("blob");
    fs::write(&file, &bytes)?;
    let start = Instant::now();
    run(Command::new("cp").arg("--reflink=never").arg(&file).arg(dir.path().join("copy")))?;
    run(Command::new("sync").arg(dir.path().join("copy")))?;
    report("cp and sync", start, bytes.len());

    let start = Instant::now();
    let digest = upload(&mut blobs, &bytes).await?;
    report("upload: hash, send, store", start, bytes.len());
    let start = Instant::now();
    upload(&mut blobs, &bytes).await?;
    report("the same upload again: all known", start, bytes.len());
    let start = Instant::now();
    download(&mut blobs, &digest, &dir.path().join("down"), &bytes).await?;
    report("download: read, verify, write", start, bytes.len());
    copy(&data, dir.path(), &bytes)
}

fn report(what: &str, start: Instant, bytes: usize) {
    let seconds = start.elapsed().as_secs_f64();
    println!("{what:36} {:7.0} MB/s  ({seconds:.2} s)", bytes as f64 / 1e6 / seconds);
}

/// Incompressible and the same every time.
fn pseudo_random(n: usize) -> Vec<u8> {
    let mut out = vec![0; n];
    blake3::Hasher::new().update(b"taskvec storage bench").finalize_xof().fill(&mut out);
    out
}

fn run(command: &mut Command) -> Result<(), Failure> {
    let status = command.status()?;
    if status.success() { Ok(()) } else { Err(format!("{command:?}: {status}").into()) }
}

/// As a worker does it: ask what is missing, send that, declare the blob.
async fn upload(blobs: &mut Blobs, bytes: &[u8]) -> Result<Vec<u8>, Failure> {
    let chunks: Vec<&[u8]> = bytes.chunks(CHUNK_BYTES).collect();
    let hashes: Vec<Vec<u8>> = chunks.iter().map(|c| blake3::hash(c).as_bytes().to_vec()).collect();
    let missing = blobs.missing(pb::ChunkHashes { hashes: hashes.clone() }).await?.into_inner().indices;
    let wanted: Vec<pb::Chunk> = missing
        .into_iter()
        .map(|i| pb::Chunk { hash: hashes[i as usize].clone(), data: chunks[i as usize].to_vec() })
        .collect();
    blobs.put_chunks(tokio_stream::iter(wanted)).await?;
    let digest = blake3::hash(bytes).as_bytes().to_vec();
    let manifest = pb::BlobManifest { digest: digest.clone(), bytes: bytes.len() as u64, chunks: hashes };
    blobs.put_blob(manifest).await?;
    Ok(digest)
}

async fn download(blobs: &mut Blobs, digest: &[u8], to: &Path, expected: &[u8]) -> Result<(), Failure> {
    let mut file = fs::File::create(to)?;
    let mut hasher = blake3::Hasher::new();
    let mut stream = blobs.get(pb::BlobRequest { digest: digest.to_vec() }).await?.into_inner();
    while let Some(chunk) = stream.message().await? {
        hasher.update(&chunk.data);
        file.write_all(&chunk.data)?;
    }
    file.sync_all()?;
    assert_eq!(hasher.finalize(), blake3::hash(expected), "what came down is what went up");
    Ok(())
}

/// The same chunks through `COPY … FROM STDIN (FORMAT binary)` into a table of the same shape, and out again.
fn copy(data: &Path, dir: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let rows = dir.join("rows");
    write_copy_file(&rows, bytes)?;
    let psql =
        |sql: String| run(Command::new("psql").arg(owner_url(data)?).args(["-q", "-v", "ON_ERROR_STOP=1", "-c", &sql]));
    psql(
        "CREATE TABLE bench_chunks (hash bytea PRIMARY KEY, data bytea); \
          ALTER TABLE bench_chunks ALTER data SET STORAGE EXTERNAL"
            .to_owned(),
    )?;
    let start = Instant::now();
    psql(format!("\\copy bench_chunks FROM '{}' (FORMAT binary)", rows.display()))?;
    report("bare COPY in", start, bytes.len());
    let start = Instant::now();
    psql(format!("\\copy bench_chunks TO '{}' (FORMAT binary)", dir.join("out").display()))?;
    report("bare COPY out", start, bytes.len());
    psql("DROP TABLE bench_chunks".to_owned())
}

/// PostgreSQL's binary COPY format: a header, then per row a field count and length-prefixed fields, then -1.
fn write_copy_file(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::BufWriter::new(fs::File::create(path)?);
    out.write_all(b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0")?;
    for chunk in bytes.chunks(CHUNK_BYTES) {
        out.write_all(&2_i16.to_be_bytes())?;
        out.write_all(&32_i32.to_be_bytes())?;
        out.write_all(blake3::hash(chunk).as_bytes())?;
        out.write_all(&i32::try_from(chunk.len())?.to_be_bytes())?;
        out.write_all(chunk)?;
    }
    out.write_all(&(-1_i16).to_be_bytes())?;
    Ok(out.flush()?)
}

fn owner_url(data: &Path) -> Result<String, Failure> {
    let password = fs::read_to_string(data.join("postgres-password"))?;
    let postmaster = fs::read_to_string(data.join("postgres/postmaster.pid"))?;
    let port = postmaster.lines().nth(3).ok_or("no port in postmaster.pid")?;
    Ok(format!("postgresql://taskvec_owner:{}@127.0.0.1:{port}/taskvec", password.trim()))
}

struct Stack {
    process: Child,
    url: String,
    token: String,
}

impl Stack {
    fn start(data: &Path) -> Result<Self, Failure> {
        let mut process = Command::new(env!("CARGO_BIN_EXE_taskvec"))
            .args(["up", "--listen", "127.0.0.1:0", "--workers", "0", "--data"])
            .arg(data)
            .stdout(Stdio::piped())
            .spawn()?;
        let out = process.stdout.take().ok_or("no output")?;
        let line = BufReader::new(out).lines().next().ok_or("the stack did not start")??;
        let url = line.split_whitespace().find(|w| w.starts_with("http")).ok_or("no address")?;
        let token = fs::read_to_string(data.join("token"))?.trim().to_owned();
        Ok(Self { process, url: url.trim_end_matches('.').to_owned(), token })
    }

    async fn blobs(&self) -> Result<Blobs, Failure> {
        let channel = Channel::from_shared(self.url.clone())?.connect().await?;
        let bearer = Bearer(format!("Bearer {}", self.token).parse()?);
        Ok(BlobsClient::with_interceptor(channel, bearer).max_decoding_message_size(MAX_MESSAGE))
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // The benchmark is over; a stack that is gone already needs no signal.
        let _ = Command::new("kill").arg(self.process.id().to_string()).status();
        let _ = self.process.wait();
    }
}

//! Checkpoints to and from the server, chunk by chunk, in constant memory.

use crate::{
    cache::{Cache, Draft, Manifest, Pinned},
    config::Backoff,
    connect::Authorized,
};
use std::{
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    path::PathBuf,
    sync::Arc,
};
use taskvec_model::{id::Digest, job::CheckpointRef};
use taskvec_wire::{
    CHUNK_BYTES,
    pb::{BlobManifest, BlobRequest, Chunk, ChunkHashes, blobs_client::BlobsClient},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

/// Chunks between the network and the disk.
const IN_FLIGHT: usize = 4;

/// Why a blob could not be moved, when trying again will not help.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    #[error(
        "the checkpoint of step {} ({}, digest {}) is damaged on the server: {what}; restore the server's database from \
         a backup, then retry the job",
        .checkpoint.step, .checkpoint.purpose, .checkpoint.blob.digest
    )]
    Damaged { checkpoint: CheckpointRef, what: String },
    #[error("checkpoint {digest} cannot be {deed} on this worker: {source}; see that its data folder has free space")]
    Disk { digest: Digest, deed: &'static str, source: std::io::Error },
    #[error("the server refused checkpoint {digest}: {reason}")]
    Refused { digest: Digest, reason: String },
}

/// One try's end: final, or worth another try.
enum Trouble {
    Final(BlobError),
    Passing(String),
}

pub struct Blobs {
    client: BlobsClient<Authorized>,
    cache: Arc<Cache>,
    backoff: Backoff,
    /// One download at a time: two jobs that read the same checkpoint fetch it once.
    downloading: tokio::sync::Mutex<()>,
}

impl Blobs {
    pub fn new(client: BlobsClient<Authorized>, cache: Arc<Cache>, backoff: Backoff) -> Self {
        Self { client, cache, backoff, downloading: tokio::sync::Mutex::default() }
    }

    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    /// The checkpoint as a verified local file, from the cache or the server. While the server is away it is tried again
    /// without end: drop the future to give up.
    pub async fn fetch(&self, checkpoint: &CheckpointRef) -> Result<Pinned, BlobError> {
        let _alone = self.downloading.lock().await;
        let (cache, blob) = (self.cache.clone(), checkpoint.blob);
        let found = tokio::task::spawn_blocking(move || cache.lookup(&blob)).await;
        if let Ok(Some(pinned)) = found {
            return Ok(pinned);
        }
        let mut failures = 0;
        loop {
            match self.download(checkpoint).await {
                Ok(pinned) => return Ok(pinned),
                Err(trouble) => self.endure("download", trouble, &mut failures).await?,
            }
        }
    }

    /// Stores a blob on the server; chunks that are there already are not sent. Endures like [`Self::fetch`].
    pub async fn upload(&self, manifest: &Manifest, file: &Pinned) -> Result<(), BlobError> {
        let mut failures = 0;
        while let Err(trouble) = self.send(manifest, file).await {
            self.endure("upload", trouble, &mut failures).await?;
        }
        Ok(())
    }

    /// Waits before another try, if one makes sense.
    async fn endure(&self, deed: &str, trouble: Trouble, failures: &mut u32) -> Result<(), BlobError> {
        match trouble {
            Trouble::Final(error) => return Err(error),
            Trouble::Passing(reason) if *failures == 0 => tracing::warn!("{deed} is tried again: {reason}"),
            Trouble::Passing(reason) => tracing::debug!("{deed} is tried again: {reason}"),
        }
        tokio::time::sleep(self.backoff.wait(*failures)).await;
        *failures += 1;
        Ok(())
    }

    async fn download(&self, checkpoint: &CheckpointRef) -> Result<Pinned, Trouble> {
        let damaged = |what: String| Trouble::Final(BlobError::Damaged { checkpoint: *checkpoint, what });
        let judge = |status: Status| match status.code() {
            Code::DataLoss | Code::NotFound | Code::InvalidArgument => damaged(status.message().to_owned()),
            _ => Trouble::Passing(status.to_string()),
        };
        let digest = checkpoint.blob.digest;
        let request = BlobRequest { digest: digest.0.to_vec() };
        let mut chunks = self.client.clone().get(request).await.map_err(judge)?.into_inner();
        let draft = self.cache.draft().map_err(|source| disk(digest, "stored", source))?;
        let (tx, rx) = mpsc::channel(IN_FLIGHT);
        let writer = tokio::task::spawn_blocking(move || write_chunks(draft, rx));
        while let Some(chunk) = chunks.message().await.map_err(judge)? {
            if tx.send(chunk).await.is_err() {
                // The writer has given up and says why.
                break;
            }
        }
        drop(tx);
        let draft = match joined(writer.await)? {
            Ok(draft) => draft,
            Err(Unwritten::BadChunk(i)) => return Err(damaged(format!("chunk {i} does not match its hash"))),
            Err(Unwritten::Disk(source)) => return Err(disk(digest, "stored", source)),
        };
        let blob = draft.blob();
        if blob != checkpoint.blob {
            let what =
                format!("its {} bytes (of {}) have the digest {}", blob.bytes, checkpoint.blob.bytes, blob.digest);
            return Err(damaged(what));
        }
        draft.keep().map(|(_, pinned)| pinned).map_err(|source| disk(digest, "stored", source))
    }

    async fn send(&self, manifest: &Manifest, file: &Pinned) -> Result<(), Trouble> {
        let digest = manifest.blob.digest;
        let judge = |status: Status| match status.code() {
            Code::InvalidArgument | Code::DataLoss | Code::OutOfRange => {
                Trouble::Final(BlobError::Refused { digest, reason: status.message().to_owned() })
            }
            _ => Trouble::Passing(status.to_string()),
        };
        let hashes: Vec<Vec<u8>> = manifest.chunks.iter().map(|hash| hash.0.to_vec()).collect();
        let mut client = self.client.clone();
        let missing = client.missing(ChunkHashes { hashes: hashes.clone() }).await.map_err(judge)?.into_inner().indices;
        if !missing.is_empty() {
            let (tx, rx) = mpsc::channel(IN_FLIGHT);
            let (path, chunks) = (file.path().to_owned(), manifest.chunks.clone());
            let reader = tokio::task::spawn_blocking(move || read_chunks(path, &chunks, &missing, &tx));
            let sent = client.put_chunks(ReceiverStream::new(rx)).await;
            joined(reader.await)?.map_err(|source| disk(digest, "read", source))?;
            sent.map_err(judge)?;
        }
        let whole = BlobManifest { digest: digest.0.to_vec(), bytes: manifest.blob.bytes, chunks: hashes };
        client.put_blob(whole).await.map_err(judge)?;
        Ok(())
    }
}

fn disk(digest: Digest, deed: &'static str, source: std::io::Error) -> Trouble {
    Trouble::Final(BlobError::Disk { digest, deed, source })
}

fn joined<T>(result: Result<T, tokio::task::JoinError>) -> Result<T, Trouble> {
    result.map_err(|e| Trouble::Passing(format!("a helper thread ended early: {e}")))
}

enum Unwritten {
    BadChunk(usize),
    Disk(std::io::Error),
}

fn write_chunks(mut draft: Draft, mut chunks: mpsc::Receiver<Chunk>) -> Result<Draft, Unwritten> {
    let mut index = 0;
    while let Some(chunk) = chunks.blocking_recv() {
        if blake3::hash(&chunk.data).as_bytes() != chunk.hash.as_slice() {
            return Err(Unwritten::BadChunk(index));
        }
        draft.write_all(&chunk.data).map_err(Unwritten::Disk)?;
        index += 1;
    }
    Ok(draft)
}

/// Sends the chunks at `wanted` places of the file, until they are sent or nobody listens any more.
fn read_chunks(path: PathBuf, hashes: &[Digest], wanted: &[u32], to: &mpsc::Sender<Chunk>) -> std::io::Result<()> {
    let mut file = File::open(path)?;
    for &index in wanted {
        let Some(hash) = hashes.get(index as usize) else { continue };
        let mut data = Vec::with_capacity(CHUNK_BYTES);
        file.seek(SeekFrom::Start(u64::from(index) * CHUNK_BYTES as u64))?;
        Read::by_ref(&mut file).take(CHUNK_BYTES as u64).read_to_end(&mut data)?;
        if to.blocking_send(Chunk { hash: hash.0.to_vec(), data }).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

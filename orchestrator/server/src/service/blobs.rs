//! Checkpoints, up and down, a chunk at a time: memory stays bounded whatever their size.

use super::{Context, Reply, streamed};
use crate::error::status;
use taskvec_model::{
    id::{CheckpointId, Digest},
    job::BlobRef,
};
use taskvec_store::{BlobManifest, BlobReader};
use taskvec_wire::{
    CHUNK_BYTES, digest,
    pb::{self, blobs_server::Blobs},
};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};

pub(super) struct BlobService(pub Context);

#[tonic::async_trait]
impl Blobs for BlobService {
    async fn missing(&self, request: Request<pb::ChunkHashes>) -> Result<Response<pb::MissingReply>, Status> {
        let hashes = digests(&request.into_inner().hashes)?;
        let missing = self.0.store.missing_chunks(&hashes).await.map_err(status)?;
        // Indices into a message that fitted into memory.
        let indices = missing.into_iter().map(|index| u32::try_from(index).unwrap_or(u32::MAX)).collect();
        Ok(Response::new(pb::MissingReply { indices }))
    }

    /// The next chunk is read from the connection when this one is stored: the client waits for the database.
    async fn put_chunks(&self, request: Request<Streaming<pb::Chunk>>) -> Result<Response<pb::Empty>, Status> {
        let mut chunks = request.into_inner();
        while let Some(pb::Chunk { hash, data }) = chunks.message().await? {
            let hash = digest(&hash)?;
            if data.len() > CHUNK_BYTES {
                let text = format!("chunk {hash} has {} bytes; the limit is {CHUNK_BYTES}", data.len());
                return Err(Status::invalid_argument(text));
            }
            if blake3::hash(&data) != hash.0 {
                let text = format!("the bytes sent for chunk {hash} have another hash: they changed on their way");
                return Err(Status::invalid_argument(text));
            }
            self.0.store.put_chunk(hash, &data).await.map_err(status)?;
        }
        Ok(Response::new(pb::Empty {}))
    }

    async fn put_blob(&self, request: Request<pb::BlobManifest>) -> Result<Response<pb::Empty>, Status> {
        let pb::BlobManifest { digest: whole, bytes, chunks } = request.into_inner();
        let blob = BlobRef { digest: digest(&whole)?, bytes };
        let manifest = BlobManifest { blob, chunks: digests(&chunks)? };
        self.0.store.put_blob(&manifest).await.map_err(status)?;
        Ok(Response::new(pb::Empty {}))
    }

    type GetStream = Reply<pb::Chunk>;

    async fn get(&self, request: Request<pb::BlobRequest>) -> Result<Response<Self::GetStream>, Status> {
        self.open(digest(&request.into_inner().digest)?).await
    }

    type GetCheckpointStream = Reply<pb::Chunk>;

    async fn get_checkpoint(
        &self,
        request: Request<pb::CheckpointRequest>,
    ) -> Result<Response<Self::GetCheckpointStream>, Status> {
        let id = CheckpointId(request.into_inner().checkpoint_id);
        let stored = self.0.store.checkpoint(id).await.map_err(status)?;
        self.open(stored.checkpoint.blob.digest).await
    }
}

impl BlobService {
    async fn open(&self, blob: Digest) -> Result<Response<Reply<pb::Chunk>>, Status> {
        let reader = self.0.store.open_blob(blob).await.map_err(status)?;
        Ok(Response::new(streamed(|to| send(reader, to))))
    }
}

async fn send(mut reader: BlobReader, to: mpsc::Sender<Result<pb::Chunk, Status>>) {
    loop {
        let part = match reader.next().await {
            Ok(None) => return,
            Ok(Some((hash, data))) => Ok(pb::Chunk { hash: hash.0.to_vec(), data }),
            Err(error) => Err(status(error)),
        };
        let failed = part.is_err();
        if to.send(part).await.is_err() || failed {
            return;
        }
    }
}

fn digests(hashes: &[Vec<u8>]) -> Result<Vec<Digest>, Status> {
    hashes.iter().map(|hash| Ok(digest(hash)?)).collect()
}

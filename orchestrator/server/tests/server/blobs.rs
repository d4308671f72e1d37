//! Checkpoints up and down.

use crate::common::{Client, Identity, Stack, Worker, selftest};
use taskvec_model::job::Purpose;
use taskvec_wire::{CHUNK_BYTES, pb};
use tonic::{Code, Status};

/// Three chunks, two of them equal.
fn bytes() -> Vec<u8> {
    let mut out = vec![7; 2 * CHUNK_BYTES];
    out.extend((0..1000_u32).flat_map(u32::to_le_bytes));
    out
}

fn hash(bytes: &[u8]) -> Vec<u8> {
    blake3::hash(bytes).as_bytes().to_vec()
}

async fn put_chunks(client: &Client, chunks: Vec<pb::Chunk>) -> Result<(), Status> {
    client.blobs.clone().put_chunks(tokio_stream::iter(chunks)).await.map(drop)
}

async fn get(client: &Client, digest: Vec<u8>) -> Result<Vec<u8>, Status> {
    let mut chunks = client.blobs.clone().get(pb::BlobRequest { digest }).await?.into_inner();
    let mut out = Vec::new();
    while let Some(chunk) = chunks.message().await? {
        assert_eq!(hash(&chunk.data), chunk.hash);
        out.extend(chunk.data);
    }
    Ok(out)
}

#[tokio::test]
async fn blobs_come_back_as_they_were_sent_and_bad_ones_are_refused() {
    let mut stack = Stack::start().await;
    let client = stack.client().await;
    let whole = bytes();
    let chunks: Vec<pb::Chunk> =
        whole.chunks(CHUNK_BYTES).map(|data| pb::Chunk { hash: hash(data), data: data.to_vec() }).collect();
    let hashes: Vec<Vec<u8>> = chunks.iter().map(|chunk| chunk.hash.clone()).collect();
    let missing = || async {
        let request = pb::ChunkHashes { hashes: hashes.clone() };
        client.blobs.clone().missing(request).await.unwrap().into_inner().indices
    };
    assert_eq!(missing().await.last(), Some(&2));

    let wrong = pb::Chunk { hash: hashes[2].clone(), data: vec![1, 2, 3] };
    let refused = put_chunks(&client, vec![wrong]).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("another hash"), "{}", refused.message());
    let large = vec![0; CHUNK_BYTES + 1];
    let refused = put_chunks(&client, vec![pb::Chunk { hash: hash(&large), data: large }]).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);

    put_chunks(&client, chunks).await.unwrap();
    assert!(missing().await.is_empty());
    let manifest = |digest| pb::BlobManifest { digest, bytes: whole.len() as u64, chunks: hashes.clone() };
    client.blobs.clone().put_blob(manifest(hash(&whole))).await.unwrap();
    assert!(get(&client, hash(&whole)).await.unwrap() == whole, "other bytes came back");
    assert_eq!(get(&client, vec![1; 32]).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(get(&client, vec![1; 3]).await.unwrap_err().code(), Code::InvalidArgument);

    checkpoint(&client, &whole).await;
    stack.stop().await;
}

/// A job's checkpoint is found by its id; one that was never uploaded is the job's failure.
async fn checkpoint(client: &Client, whole: &[u8]) {
    let sweep = client.submit(&selftest("keeps", 2)).await.unwrap().sweep_id;
    let mut worker = Worker::connect(client, &Identity::new("one", 1)).await.unwrap();
    let produced = |digest, bytes| pb::Produced {
        metrics: None,
        checkpoints: vec![pb::Checkpoint { step: 3, purpose: Purpose::Weights.to_string(), digest, bytes }],
    };
    let first = worker.assigned().await;
    worker.finish_with(first, produced(hash(whole), whole.len() as u64)).await;
    assert!(worker.answer().await.accepted);
    let second = worker.assigned().await;
    worker.finish_with(second, produced(vec![9; 32], 5)).await;
    assert!(worker.answer().await.accepted);
    let again = worker.assigned().await;
    assert_eq!((again.job, again.number), (second.job, 2), "an upload that got lost may be repeated");
    worker.finish(again).await;
    assert!(worker.answer().await.accepted);
    assert_eq!(client.wait(sweep).await.state, "done");

    let found = client.sql("SELECT checkpoint_id, step FROM results.checkpoints").await.unwrap();
    assert_eq!(found.len(), 1);
    let request = pb::CheckpointRequest { checkpoint_id: found[0][0].as_i64().unwrap() };
    let mut parts = client.blobs.clone().get_checkpoint(request).await.unwrap().into_inner();
    let mut size = 0;
    while let Some(part) = parts.message().await.unwrap() {
        size += part.data.len();
    }
    assert_eq!(size, whole.len());
    let unknown = client.blobs.clone().get_checkpoint(pb::CheckpointRequest { checkpoint_id: 99 }).await;
    assert_eq!(unknown.unwrap_err().code(), Code::NotFound);
}

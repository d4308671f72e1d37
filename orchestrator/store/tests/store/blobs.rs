//! Chunks and blobs.

use crate::fixture::*;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use taskvec_model::{
    id::{CheckpointId, Digest},
    job::{BlobRef, Purpose},
};
use taskvec_store::{BlobManifest, BoxFuture, ChunkStore, Corrupt, GcPolicy, Micros, Removed, StoreError};

async fn read(db: &Db, digest: Digest) -> Result<Vec<u8>, StoreError> {
    let mut reader = db.store.open_blob(digest).await?;
    let mut out = Vec::new();
    while let Some((hash_, bytes)) = reader.next().await? {
        assert_eq!(hash(&bytes), hash_);
        out.extend(bytes);
    }
    assert_eq!(reader.blob(), BlobRef { digest, bytes: out.len() as u64 });
    Ok(out)
}

#[tokio::test]
async fn a_blob_comes_back_as_it_went_and_shares_its_chunks() {
    let db = db().await;
    let large = vec![7u8; 1 << 20];
    let chunks: [&[u8]; 4] = [&large, b"tail", &large, b"end"];
    let blob = upload(&db.store, &chunks).await;
    assert_eq!(read(&db, blob.digest).await.expect("reads"), chunks.concat());
    assert_eq!(db.one::<i64>("SELECT count(*) FROM taskvec.chunks").await, 3);
    let asked = [hash(b"new"), hash(&large), hash(b"newer")];
    assert_eq!(db.store.missing_chunks(&asked).await.expect("asks"), [0, 2]);
    assert_eq!(db.store.missing_chunks(&[]).await.expect("asks"), [0usize; 0]);
    assert_eq!(upload(&db.store, &chunks).await, blob, "may be repeated");
    assert_eq!(db.one::<i64>("SELECT count(*) FROM taskvec.blob_chunks").await, 4);
    db.store.put_chunk(hash(b"tail"), b"tail").await.expect("may be repeated");
    assert!(matches!(db.store.open_blob(hash(b"-")).await.err(), Some(StoreError::UnknownBlob(_))));
}

#[tokio::test]
async fn what_is_not_what_it_says_is_refused() {
    let db = db().await;
    let error = db.store.put_chunk(hash(b"a"), b"b").await.expect_err("another hash");
    assert!(error.to_string().contains("is refused: its bytes hash to"), "{error}");
    let large = vec![0; taskvec_store::MAX_CHUNK_BYTES + 1];
    assert!(matches!(db.store.put_chunk(hash(&large), &large).await, Err(StoreError::BadChunk { .. })));
    db.store.put_chunk(hash(b"abc"), b"abc").await.expect("stores");
    let declare = |bytes, chunks: &[&[u8]]| BlobManifest {
        blob: BlobRef { digest: hash(b"blob"), bytes },
        chunks: chunks.iter().map(|c| hash(c)).collect(),
    };
    for (bad, why) in [
        (declare(6, &[b"abc", b"def"]), "1 of its 2 chunks are not stored; upload them first"),
        (declare(4, &[b"abc"]), "its chunks have 3 bytes, not 4"),
        (declare(0, &[]), "its chunks have 0 bytes, not 0"),
    ] {
        let error = db.store.put_blob(&bad).await.expect_err(why);
        assert!(error.to_string().ends_with(why), "{error}");
    }
    assert_eq!(db.one::<i64>("SELECT count(*) FROM taskvec.blobs").await, 0);
}

#[tokio::test]
async fn a_damaged_chunk_is_named_and_the_next_upload_repairs_it() {
    let db = db().await;
    let mut leader = db.lead().await;
    leader.submit(&plan(vec![idle(1)]), "", 0, None).await.expect("submits");
    let chunks: [&[u8]; 2] = [b"good", b"bad"];
    let blob = upload(&db.store, &chunks).await;
    finish(&db, &mut leader, 1, outcome(Default::default(), vec![checkpoint(10, Purpose::Weights, blob)])).await;
    db.run("UPDATE taskvec.chunks SET data = 'BAD' WHERE data = 'bad'").await;
    let Err(StoreError::Corrupt(corrupt)) = read(&db, blob.digest).await else { panic!("it is damaged") };
    let why = "is damaged: its bytes do not match its hash";
    let expected = Corrupt { chunk: hash(b"bad"), blob: Some(blob.digest), checkpoints: vec![CheckpointId(1)], why };
    assert_eq!(corrupt, expected);
    let text = format!("chunk {} {why}; it is part of blob {}, checkpoint 1", hash(b"bad"), blob.digest);
    assert_eq!(corrupt.to_string(), text);
    assert_eq!(db.store.missing_chunks(&[hash(b"good"), hash(b"bad")]).await.expect("asks"), [1]);
    upload(&db.store, &chunks).await;
    assert_eq!(read(&db, blob.digest).await.expect("repaired"), b"goodbad");
    db.run("DELETE FROM taskvec.chunks WHERE data = 'good'").await;
    let error = read(&db, blob.digest).await.expect_err("gone");
    assert!(error.to_string().starts_with(&format!("chunk {} is gone", hash(b"good"))), "{error}");
}

#[tokio::test]
async fn a_checkpoint_is_found_by_its_id() {
    let db = db().await;
    let mut leader = db.lead().await;
    leader.submit(&plan(vec![idle(1)]), "", 0, None).await.expect("submits");
    let blob = db.upload("weights").await;
    finish(&db, &mut leader, 1, outcome(Default::default(), vec![checkpoint(10, Purpose::Weights, blob)])).await;
    leader.submit(&plan(vec![idle(1)]), "", 0, None).await.expect("submits");
    let found = db.store.checkpoint(CheckpointId(1)).await.expect("finds");
    assert_eq!(found.checkpoint, checkpoint(10, Purpose::Weights, blob));
    assert_eq!(found.runs.iter().map(|r| r.0).collect::<Vec<_>>(), [1, 2]);
    let error = db.store.checkpoint(CheckpointId(2)).await.expect_err("none such");
    assert_eq!(error.to_string(), "there is no checkpoint 2");
}

#[tokio::test]
async fn a_chunk_that_was_wanted_since_is_not_removed() {
    let db = db().await;
    let chunks = db.store.chunks();
    chunks.put(hash(b"a"), b"a").await.expect("stores");
    let at: Micros = db.one("SELECT (extract(epoch FROM last_wanted_at) * 1000000)::bigint FROM taskvec.chunks").await;
    let before = [(hash(b"a"), at - 1), (hash(b"unknown"), at)];
    assert_eq!(chunks.remove(&before, false).await.expect("removes"), Removed { chunks: 0, bytes: 0 });
    assert_eq!(chunks.idle(at, None, 9).await.expect("lists"), []);
    assert_eq!(chunks.idle(at + 1, None, 9).await.expect("lists"), [hash(b"a")]);
    assert_eq!(chunks.idle(at + 1, Some(hash(b"a")), 9).await.expect("lists"), []);
    let one = Removed { chunks: 1, bytes: 1 };
    assert_eq!(chunks.remove(&[(hash(b"a"), at)], true).await.expect("counts"), one);
    assert_eq!(chunks.remove(&[(hash(b"a"), at)], false).await.expect("removes"), one);
    assert_eq!(chunks.want(&[hash(b"a")]).await.expect("asks"), [None]);
}

/// Chunks in memory, without times: everything is idle.
#[derive(Default)]
struct Memory(Mutex<BTreeMap<Digest, Vec<u8>>>);

impl Memory {
    fn map(&self) -> MutexGuard<'_, BTreeMap<Digest, Vec<u8>>> {
        self.0.lock().expect("nobody panics while holding it")
    }
}

impl ChunkStore for Memory {
    fn want<'a>(&'a self, hashes: &'a [Digest]) -> BoxFuture<'a, Vec<Option<u64>>> {
        let map = self.map();
        let sizes = hashes.iter().map(|h| map.get(h).map(|bytes| bytes.len() as u64)).collect();
        Box::pin(async move { Ok(sizes) })
    }

    fn put<'a>(&'a self, hash: Digest, bytes: &'a [u8]) -> BoxFuture<'a, ()> {
        self.map().insert(hash, bytes.to_vec());
        Box::pin(async { Ok(()) })
    }

    fn get(&self, hash: Digest) -> BoxFuture<'_, Vec<u8>> {
        let bytes = self.map()[&hash].clone();
        Box::pin(async move { Ok(bytes) })
    }

    fn idle(&self, _before: Micros, after: Option<Digest>, _limit: u32) -> BoxFuture<'_, Vec<Digest>> {
        let hashes = self.map().keys().filter(|h| Some(**h) > after).copied().collect();
        Box::pin(async move { Ok(hashes) })
    }

    fn remove<'a>(&'a self, chunks: &'a [(Digest, Micros)], dry_run: bool) -> BoxFuture<'a, Removed> {
        let mut map = self.map();
        let mut out = Removed::default();
        for (hash, _) in chunks {
            let bytes = if dry_run { map.get(hash).cloned() } else { map.remove(hash) };
            out.chunks += u64::from(bytes.is_some());
            out.bytes += bytes.map_or(0, |b| b.len() as u64);
        }
        Box::pin(async move { Ok(out) })
    }
}

#[tokio::test]
async fn chunks_may_lie_elsewhere() {
    let mut db = db().await;
    db.store = db.store.with_chunks(Arc::new(Memory::default()));
    let blob = upload(&db.store, &[b"kept ", b"elsewhere"]).await;
    assert_eq!(read(&db, blob.digest).await.expect("reads"), b"kept elsewhere");
    assert_eq!(db.one::<i64>("SELECT count(*) FROM taskvec.chunks").await, 0);
    let report = db.store.gc(GcPolicy { grace: Duration::ZERO, dry_run: false }).await.expect("removes");
    assert_eq!((report.blobs, report.chunks, report.bytes), (1, 2, 14));
}

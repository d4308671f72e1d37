//! Checkpoints on their way in and out.

use crate::{
    job::{attempt, baselines, finished, job, keep, training},
    server::FakeServer,
    worker::{Worker, assert_clean, config, eventually, files},
};
use std::{
    sync::Arc,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
};
use taskvec_model::job::{JobWork, Produced, Purpose};
use taskvec_science::ScienceError;
use taskvec_wire::CHUNK_BYTES;
use tempfile::tempdir;
use tokio::sync::Semaphore;
use tonic::Status;

/// Bytes that differ from chunk to chunk.
fn bytes(length: usize, salt: u8) -> Vec<u8> {
    (0..length).map(|i| (i / 1000) as u8 ^ salt).collect()
}

#[tokio::test]
async fn inputs_are_fetched_verified_once_and_kept() {
    let (mut server, data) = (FakeServer::start().await, tempdir().unwrap());
    let (resume, weights) = (bytes(2 * CHUNK_BYTES + 7, 1), bytes(10, 2));
    let expected = (resume.clone(), weights.clone());
    let execute = job(move |work, inputs, _| {
        let read = |path: &Option<std::path::PathBuf>| std::fs::read(path.as_ref().unwrap()).unwrap();
        assert_eq!((read(&inputs.resume), read(&inputs.weights)), expected);
        finished(work)
    });
    let _worker = Worker::start(config(&server, &data), execute);
    server.hello().await;
    let inputs = vec![server.store(100, Purpose::Resume, &resume), server.store(100, Purpose::Weights, &weights)];
    server.state().refuse_get = vec![Status::unavailable("busy"), Status::internal("hiccup")];
    server.assign(attempt(1), training(inputs.clone())).await;
    server.finished().await;
    assert_eq!(server.state().gets, 4, "two refusals, then each once");
    server.assign(attempt(2), training(inputs)).await;
    let log = server.finished().await.log;
    assert_eq!(server.state().gets, 4, "the cache has them");
    assert!(log.contains("input: step 100 (resume)"), "{log}");
    assert_clean(data.path());
}

#[tokio::test]
async fn a_damaged_or_lost_input_fails_the_job_for_good_and_names_itself() {
    let (mut server, data) = (FakeServer::start().await, tempdir().unwrap());
    let execute = job(|_, _, _| panic!("nothing to compute from"));
    let _worker = Worker::start(config(&server, &data), execute);
    server.hello().await;
    let damaged = server.store(100, Purpose::Weights, &bytes(3 * CHUNK_BYTES, 1));
    server.damage(&damaged.blob, 1);
    server.assign(attempt(1), baselines(vec![damaged])).await;
    let failed = server.failed().await;
    let digest = damaged.blob.digest.to_string();
    assert!(!failed.retry);
    for word in ["step 100", "weights", digest.as_str(), "chunk 1", "backup"] {
        assert!(failed.reason.contains(word), "{word} is not in {}", failed.reason);
    }
    let mut cut = server.store(100, Purpose::Weights, &bytes(CHUNK_BYTES, 3));
    cut.blob.bytes += 1;
    let mut lost = cut;
    lost.blob.digest.0[0] ^= 1;
    for (number, (input, word)) in [(cut, "bytes"), (lost, "no such blob")].into_iter().enumerate() {
        server.assign(attempt(2 + number as i64), baselines(vec![input])).await;
        let failed = server.failed().await;
        assert!(!failed.retry && failed.reason.contains(word), "{}", failed.reason);
    }
    server.state().refuse_get = vec![Status::data_loss("chunk 0 is gone")];
    server.assign(attempt(9), baselines(vec![server.store(1, Purpose::Weights, b"x")])).await;
    let failed = server.failed().await;
    assert!(!failed.retry && failed.reason.contains("chunk 0 is gone"), "{}", failed.reason);
    assert_clean(data.path());
}

#[tokio::test]
async fn checkpoints_are_stored_before_their_job_is_finished_and_chunks_are_sent_once() {
    let (mut server, data) = (FakeServer::start().await, tempdir().unwrap());
    let written = bytes(2 * CHUNK_BYTES + 5, 1);
    let content = written.clone();
    let execute = job(move |work, inputs, sink| {
        match work {
            // The output of the first job is the input of the second.
            JobWork::Train { .. } => keep(sink, 200, Purpose::Resume, &content)?,
            _ => keep(sink, 300, Purpose::Weights, &std::fs::read(inputs.resume.as_ref().unwrap())?)?,
        };
        finished(work)
    });
    let _worker = Worker::start(config(&server, &data), execute);
    server.hello().await;
    server.assign(attempt(1), training(vec![])).await;
    let produced = Produced::try_from(server.finished().await.produced.unwrap()).unwrap();
    let [checkpoint] = produced.checkpoints[..] else { panic!("one checkpoint: {produced:?}") };
    assert_eq!((checkpoint.step, checkpoint.purpose), (200, Purpose::Resume));
    assert_eq!(server.stored(&checkpoint.blob), Some(written));
    assert_eq!(server.state().chunks_received, 3);

    server.state().blobs.clear();
    server.assign(attempt(2), baselines(vec![checkpoint])).await;
    let again = Produced::try_from(server.finished().await.produced.unwrap()).unwrap();
    assert_eq!(again.checkpoints[0].blob, checkpoint.blob);
    let state = server.state();
    assert_eq!((state.chunks_received, state.gets), (3, 0), "no chunk twice, no download of its own output");
    assert!(state.blobs.contains_key(&checkpoint.blob.digest));
}

#[tokio::test]
async fn a_slow_store_slows_the_job_down() {
    let (mut server, data) = (FakeServer::start().await, tempdir().unwrap());
    server.shared.put_blob.forget_permits(Semaphore::MAX_PERMITS);
    let done = Arc::new(AtomicUsize::new(0));
    let count = done.clone();
    let execute = job(move |work, _, sink| {
        for step in 1..=10 {
            keep(sink, step, Purpose::Weights, &[step as u8; 100])?;
            count.fetch_add(1, SeqCst);
        }
        finished(work)
    });
    let _worker = Worker::start(config(&server, &data), execute);
    server.hello().await;
    server.assign(attempt(1), training(vec![])).await;
    // One on its way, two waiting; the fourth is written and holds the job up.
    let cache = data.path().join("cache");
    eventually("four are written", || files(cache.clone()).len() == 4).await;
    for _ in 0..2 {
        server.any().await;
    }
    assert_eq!((done.load(SeqCst), files(cache.clone()).len()), (3, 4));
    server.shared.put_blob.add_permits(1);
    eventually("one more fits", || done.load(SeqCst) == 4).await;
    server.shared.put_blob.add_permits(9);
    let produced = server.finished().await.produced.unwrap();
    assert_eq!(produced.checkpoints.len(), 10);
    assert_eq!(server.state().blobs.len(), 10);
}

#[tokio::test]
async fn an_upload_endures_the_servers_absence() {
    let (mut server, data) = (FakeServer::start().await, tempdir().unwrap());
    server.shared.put_blob.forget_permits(Semaphore::MAX_PERMITS);
    let execute = job(|work, _, sink| {
        keep(sink, 1, Purpose::Weights, b"w")?;
        finished(work)
    });
    let _worker = Worker::start(config(&server, &data), execute);
    server.hello().await;
    server.assign(attempt(1), training(vec![])).await;
    eventually("the blob is declared", || server.state().put_blobs == 1).await;
    server.go_away();
    server.shared.put_blob.add_permits(1);
    eventually("the upload is refused", || server.shared.put_blob.available_permits() == 0).await;
    server.shared.put_blob.add_permits(1);
    server.come_back();
    assert_eq!(server.hello().await.attempts.len(), 1);
    server.finished().await;
    assert_eq!(server.state().blobs.len(), 1);
}

#[tokio::test]
async fn a_checkpoint_that_cannot_be_written_fails_the_attempt_and_leaves_nothing() {
    let (mut server, data) = (FakeServer::start().await, tempdir().unwrap());
    let execute = job(|work, _, sink| {
        sink.checkpoint(1, Purpose::Weights, &mut |to| {
            to.write_all(b"half")?;
            Err(ScienceError::Write(std::io::Error::other("no space left")))
        })?;
        finished(work)
    });
    let _worker = Worker::start(config(&server, &data), execute);
    server.hello().await;
    server.assign(attempt(1), training(vec![])).await;
    let failed = server.failed().await;
    assert!(failed.retry && failed.reason.contains("no space left"), "{}", failed.reason);
    assert_eq!(files(data.path().join("cache")), Vec::<String>::new());
}

//! What is removed and, above all, what is not.

use crate::fixture::*;
use std::{collections::BTreeMap, time::Duration};
use taskvec_model::{
    id::JobId,
    job::{BlobRef, Handover, Purpose},
    schedule::Change,
    state::{AttemptState, JobState},
};
use taskvec_store::{GcPolicy, GcReport, Leader, Outcome, StoreError};

const HOUR: Duration = Duration::from_secs(3600);

/// What would be removed, and that the same then is.
async fn gc(db: &Db, grace: Duration) -> GcReport {
    let planned = db.store.gc(GcPolicy { grace, dry_run: true }).await.expect("counts");
    let again = db.store.gc(GcPolicy { grace, dry_run: true }).await.expect("counts");
    assert_eq!(planned, again, "a dry run changes nothing");
    let done = db.store.gc(GcPolicy { grace, dry_run: false }).await.expect("removes");
    assert_eq!(planned, done);
    done
}

fn removed(checkpoints: u64, blobs: u64, chunks: u64, bytes: u64) -> GcReport {
    GcReport { checkpoints, blobs, chunks, bytes }
}

/// The first segment is done, with weights and state; the second is ready.
async fn half_trained() -> (Db, Leader) {
    let db = db().await;
    let mut leader = db.lead().await;
    leader.submit(&pretrain(), "", 0, None).await.expect("submits");
    let weights = checkpoint(10, Purpose::Weights, upload(&db.store, &[b"shared", b"weights"]).await);
    let state = checkpoint(10, Purpose::Resume, upload(&db.store, &[b"shared", b"moments"]).await);
    finish(&db, &mut leader, 2, outcome(Default::default(), vec![weights, state])).await;
    leader.commit(&[ready(3)], &BTreeMap::new()).await.expect("commits");
    (db, leader)
}

#[tokio::test]
async fn a_resume_checkpoint_goes_when_its_reader_is_done_and_weights_stay() {
    let (db, mut leader) = half_trained().await;
    assert_eq!(gc(&db, HOUR).await, removed(0, 0, 0, 0), "the next segment needs it");
    finish(&db, &mut leader, 3, Outcome::default()).await;
    assert_eq!(gc(&db, HOUR).await, removed(1, 1, 1, 7), "the shared chunk stays");
    assert_eq!(db.rows::<(String,)>("SELECT purpose FROM taskvec.checkpoints").await, [("weights".into(),)]);
    let kept: Vec<(Vec<u8>,)> = db.rows("SELECT data FROM taskvec.chunks ORDER BY data").await;
    assert_eq!(kept, [(b"shared".to_vec(),), (b"weights".to_vec(),)]);
    assert_eq!(gc(&db, Duration::ZERO).await, removed(0, 0, 0, 0));
}

#[tokio::test]
async fn what_a_failed_or_cancelled_job_reads_stays_for_its_retry() {
    let (db, mut leader) = half_trained().await;
    for state in [JobState::Failed, JobState::Cancelled, JobState::Skipped] {
        let set = Change::SetJobs { jobs: vec![JobId(3)], state, reason: None };
        leader.commit(&[set], &BTreeMap::new()).await.expect("commits");
        assert_eq!(gc(&db, Duration::ZERO).await, removed(0, 0, 0, 0), "{state}");
    }
    db.store.assignment(JobId(3)).await.expect("may be retried");
}

#[tokio::test]
async fn what_another_sweep_still_needs_stays() {
    let (db, mut leader) = half_trained().await;
    // The same first segment, then another second one.
    let mut other = pretrain();
    other.jobs[2].key = hash(b"other");
    leader.submit(&other, "", 0, None).await.expect("submits");
    finish(&db, &mut leader, 3, Outcome::default()).await;
    assert_eq!(gc(&db, HOUR).await, removed(0, 0, 0, 0));
    finish(&db, &mut leader, 10, Outcome::default()).await;
    assert_eq!(gc(&db, HOUR).await, removed(1, 1, 1, 7));
}

#[tokio::test]
async fn uploads_under_way_are_safe_for_the_grace_period() {
    let db = db().await;
    upload(&db.store, &[b"declared"]).await;
    db.store.put_chunk(hash(b"loose"), b"loose").await.expect("stores");
    assert_eq!(gc(&db, HOUR).await, removed(0, 0, 0, 0));
    db.run("UPDATE taskvec.chunks SET last_wanted_at = now() - interval '2 h'").await;
    db.run("UPDATE taskvec.blobs SET last_wanted_at = now() - interval '2 h'").await;
    // Asked for again: it must not vanish before its blob is declared.
    assert!(db.store.missing_chunks(&[hash(b"loose")]).await.expect("asks").is_empty());
    assert_eq!(gc(&db, HOUR).await, removed(0, 1, 1, 8));
    upload(&db.store, &[b"loose"]).await;
    assert_eq!(gc(&db, HOUR).await, removed(0, 0, 0, 0));
    assert_eq!(gc(&db, Duration::ZERO).await, removed(0, 1, 1, 5));
}

#[tokio::test]
async fn a_blob_that_is_uploaded_again_stays_though_its_checkpoint_goes() {
    let (db, mut leader) = half_trained().await;
    finish(&db, &mut leader, 3, Outcome::default()).await;
    upload(&db.store, &[b"shared", b"moments"]).await;
    assert_eq!(gc(&db, HOUR).await, removed(1, 0, 0, 0));
}

#[tokio::test]
async fn a_handover_keeps_its_blobs_until_the_job_is_done() {
    let (db, mut leader) = half_trained().await;
    let worker = db.worker(1).await;
    let blob = db.upload("state at 15").await;
    let handover = Handover { state: checkpoint(15, Purpose::Resume, blob), produced: Default::default() };
    let released = Change::End {
        attempt: attempt(3, 1),
        how: AttemptState::Released,
        job_state: JobState::Ready,
        failures: 0,
        reason: None,
    };
    let handed = outcomes([(3, 1, Outcome { handover: Some(handover), ..Default::default() })]);
    leader.commit(&[start(3, 1, worker), released], &handed).await.expect("commits");
    assert_eq!(gc(&db, Duration::ZERO).await, removed(0, 0, 0, 0));
    let handed = outcomes([(3, 2, Outcome::default())]);
    leader.commit(&[start(3, 2, worker), complete(3, 2)], &handed).await.expect("commits");
    assert_eq!(gc(&db, HOUR).await, removed(1, 2, 2, 18));
}

/// One try of an upload, as a worker makes it.
async fn try_upload(db: &Db, chunks: &[&[u8]]) -> Result<BlobRef, StoreError> {
    let manifest = manifest(chunks);
    for i in db.store.missing_chunks(&manifest.chunks).await? {
        db.store.put_chunk(manifest.chunks[i], chunks[i]).await?;
    }
    db.store.put_blob(&manifest).await.map(|()| manifest.blob)
}

#[tokio::test]
async fn what_was_accepted_beside_the_collector_is_whole() {
    let db = db().await;
    let mut leader = db.lead().await;
    leader.submit(&plan((1..=40).map(idle).collect()), "", 0, None).await.expect("submits");
    let store = db.store.clone();
    // Far too short a grace, so that many an upload has to be repeated; but what is accepted stays.
    let policy = GcPolicy { grace: Duration::from_millis(5), dry_run: false };
    let collector = tokio::spawn(async move {
        loop {
            store.gc(policy).await.expect("removes");
        }
    });
    for job in 1..=40 {
        let own = format!("part {job}");
        let worker = db.worker(1).await;
        leader.commit(&[start(job, 1, worker)], &BTreeMap::new()).await.expect("starts");
        loop {
            let Ok(blob) = try_upload(&db, &[b"common", own.as_bytes()]).await else { continue };
            let done = outcome(Default::default(), vec![checkpoint(1, Purpose::Weights, blob)]);
            match leader.commit(&[complete(job, 1)], &outcomes([(job, 1, done)])).await {
                Err(StoreError::MissingBlob { .. }) => continue,
                done => break done.expect("completes"),
            }
        }
    }
    collector.abort();
    let checkpoints = db.rows::<(Vec<u8>,)>("SELECT digest FROM taskvec.checkpoints").await;
    assert_eq!(checkpoints.len(), 40);
    for (digest,) in checkpoints {
        let mut reader = db.store.open_blob(digest.as_slice().try_into().expect("a digest")).await.expect("is there");
        while reader.next().await.expect("whole").is_some() {}
    }
}

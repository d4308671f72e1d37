//! One leader at a time, and what it finds when it starts.

use crate::fixture::*;
use std::{collections::BTreeMap, time::Duration};
use taskvec_model::{
    id::{JobId, SweepId},
    schedule::{Change, SlotRef},
    state::{AttemptState, JobState, SweepState, WorkerState},
};
use taskvec_store::{Outcome, StoreError};

#[tokio::test]
async fn there_is_one_leader_at_a_time() {
    let db = db().await;
    let first = db.lead().await;
    assert!(matches!(db.store.try_lead().await, Err(StoreError::AnotherLeader)));
    first.resign().await.expect("closes");
    db.lead().await;
}

#[tokio::test]
async fn whose_connection_is_gone_leads_no_more() {
    let db = db().await;
    let mut leader = db.lead().await;
    db.run("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())").await;
    let error = leader.load().await.expect_err("its connection is gone");
    assert!(error.is_unavailable(), "{error}");
    db.lead().await.load().await.expect("the next one leads");
    assert!(db.store.ping().await.is_ok());
}

#[tokio::test]
async fn an_older_epoch_stores_nothing() {
    let db = db().await;
    let mut leader = db.lead().await;
    leader.submit(&plan(vec![idle(1)]), "", 0, None).await.expect("submits");
    // As a second server would whose lock the first did not see.
    db.run("UPDATE taskvec.leader SET epoch = epoch + 1").await;
    let change = [Change::SetSweep { sweep: SweepId(1), state: SweepState::Cancelled }];
    assert!(matches!(leader.commit(&change, &BTreeMap::new()).await, Err(StoreError::Deposed)));
    assert!(matches!(leader.submit(&plan(vec![idle(2)]), "", 0, None).await, Err(StoreError::Deposed)));
    assert_eq!(db.rows::<(i64, String)>("SELECT sweep_id, state FROM results.sweeps").await, [(1, "active".into())]);
}

#[tokio::test]
async fn a_new_leader_finds_all_that_is_open_and_renews_the_leases() {
    let db = db().await;
    let mut leader = db.lead().await;
    leader.submit(&plan(vec![idle(1)]), "", 0, None).await.expect("submits");
    finish(&db, &mut leader, 1, Outcome::default()).await;
    let done = Change::SetSweep { sweep: SweepId(1), state: SweepState::Done };
    leader.commit(&[done], &BTreeMap::new()).await.expect("commits");
    leader.set_lease(Duration::ZERO);
    let submitted = leader.submit(&pretrain(), "", 5, None).await.expect("submits");
    let worker = db.worker(1).await;
    let gone = db.worker(2).await;
    let left = Change::SetWorker { worker: gone, state: WorkerState::Left };
    leader.commit(&[start_in(1, 3, 1, worker), left], &BTreeMap::new()).await.expect("commits");
    leader.resign().await.expect("closes");

    let mut leader = db.lead().await;
    let snapshot = leader.load().await.expect("loads");
    assert_eq!(snapshot.sweeps, std::slice::from_ref(&submitted.sweep));
    let mut expected = submitted.jobs.clone();
    let slot = Some(SlotRef { worker, number: 1 });
    (expected[1].state, expected[1].attempts, expected[1].slot) = (JobState::Running, 1, slot);
    assert_eq!(snapshot.jobs, expected);
    assert_eq!(snapshot.jobs[1].pack, pretrain().jobs[1].work.pack_key(), "what could share a slot still can");
    assert!(snapshot.jobs[1].pack.is_some() && snapshot.jobs[0].pack.is_none());
    assert_eq!(snapshot.jobs[2].needs, [JobId(3)]);
    let present: Vec<_> = snapshot.workers.iter().map(|w| (w.id, w.slots, w.state)).collect();
    assert!(present.contains(&(worker, 2, WorkerState::Connected)) && !present.iter().any(|w| w.0 == gone));
    assert!(
        db.one::<bool>(
            "SELECT bool_and(lease_expires_at > now() + interval '15 s') FROM taskvec.attempts WHERE state = 'running'"
        )
        .await
    );
    assert_eq!(leader.sweep(SweepId(2)).await.expect("loads"), (submitted.sweep, expected));
    assert!(matches!(leader.sweep(SweepId(9)).await, Err(StoreError::Unknown { what: "sweep", id: 9 })));
    let state = db.store.attempt_state(attempt(3, 1)).await.expect("asks");
    assert_eq!(
        (state, db.store.attempt_state(attempt(3, 2)).await.expect("asks")),
        (Some(AttemptState::Running), None)
    );
}

#[tokio::test]
async fn a_worker_keeps_its_id_by_its_nonce() {
    let db = db().await;
    let mut leader = db.lead().await;
    let (a, b) = (db.worker(1).await, db.worker(u64::MAX).await);
    assert!(a != b);
    for (set, kept) in [("lost", "connected"), ("draining", "draining"), ("left", "connected")] {
        let state = set.parse().expect("a state");
        leader.commit(&[Change::SetWorker { worker: b, state }], &BTreeMap::new()).await.expect("commits");
        assert_eq!(db.worker(u64::MAX).await, b);
        let (state, left): (String, bool) =
            db.rows("SELECT state, left_at IS NOT NULL FROM taskvec.workers WHERE nonce = -1").await.remove(0);
        assert_eq!((state.as_str(), left), (kept, false), "after {set}");
    }
}

/// Before packs no attempt had a slot of which the store knew.
#[tokio::test]
async fn attempts_that_ran_before_there_were_packs_have_a_slot_each() {
    const MIGRATION: &str = include_str!("../../../../migrations/0005_packs.sql");
    let db = db().await;
    let mut leader = db.lead().await;
    leader.submit(&plan((1..=4).map(idle).collect()), "", 0, None).await.expect("submits");
    let (one, other) = (db.worker(1).await, db.worker(2).await);
    let changes = [start(1, 1, one), start(2, 1, other), start(3, 1, one), start(4, 1, one), complete(4, 1)];
    let done = BTreeMap::from([(attempt(4, 1), Outcome::default())]);
    leader.commit(&changes, &done).await.expect("commits");
    let (_, update) = MIGRATION.split_at(MIGRATION.find("UPDATE").expect("it updates"));
    db.run(update).await;
    let slots: Vec<_> = leader.load().await.expect("loads").jobs.into_iter().filter_map(|job| job.slot).collect();
    let slot = |worker, number| SlotRef { worker, number };
    assert_eq!(slots, [slot(one, 0), slot(other, 0), slot(one, 1)]);
}

#[tokio::test]
async fn migrations_may_run_again() {
    let db = db().await;
    db.store.migrate().await.expect("nothing to do");
    db.run("UPDATE taskvec._sqlx_migrations SET checksum = '\\x00' WHERE version = 1").await;
    let error = db.store.migrate().await.expect_err("an applied migration was edited");
    assert!(error.to_string().starts_with("the database cannot be brought up to date: migration 1"), "{error}");
}

#[tokio::test]
async fn urls_that_lead_nowhere_are_told_apart() {
    assert!(matches!(taskvec_store::Store::connect("nonsense", 1).await, Err(StoreError::BadUrl(_))));
    let error = taskvec_store::Store::connect("postgres://me:pw@127.0.0.1:1/x", 1).await.err().expect("nobody listens");
    assert!(error.is_unavailable(), "{error}");
    let wrong = url("postgres").replace(crate::postgres::PASSWORD, "wrong");
    let error = taskvec_store::Store::connect(&wrong, 1).await.err().expect("the wrong password");
    assert!(!error.is_unavailable() && error.to_string().contains("password authentication failed"), "{error}");
}

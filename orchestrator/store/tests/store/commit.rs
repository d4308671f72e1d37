//! Changes: what each does, what each refuses, and that a batch is stored whole or not at all.

use crate::fixture::*;
use std::{collections::BTreeMap, time::Duration};
use taskvec_model::{
    id::{JobId, SweepId, WorkerId},
    job::{BlobRef, Handover, Produced, Purpose},
    metric::TdBound,
    schedule::Change,
    state::{AttemptState, JobState, SweepState},
};
use taskvec_store::{Leader, Outcome, StoreError};

/// A sweep of `n` ready jobs with keys 1 …, a leader and a worker.
async fn ready_jobs(n: u8) -> (Db, Leader, WorkerId) {
    let db = db().await;
    let mut leader = db.lead().await;
    leader.submit(&plan((1..=n).map(idle).collect()), "", 0, None).await.expect("submits");
    let worker = db.worker(1).await;
    (db, leader, worker)
}

async fn do_all(leader: &mut Leader, changes: &[Change]) {
    leader.commit(changes, &BTreeMap::new()).await.expect("commits");
}

async fn states(db: &Db) -> Vec<(String, i32)> {
    db.rows("SELECT state, attempts FROM results.jobs ORDER BY job_id").await
}

fn end(job: i64, how: AttemptState, job_state: JobState, failures: u32, reason: Option<&str>) -> Change {
    Change::End { attempt: attempt(job, 1), how, job_state, failures, reason: reason.map(str::to_owned) }
}

#[tokio::test]
async fn a_job_runs_and_is_done_with_all_it_produced() {
    let (db, mut leader, worker) = ready_jobs(1).await;
    do_all(&mut leader, &[start(1, 1, worker)]).await;
    assert_eq!(states(&db).await, [("running".into(), 1)]);
    let blob = db.upload("weights").await;
    let done = outcome(metrics(0.125), vec![checkpoint(10, Purpose::Weights, blob)]);
    leader.commit(&[complete(1, 1)], &outcomes([(1, 1, done)])).await.expect("commits");
    assert_eq!(states(&db).await, [("done".into(), 1)]);
    let (worker, started, finished, error): (String, bool, bool, Option<String>) = db
        .rows("SELECT worker, started_at IS NOT NULL, finished_at >= started_at, error FROM results.jobs")
        .await
        .remove(0);
    assert_eq!((worker.as_str(), started, finished, error), ("w1", true, true, None));
    let rows: Vec<i64> = db
        .rows::<(i64,)>(
            "SELECT count(*) FROM taskvec.train_loss WHERE loss = 0.125 UNION ALL
             SELECT count(*) FROM taskvec.icl WHERE value = 0.125 AND metric = 'mse' UNION ALL
             SELECT count(*) FROM taskvec.baselines WHERE mse = 0.125 AND estimator = 'oracle' UNION ALL
             SELECT count(*) FROM taskvec.td WHERE value = 0.125 AND site = 'x' UNION ALL
             SELECT count(*) FROM taskvec.td_bound WHERE value = 0.125 UNION ALL
             SELECT count(*) FROM taskvec.td_pairs WHERE value = 0.125 AND latent_task_b = 'B2' UNION ALL
             SELECT count(*) FROM taskvec.interventions
                 WHERE (patched, baseline, mode, positions) = (0.125, 0.5, 'replace', 'last') UNION ALL
             SELECT count(*) FROM taskvec.lens WHERE (accuracy, log_prob, rank, n) = (0.125, -1.5, 2.5, 100)",
        )
        .await
        .into_iter()
        .map(|r| r.0)
        .collect();
    assert_eq!(rows, [1, 2, 1, 1, 1, 1, 1, 1]);
    let log: (String, Option<String>) = db.rows("SELECT state, log FROM taskvec.attempts").await.remove(0);
    assert_eq!(log, ("succeeded".into(), Some("worked\n".into())));
    assert_eq!(db.one::<i64>("SELECT count(*) FROM taskvec.checkpoints").await, 1);
}

#[tokio::test]
async fn numbers_and_names_come_back_exactly() {
    let values = [0.1, -1.0 / 3.0, f64::MIN_POSITIVE, f64::MAX, 5e-324, 1e22, -0.0, f64::NAN, f64::NEG_INFINITY];
    let (db, mut leader, _) = ready_jobs(1).await;
    let mut odd = metrics(0.0);
    odd.td_bound = values
        .iter()
        .zip(0..)
        .map(|(value, shots)| TdBound { latent_task: "B1".into(), shots, value: *value })
        .collect();
    let name = "a\tb\n\\N\\.\r'é";
    odd.icl[1].latent_task = name.into();
    finish(&db, &mut leader, 1, outcome(odd, vec![])).await;
    let stored = db.rows::<(f64,)>("SELECT value FROM taskvec.td_bound ORDER BY shots").await;
    let bits = |v: f64| if v.is_nan() { u64::MAX } else { v.to_bits() };
    assert_eq!(stored.iter().map(|r| bits(r.0)).collect::<Vec<_>>(), values.map(bits));
    let icl = db.rows::<(String, Option<i32>)>("SELECT latent_task, position FROM taskvec.icl ORDER BY position").await;
    assert_eq!(icl, [(name.into(), Some(6)), ("B1".into(), None)]);
}

#[tokio::test]
async fn only_the_newest_running_attempt_with_a_lease_completes() {
    let (db, mut leader, worker) = ready_jobs(4).await;
    let all: Vec<Change> = (1..=4).map(|j| start(j, 1, worker)).collect();
    do_all(&mut leader, &all).await;
    let expired = end(1, AttemptState::Expired, JobState::Ready, 1, Some("its lease ran out"));
    do_all(&mut leader, &[expired, start(1, 2, worker)]).await;
    db.run("UPDATE taskvec.attempts SET lease_expires_at = now() WHERE job_id = 2").await;
    let cancelled = end(3, AttemptState::Cancelled, JobState::Cancelled, 0, None);
    do_all(&mut leader, &[cancelled]).await;
    let before = states(&db).await;
    for (job, number) in [(1, 1), (1, 3), (2, 1), (3, 1), (9, 1)] {
        // Job 4 is fine, but shares the fate of the other.
        let handed = outcomes([(4, 1, outcome(metrics(1.0), vec![])), (job, number, Outcome::default())]);
        let error = leader.commit(&[complete(4, 1), complete(job, number)], &handed).await.expect_err("a stale one");
        assert!(matches!(error, StoreError::Stale(a) if a == attempt(job, number)), "{error}");
        assert_eq!(states(&db).await, before, "job {job} attempt {number}");
        assert_eq!(db.one::<i64>("SELECT count(*) FROM taskvec.results").await, 0);
    }
    let handed = outcomes([(1, 2, Outcome::default()), (4, 1, Outcome::default())]);
    leader.commit(&[complete(4, 1), complete(1, 2)], &handed).await.expect("both hold their leases");
}

#[tokio::test]
async fn only_ready_jobs_start_with_the_next_number() {
    let (db, mut leader, worker) = ready_jobs(2).await;
    for (job, number) in [(1, 2), (1, 0), (7, 1)] {
        let error = leader.commit(&[start(2, 1, worker), start(job, number, worker)], &BTreeMap::new()).await;
        assert!(matches!(error, Err(StoreError::Stale(a)) if a == attempt(job, number)), "{error:?}");
    }
    do_all(&mut leader, &[start(1, 1, worker)]).await;
    let again = leader.commit(&[start(1, 2, worker)], &BTreeMap::new()).await;
    assert!(matches!(again, Err(StoreError::Stale(_))), "it runs already");
    assert_eq!(states(&db).await, [("running".into(), 1), ("ready".into(), 0)]);
}

#[tokio::test]
async fn leases_are_renewed_even_late_but_only_while_running() {
    let (db, mut leader, worker) = ready_jobs(2).await;
    leader.set_lease(Duration::from_millis(1));
    do_all(&mut leader, &[start(1, 1, worker), start(2, 1, worker)]).await;
    leader.set_lease(Duration::from_secs(100));
    tokio::time::sleep(Duration::from_millis(5)).await;
    do_all(&mut leader, &[Change::Renew { attempts: vec![attempt(1, 1), attempt(2, 1)] }]).await;
    let left = "SELECT min(extract(epoch FROM lease_expires_at - now()))::float8 FROM taskvec.attempts";
    assert!((95.0..=100.0).contains(&db.one::<f64>(left).await));
    do_all(&mut leader, &[end(2, AttemptState::Expired, JobState::Ready, 1, None)]).await;
    let error =
        leader.commit(&[Change::Renew { attempts: vec![attempt(1, 1), attempt(2, 1)] }], &BTreeMap::new()).await;
    assert!(matches!(error, Err(StoreError::Stale(a)) if a == attempt(2, 1)));
}

#[tokio::test]
async fn failures_are_counted_and_said_until_the_job_succeeds() {
    let (db, mut leader, worker) = ready_jobs(2).await;
    do_all(&mut leader, &[start(1, 1, worker), start(2, 1, worker)]).await;
    let long = format!("{}\0tail", "x".repeat(70_000));
    let handed = outcomes([(1, 1, Outcome { log: long, ..Default::default() })]);
    let changes = [
        end(1, AttemptState::Failed, JobState::Ready, 1, Some("disk full")),
        end(2, AttemptState::Failed, JobState::Failed, 3, Some("diverged")),
    ];
    leader.commit(&changes, &handed).await.expect("commits");
    let rows: Vec<(String, Option<String>, bool)> =
        db.rows("SELECT state, error, finished_at IS NOT NULL FROM results.jobs ORDER BY job_id").await;
    assert_eq!(
        rows,
        [("ready".into(), Some("disk full".into()), false), ("failed".into(), Some("diverged".into()), true)]
    );
    let log: String = db.one("SELECT log FROM taskvec.attempts WHERE job_id = 1").await;
    assert!(log.len() <= 65_536 && log.starts_with("[…]\nxx") && log.ends_with("\u{fffd}tail"));
    assert_eq!(db.rows::<(i32,)>("SELECT failures FROM taskvec.jobs ORDER BY job_id").await, [(1,), (3,)]);

    let retry = [Change::ForgetFailures { jobs: vec![JobId(2)] }, ready(2), start(2, 2, worker), start(1, 2, worker)];
    do_all(&mut leader, &retry).await;
    assert_eq!(db.rows::<(i32,)>("SELECT failures FROM taskvec.jobs ORDER BY job_id").await, [(1,), (0,)]);
    let handed = outcomes([(1, 2, Outcome::default()), (2, 2, Outcome::default())]);
    leader.commit(&[complete(1, 2), complete(2, 2)], &handed).await.expect("commits");
    assert_eq!(db.rows::<(Option<String>,)>("SELECT error FROM results.jobs").await, [(None,), (None,)]);
}

#[tokio::test]
async fn a_failure_that_comes_after_the_lease_is_stale() {
    let (db, mut leader, worker) = ready_jobs(1).await;
    do_all(&mut leader, &[start(1, 1, worker)]).await;
    db.run("UPDATE taskvec.attempts SET lease_expires_at = now()").await;
    let failed = [end(1, AttemptState::Failed, JobState::Ready, 1, Some("late"))];
    let error = leader.commit(&failed, &outcomes([(1, 1, Outcome::default())])).await;
    assert!(matches!(error, Err(StoreError::Stale(a)) if a == attempt(1, 1)));
    // The scheduler itself may end it.
    do_all(&mut leader, &[end(1, AttemptState::Expired, JobState::Ready, 1, Some("its lease ran out"))]).await;
}

#[tokio::test]
async fn one_attempt_finishes_all_jobs_of_its_key() {
    let db = db().await;
    let mut leader = db.lead().await;
    leader.submit(&plan(vec![idle(1), idle(2)]), "", 0, None).await.expect("submits");
    leader.submit(&plan(vec![idle(1)]), "", 0, None).await.expect("submits");
    let worker = db.worker(1).await;
    do_all(&mut leader, &[start(1, 1, worker)]).await;
    let both = |other| [Change::Complete { attempt: attempt(1, 1), jobs: vec![JobId(1), JobId(other)] }];
    let handed = || outcomes([(1, 1, outcome(metrics(1.0), vec![]))]);
    let error = leader.commit(&both(2), &handed()).await.expect_err("job 2 has another key");
    assert!(matches!(error, StoreError::Conflict(_)), "{error}");
    leader.commit(&both(3), &handed()).await.expect("job 3 has the same");
    let rows: Vec<(i64, String, Option<i64>)> =
        db.rows("SELECT job_id, state, result_id FROM taskvec.jobs ORDER BY job_id").await;
    let result = rows[0].2;
    assert!(result.is_some());
    assert_eq!(rows, [(1, "done".into(), result), (2, "ready".into(), None), (3, "done".into(), result)]);
    assert_eq!(db.one::<i64>("SELECT count(*) FROM taskvec.td").await, 1, "stored once");
}

#[tokio::test]
async fn a_result_that_is_computed_again_only_restores_its_checkpoints() {
    let (db, mut leader, worker) = ready_jobs(1).await;
    let blob = db.upload("weights").await;
    finish(&db, &mut leader, 1, outcome(metrics(1.0), vec![checkpoint(10, Purpose::Weights, blob)])).await;
    db.run("DELETE FROM taskvec.checkpoints").await;
    // The second job needs the checkpoint that is gone, so the first must run again.
    let mut second = pretrain();
    second.jobs = vec![
        idle(1),
        job(
            train(10, 20),
            Some(20),
            2,
            vec![taskvec_model::plan::Need { job: 0, step: 10, purpose: Purpose::Weights }],
        ),
    ];
    let submitted = leader.submit(&second, "", 0, None).await.expect("submits");
    assert_eq!((submitted.cached, submitted.jobs[0].state), (0, JobState::Ready));
    do_all(&mut leader, &[start(2, 1, worker)]).await;
    let again = outcome(metrics(2.0), vec![checkpoint(10, Purpose::Weights, blob)]);
    leader.commit(&[complete(2, 1), ready(3)], &outcomes([(2, 1, again)])).await.expect("commits");
    assert_eq!(db.rows::<(f64,)>("SELECT value FROM taskvec.td").await, [(1.0,)]);
    let assigned = db.store.assignment(JobId(3)).await.expect("its input is back");
    assert_eq!(assigned.inputs, [checkpoint(10, Purpose::Weights, blob)]);
}

#[tokio::test]
async fn outcomes_that_cannot_be_stored_are_named_and_store_nothing() {
    let (db, mut leader, worker) = ready_jobs(1).await;
    do_all(&mut leader, &[start(1, 1, worker)]).await;
    let mut doubled = metrics(1.0);
    doubled.td.push(doubled.td[0].clone());
    let mut unnamed = metrics(1.0);
    unnamed.icl[0].latent_task = "B\0".into();
    let mut huge = metrics(1.0);
    huge.baselines[0].position = Some(u32::MAX);
    let mut again = metrics(1.0);
    again.interventions.push(again.interventions[0].clone());
    let mut pair = metrics(1.0);
    pair.td_pairs[0].latent_task_b = "x".repeat(201);
    let mut deep = metrics(1.0);
    deep.lens[0].layer = u32::MAX;
    for (bad, why) in [
        (doubled, "two rows of td for"),
        (unnamed, "cannot name a latent task"),
        (huge, "is above 2147483647"),
        (again, "two rows of interventions"),
        (pair, "cannot name a latent task"),
        (deep, "is above 2147483647"),
    ] {
        let bad = outcome(bad, vec![]);
        let asked = db.store.check_outcome(attempt(1, 1), &bad).await.expect_err(why);
        assert!(matches!(&asked, StoreError::BadOutcome { why: said, .. } if said.contains(why)), "{asked}");
        let error = leader.commit(&[complete(1, 1)], &outcomes([(1, 1, bad)])).await.expect_err(why);
        assert!(matches!(error, StoreError::BadOutcome { .. }), "{error}");
    }
    let nowhere = BlobRef { digest: hash(b"never uploaded"), bytes: 3 };
    let bad = outcome(metrics(1.0), vec![checkpoint(10, Purpose::Weights, nowhere)]);
    assert!(matches!(db.store.check_outcome(attempt(1, 1), &bad).await, Err(StoreError::MissingBlob { .. })));
    let error = leader.commit(&[complete(1, 1)], &outcomes([(1, 1, bad)])).await;
    assert!(matches!(error, Err(StoreError::MissingBlob { digest, .. }) if digest == nowhere.digest));
    let wrong_size = BlobRef { bytes: 1, ..db.upload("weights").await };
    let bad = outcome(metrics(1.0), vec![checkpoint(10, Purpose::Weights, wrong_size)]);
    let error = db.store.check_outcome(attempt(1, 1), &bad).await.expect_err("another size");
    assert!(error.to_string().ends_with("has 7 bytes, not 1"), "{error}");
    assert_eq!(db.one::<i64>("SELECT count(*) FROM taskvec.results").await, 0);
    assert_eq!(states(&db).await, [("running".into(), 1)]);
    db.store.check_outcome(attempt(1, 1), &outcome(metrics(1.0), vec![])).await.expect("a good one");
}

#[tokio::test]
async fn a_released_segment_goes_on_from_its_handover_and_a_failed_one_does_not() {
    let db = db().await;
    let mut leader = db.lead().await;
    leader.submit(&pretrain(), "", 0, None).await.expect("submits");
    let worker = db.worker(1).await;
    let (state, weights) = (db.upload("state at 7").await, db.upload("weights at 5").await);
    let handover = Handover {
        state: checkpoint(7, Purpose::Resume, state),
        produced: Produced { metrics: metrics(1.0), checkpoints: vec![checkpoint(5, Purpose::Weights, weights)] },
    };
    let released = |h: &Handover| Outcome { handover: Some(h.clone()), ..Default::default() };
    let give_back = end(2, AttemptState::Released, JobState::Ready, 0, Some("the worker leaves"));
    do_all(&mut leader, &[start(2, 1, worker)]).await;
    let lost = Handover {
        state: checkpoint(7, Purpose::Resume, BlobRef { digest: hash(b"-"), bytes: 1 }),
        ..handover.clone()
    };
    let error = leader.commit(std::slice::from_ref(&give_back), &outcomes([(2, 1, released(&lost))])).await;
    assert!(matches!(error, Err(StoreError::MissingBlob { .. })));
    leader.commit(&[give_back], &outcomes([(2, 1, released(&handover))])).await.expect("commits");
    let assigned = db.store.assignment(JobId(2)).await.expect("assigns");
    assert_eq!((assigned.work, assigned.handover), (train(0, 10), Some(handover)));
    assert_eq!(db.one::<Option<String>>("SELECT error FROM results.jobs WHERE job_id = 2").await, None);

    let expired = Change::End {
        attempt: attempt(2, 2),
        how: AttemptState::Expired,
        job_state: JobState::Ready,
        failures: 1,
        reason: None,
    };
    do_all(&mut leader, &[start(2, 2, worker), expired]).await;
    assert!(db.store.assignment(JobId(2)).await.expect("assigns").handover.is_some(), "kept through a lost worker");
    let failed = Change::End {
        attempt: attempt(2, 3),
        how: AttemptState::Failed,
        job_state: JobState::Ready,
        failures: 2,
        reason: None,
    };
    do_all(&mut leader, &[start(2, 3, worker), failed]).await;
    assert_eq!(db.store.assignment(JobId(2)).await.expect("assigns").handover, None);
    assert_eq!(db.one::<i64>("SELECT count(*) FROM taskvec.handover_blobs").await, 0);
}

#[tokio::test]
async fn states_of_jobs_sweeps_and_priorities_are_set() {
    let (db, mut leader, worker) = ready_jobs(3).await;
    let skip = Change::SetJobs { jobs: vec![JobId(2)], state: JobState::Skipped, reason: Some("job 1 failed".into()) };
    let sweep = SweepId(1);
    let changes = [
        start(1, 1, worker),
        skip,
        Change::SetPriority { sweep, priority: -3 },
        Change::SetSweep { sweep, state: SweepState::Cancelled },
    ];
    do_all(&mut leader, &changes).await;
    let jobs: Vec<(String, Option<String>, bool)> =
        db.rows("SELECT state, error, finished_at IS NULL FROM results.jobs ORDER BY job_id OFFSET 1").await;
    assert_eq!(jobs, [("skipped".into(), Some("job 1 failed".into()), false), ("ready".into(), None, true)]);
    let sweeps = "SELECT state, priority, finished_at IS NULL FROM results.sweeps";
    assert_eq!(db.rows::<(String, i32, bool)>(sweeps).await, [("cancelled".into(), -3, false)]);
    do_all(&mut leader, &[ready(2), Change::SetSweep { sweep, state: SweepState::Active }]).await;
    assert_eq!(db.rows::<(String, i32, bool)>(sweeps).await, [("active".into(), -3, true)]);
    assert_eq!(db.one::<Option<String>>("SELECT error FROM results.jobs WHERE job_id = 2").await, None);
    for bad in [
        ready(1),
        ready(9),
        Change::SetSweep { sweep: SweepId(9), state: SweepState::Done },
        Change::SetPriority { sweep: SweepId(9), priority: 0 },
        Change::ForgetFailures { jobs: vec![JobId(9)] },
        Change::SetWorker { worker: WorkerId(9), state: taskvec_model::state::WorkerState::Lost },
    ] {
        let error = leader.commit(&[ready(3), bad], &BTreeMap::new()).await.expect_err("it does not fit");
        assert!(matches!(error, StoreError::Conflict(_)), "{error}");
    }
    let error = leader.commit(&[complete(1, 1)], &BTreeMap::new()).await.expect_err("no outcome");
    assert_eq!(error.to_string(), "job 1 attempt 1 succeeds without an outcome");
}

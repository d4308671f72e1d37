//! Submission, the cache, assignments and the state of a sweep.

use crate::fixture::*;
use std::collections::{BTreeMap, BTreeSet};
use taskvec_model::{
    id::{JobId, SweepId},
    job::Purpose,
    plan::CachedResult,
    schedule::Change,
    spec::RunSpec,
    state::{JobState, SweepState},
};
use taskvec_store::{Leader, Outcome, StoreError};

/// Finishes everything of `pretrain`, submitted as jobs 1 to 7.
async fn run_all(db: &Db, leader: &mut Leader) {
    finish(db, leader, 1, outcome(metrics(0.0), vec![])).await;
    let (weights, resume) = (db.upload("weights at 10").await, db.upload("state at 10").await);
    let first = vec![checkpoint(10, Purpose::Weights, weights), checkpoint(10, Purpose::Resume, resume)];
    finish(db, leader, 2, outcome(metrics(1.0), first)).await;
    leader.commit(&[ready(3), ready(4), ready(5)], &BTreeMap::new()).await.expect("commits");
    finish(db, leader, 3, outcome(metrics(2.0), vec![checkpoint(20, Purpose::Weights, db.upload("w20").await)])).await;
    for job in [4, 5] {
        finish(db, leader, job, outcome(metrics(job as f64), vec![])).await;
    }
    leader.commit(&[ready(6), ready(7)], &BTreeMap::new()).await.expect("commits");
    for job in [6, 7] {
        finish(db, leader, job, outcome(metrics(job as f64), vec![])).await;
    }
    let done = Change::SetSweep { sweep: SweepId(1), state: SweepState::Done };
    leader.commit(&[done], &BTreeMap::new()).await.expect("commits");
}

#[tokio::test]
async fn a_sweep_is_stored_with_ids_from_one_and_no_gaps() {
    let db = db().await;
    let mut leader = db.lead().await;
    let plan = pretrain();
    let mut bad = plan.clone();
    bad.name = "NUL\0".into();
    leader.submit(&bad, "", 0, None).await.expect_err("the database refuses it");
    let submitted = leader.submit(&plan, "kind: selftest\n", 7, None).await.expect("submits");
    let ids: Vec<i64> = submitted.jobs.iter().map(|j| j.id.0).collect();
    assert_eq!((submitted.sweep.id.0, submitted.sweep.priority, ids), (1, 7, (1..=7).collect()));
    let states: Vec<JobState> = submitted.jobs.iter().map(|j| j.state).collect();
    use JobState::{Ready, Waiting};
    assert_eq!(states, [Ready, Ready, Waiting, Waiting, Waiting, Waiting, Waiting]);
    assert_eq!(leader.load().await.expect("loads").jobs, submitted.jobs);
    let yaml: String = db.one("SELECT yaml FROM taskvec.sweeps").await;
    assert_eq!(yaml, "kind: selftest\n");
    let spec: serde_json::Value = db.one("SELECT spec FROM results.runs").await;
    assert_eq!(serde_json::from_value::<RunSpec>(spec).expect("reads"), plan.runs[0].spec);
    let second = leader.submit(&plan, "", 0, None).await.expect("submits");
    assert_eq!((second.sweep.id.0, second.jobs[0].id.0, second.jobs[0].run.0), (2, 8, 2));
}

#[tokio::test]
async fn what_was_computed_is_not_computed_again() {
    let db = db().await;
    let mut leader = db.lead().await;
    leader.submit(&pretrain(), "", 0, None).await.expect("submits");
    run_all(&db, &mut leader).await;
    let again = leader.submit(&pretrain(), "", 0, None).await.expect("submits");
    assert_eq!((again.cached, again.sweep.state), (7, SweepState::Done));
    assert!(again.jobs.iter().all(|j| j.state == JobState::Done));
    let (cached, finished): (i64, i64) = db
        .rows("SELECT count(*) FILTER (WHERE cached), count(finished_at) FROM results.jobs WHERE sweep_id = 2")
        .await
        .remove(0);
    assert_eq!((cached, finished), (7, 7));
    let rows = "SELECT run_id, step, value FROM results.td ORDER BY run_id, step";
    let td: Vec<(i64, i64, f64)> = db.rows(rows).await;
    assert_eq!(td, [(1, 10, 5.0), (1, 20, 7.0), (2, 10, 5.0), (2, 20, 7.0)]);
    assert_eq!(db.one::<i64>("SELECT count(*) FROM taskvec.td WHERE value IN (5, 7)").await, 2, "stored once");
    assert!(db.one::<bool>("SELECT finished_at IS NOT NULL FROM results.sweeps WHERE sweep_id = 2").await);

    // One more analysis at step 20: only that is computed, from the stored checkpoint.
    let mut more = pretrain();
    let mut extra = more.jobs[6].clone();
    extra.key = hash(b"another k");
    more.jobs.push(extra);
    let third = leader.submit(&more, "", 0, None).await.expect("submits");
    assert_eq!((third.cached, third.jobs[7].state, third.sweep.state), (7, JobState::Ready, SweepState::Active));
    assert!(!db.store.assignment(third.jobs[7].id).await.expect("assigns").inputs.is_empty());
}

#[tokio::test]
async fn a_cached_job_whose_checkpoint_is_needed_and_gone_runs_again() {
    let db = db().await;
    let mut leader = db.lead().await;
    leader.submit(&pretrain(), "", 0, None).await.expect("submits");
    run_all(&db, &mut leader).await;
    db.run("DELETE FROM taskvec.checkpoints WHERE purpose = 'resume' OR step = 20").await;
    let keys: Vec<_> = pretrain().jobs.iter().map(|j| j.key).chain([hash(b"unknown")]).collect();
    let found = db.store.cached(&keys).await.expect("looks up");
    let expected = CachedResult { checkpoints: BTreeSet::from([(10, Purpose::Weights)]) };
    assert_eq!((found.len(), found.get(&keys[1]), found.get(&keys[7])), (7, Some(&expected), None));
    let mut more = pretrain();
    more.jobs[6].key = hash(b"another k");
    let submitted = leader.submit(&more, "", 0, None).await.expect("submits");
    let open: Vec<(i64, JobState)> =
        submitted.jobs.iter().filter(|j| !j.state.ended()).map(|j| (j.id.0 - 7, j.state)).collect();
    // Its weights, for which the segment, for which the state of the one before.
    assert_eq!(open, [(2, JobState::Ready), (3, JobState::Waiting), (7, JobState::Waiting)]);
}

#[tokio::test]
async fn a_repeated_analysis_shows_once() {
    let db = db().await;
    let mut leader = db.lead().await;
    let mut twice = pretrain();
    twice.jobs.push(twice.jobs[0].clone());
    leader.submit(&twice, "", 0, None).await.expect("submits");
    let worker = db.worker(1).await;
    let both = Change::Complete { attempt: attempt(1, 1), jobs: vec![JobId(1), JobId(8)] };
    let handed = outcomes([(1, 1, outcome(metrics(1.0), vec![]))]);
    leader.commit(&[start(1, 1, worker), both], &handed).await.expect("commits");
    assert_eq!(db.one::<i64>("SELECT count(*) FROM results.baselines").await, 1);
    assert_eq!(db.one::<i64>("SELECT count(*) FROM results.td_bound").await, 1);
    assert_eq!(db.one::<i64>("SELECT count(*) FROM results.jobs WHERE state = 'done'").await, 2);
}

#[tokio::test]
async fn assignments_have_the_work_and_the_checkpoints_it_reads() {
    let db = db().await;
    let mut leader = db.lead().await;
    leader.submit(&pretrain(), "", 0, None).await.expect("submits");
    let all: Vec<JobId> = (1..=8).map(JobId).collect();
    let mut before = db.store.assignments(&all).await.expect("asks");
    assert_eq!(before.len(), 7);
    let missing = before.remove(&JobId(3)).expect("known").expect_err("nothing is stored yet");
    assert_eq!(missing.to_string(), "job 3 reads the resume checkpoint at step 10 of job 2, which is not stored");
    assert_eq!(before.remove(&JobId(2)).expect("known").expect("needs nothing").work, train(0, 10));
    run_all(&db, &mut leader).await;
    let assigned = db.store.assignment(JobId(3)).await.expect("assigns");
    let state = db.upload("state at 10").await;
    assert_eq!((assigned.work, assigned.handover), (train(10, 20), None));
    assert_eq!(assigned.inputs, [checkpoint(10, Purpose::Resume, state)]);
    assert!(matches!(db.store.assignment(JobId(8)).await, Err(StoreError::Unknown { what: "job", id: 8 })));
}

#[tokio::test]
async fn progress_says_how_far_a_sweep_is() {
    let db = db().await;
    let mut leader = db.lead().await;
    leader.submit(&pretrain(), "", 0, None).await.expect("submits");
    let at_first = db.store.sweep_progress(SweepId(1)).await.expect("asks");
    assert_eq!((at_first.jobs, at_first.runs[0].state.as_str()), ([5, 2, 0, 0, 0, 0, 0], "waiting"));
    finish(&db, &mut leader, 2, outcome(metrics(1.0), vec![])).await;
    let worker = db.worker(1).await;
    leader.commit(&[ready(3), start(3, 1, worker)], &BTreeMap::new()).await.expect("commits");
    let p = db.store.sweep_progress(SweepId(1)).await.expect("asks");
    assert_eq!((p.name.as_str(), p.state, p.jobs, p.cached), ("small", SweepState::Active, [4, 1, 1, 1, 0, 0, 0], 0));
    assert_eq!((p.flops_total, p.flops_done), (70.0, 10.0));
    let run = &p.runs[0];
    assert_eq!((run.state.as_str(), run.step, run.steps, run.training), ("running", 10, 20, Some(JobId(3))));
    assert_eq!((run.jobs_done, run.jobs_total, &run.params), (1, 7, &serde_json::json!({ "seed": 3 })));
    let job = db.store.job(JobId(3)).await.expect("asks");
    assert_eq!((job.sweep.0, job.run.0, job.state, job.attempts), (1, 1, JobState::Running, 1));
    assert!(matches!(db.store.job(JobId(99)).await, Err(StoreError::Unknown { what: "job", id: 99 })));
    assert!(matches!(db.store.sweep_progress(SweepId(5)).await, Err(StoreError::Unknown { what: "sweep", id: 5 })));
}

#[tokio::test]
async fn plans_that_do_not_fit_are_refused_with_a_reason() {
    let db = db().await;
    let mut leader = db.lead().await;
    let mut seed = plan(vec![idle(1)]);
    if let RunSpec::Selftest(s) = &mut seed.runs[0].spec {
        s.seed = u64::MAX;
    }
    let mut run = plan(vec![idle(1)]);
    run.jobs[0].run = 1;
    let mut order = pretrain();
    order.jobs.swap(1, 2);
    for (bad, why) in [
        (seed, "the sweep cannot be stored: seed 18446744073709551615 of run 1 is above 9223372036854775807"),
        (run, "the sweep cannot be stored: job 1 belongs to no run or needs a later job"),
        (order, "the sweep cannot be stored: job 2 belongs to no run or needs a later job"),
    ] {
        assert_eq!(leader.submit(&bad, "", 0, None).await.expect_err(why).to_string(), why);
    }
    assert_eq!(db.one::<i64>("SELECT count(*) FROM taskvec.sweeps").await, 0);
}

#[tokio::test]
async fn a_large_sweep_is_stored_in_parts() {
    let db = db().await;
    let mut leader = db.lead().await;
    let jobs = (0..12_000u32).map(|i| taskvec_model::plan::PlannedJob { key: hash(&i.to_le_bytes()), ..idle(0) });
    let submitted = leader.submit(&plan(jobs.collect()), "", 0, None).await.expect("submits");
    assert_eq!(submitted.jobs.len(), 12_000);
    assert_eq!(leader.load().await.expect("loads").jobs, submitted.jobs);
    let worker = db.worker(1).await;
    let changes: Vec<Change> = (1..=12_000).flat_map(|j| [start(j, 1, worker), complete(j, 1)]).collect();
    let handed = (1..=12_000).map(|j| (attempt(j, 1), Outcome::default())).collect();
    leader.commit(&changes, &handed).await.expect("commits");
    assert_eq!(db.one::<i64>("SELECT count(*) FROM results.jobs WHERE state = 'done'").await, 12_000);
}

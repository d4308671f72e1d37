//! Several runs in one slot: to the user they are separate runs, with the numbers that they have alone.

use crate::support::{Stack, sweep_file};
use serde_json::{Value, json};
use std::{fs, path::PathBuf, sync::OnceLock};

/// All that a run leaves but its times and the tries it took.
const TABLES: [&str; 5] = [
    "SELECT job_id, run_id, kind, step, state, error FROM results.jobs ORDER BY 1",
    "SELECT run_id, step, bytes, digest, purpose FROM results.checkpoints ORDER BY 1, 2, 5",
    "SELECT run_id, step, loss, learning_rate FROM results.train_loss ORDER BY 1, 2",
    "SELECT * FROM results.icl ORDER BY run_id, step, latent_task, position",
    "SELECT * FROM results.baselines ORDER BY run_id, latent_task, position, estimator",
];

/// Runs that are being trained, all of them in the one slot that there is.
const TOGETHER: &str = "SELECT count(*) FROM results.jobs WHERE kind = 'train' AND state = 'running'";

fn stacking(stack: u32) -> Stack {
    let mut started = Stack::start(0);
    started.start_stacking_worker(stack);
    started
}

fn tables(stack: &Stack) -> Vec<Vec<Value>> {
    TABLES.iter().map(|query| stack.sql(query)).collect()
}

/// The same tables of a sweep whose runs had a slot for themselves.
fn assert_same_as_alone(stack: &Stack) {
    static ALONE: OnceLock<Vec<Vec<Value>>> = OnceLock::new();
    let alone = ALONE.get_or_init(|| {
        let stack = stacking(1);
        stack.submit(&sweep_file("seeds.yaml"));
        stack.wait().ok();
        tables(&stack)
    });
    for ((query, packed), alone) in TABLES.iter().zip(tables(stack)).zip(alone) {
        assert!(!packed.is_empty(), "no rows: {query}");
        assert_eq!(&packed, alone, "{query}");
    }
}

/// Four runs in the slot of one worker, in the middle of their second segments.
fn in_the_middle() -> Stack {
    let stack = stacking(4);
    stack.submit(&sweep_file("seeds.yaml"));
    let second = |s: &Stack| s.read_log("w0").matches("attempt 1 (train) begins").count() == 8;
    stack.wait_for("the second segments", second);
    stack
}

/// How often the second segments were begun.
fn tries(stack: &Stack) -> Vec<Value> {
    stack.sql("SELECT attempts FROM results.jobs WHERE kind = 'train' AND step = 2000")
}

/// What the attempts of the training jobs that end at this step said, by job.
fn training_logs(stack: &Stack, step: u64) -> Vec<String> {
    let query = format!("SELECT job_id FROM results.jobs WHERE kind = 'train' AND step = {step} ORDER BY 1");
    let jobs = stack.sql(&query);
    jobs.iter().map(|job| stack.client(&["job", "logs", &job["job_id"].to_string()]).ok()).collect()
}

#[test]
fn packed_runs_leave_what_they_leave_alone_even_when_their_worker_is_killed() {
    let mut stack = in_the_middle();
    let job = stack.one("SELECT min(job_id) FROM results.jobs WHERE kind = 'train' AND state = 'running'");
    // It may have ended meanwhile.
    let explained = stack.client(&["job", "explain", &job.to_string()]);
    assert!(explained.stdout.contains("in one slot with jobs") || explained.stdout.contains("done"), "{explained:?}");
    stack.kill_worker(0);
    stack.start_stacking_worker(4);
    stack.wait().ok();
    assert_same_as_alone(&stack);
    assert_eq!(tries(&stack), vec![json!({"attempts": 2}); 4]);
    let packed = |step| training_logs(&stack, step).iter().filter(|log| log.contains("4 jobs in one slot")).count();
    assert_eq!([1000, 2000, 3000].map(packed), [4, 0, 4], "tried again alone, then together as before");
}

#[test]
fn a_worker_asked_to_leave_hands_all_runs_of_its_slot_over_and_they_go_on_together() {
    let mut stack = in_the_middle();
    assert!(stack.stop_worker(0).success(), "{}", stack.read_log("w0"));
    stack.start_stacking_worker(4);
    stack.wait().ok();
    assert_same_as_alone(&stack);
    assert_eq!(tries(&stack), vec![json!({"attempts": 2}); 4]);
    let logs = training_logs(&stack, 2000);
    let handed_over: Vec<_> = logs.iter().filter(|log| log.contains("handed over at step")).collect();
    assert_eq!(handed_over.len(), 4, "{logs:?}");
    assert!(handed_over.iter().all(|log| log.matches("4 jobs in one slot").count() == 2), "{handed_over:?}");
}

#[test]
fn a_killed_server_finds_the_runs_still_in_their_slot() {
    let mut stack = in_the_middle();
    stack.kill_server();
    stack.start_server();
    stack.wait().ok();
    assert_same_as_alone(&stack);
    assert_eq!(tries(&stack), vec![json!({"attempts": 1}); 4], "the worker computed on");
}

/// A sweep of the shape of diverge.yaml, with other learning rates and more steps.
fn variant(stack: &Stack, name: &str, steps: u32, rates: &str) -> PathBuf {
    let text = fs::read_to_string(sweep_file("diverge.yaml")).expect("the sweep file");
    let text =
        text.replace("name: diverge", &format!("name: {name}")).replace("steps: 200", &format!("steps: {steps}"));
    let text = text.replace("resume_every: 100", &format!("resume_every: {steps}")).replace("[1e-3, 10]", rates);
    let file = stack.data().join(format!("{name}.yaml"));
    fs::write(&file, text).expect("writes");
    file
}

#[test]
fn one_that_diverges_fails_alone_and_a_cancelled_sweep_leaves_the_others_in_the_slot() {
    let mut stack = Stack::start(0);
    // Long enough to be cancelled on the way; all are there before the worker is.
    let long = 6_000;
    let cancelled = stack.submit(&variant(&stack, "cancelled", long, "[1e-3, 2e-3]"));
    let other = stack.submit(&variant(&stack, "other", long, "[3e-3, 10]"));
    stack.start_stacking_worker(8);
    let failed = format!("SELECT error FROM results.jobs WHERE sweep_id = {other} AND state = 'failed'");
    stack.wait_for("the divergence", |s| !s.sql(&failed).is_empty());
    let reason = stack.sql(&failed)[0]["error"].as_str().expect("a reason").to_owned();
    assert!(reason.contains("diverged") && reason.contains("not tried again"), "{reason}");
    assert_eq!(stack.one(TOGETHER), json!(3), "it does not wait for the others, nor they for it");
    stack.client(&["sweep", "cancel", &cancelled.to_string()]).ok();
    let states = "SELECT state, count(*) AS n FROM results.jobs WHERE kind = 'train' GROUP BY 1 ORDER BY 1";
    let expected = [("cancelled", 2), ("failed", 1), ("running", 1)].map(|(state, n)| json!({"state": state, "n": n}));
    assert_eq!(stack.sql(states), expected);
    stack.wait_for("the end of the other sweep", |s| {
        s.one(&format!("SELECT state FROM results.sweeps WHERE sweep_id = {other}")) == json!("failed")
    });
    let tries =
        "SELECT state, attempts FROM results.jobs WHERE kind = 'train' AND state IN ('done', 'failed') ORDER BY 1";
    assert_eq!(stack.sql(tries), [json!({"state": "done", "attempts": 1}), json!({"state": "failed", "attempts": 1})]);
}

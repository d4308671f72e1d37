//! Processes die, stop and come back; nothing is lost, nothing is doubled, and the bytes stay the same.

use crate::support::{LEASE_SECONDS, Signal, Stack, sweep_file};
use serde_json::{Value, json};
use std::{thread::sleep, time::Duration};

/// Steps and digests of all checkpoints kept for analysis: equal digests are equal bytes.
fn weights(stack: &Stack) -> Vec<Value> {
    stack.sql("SELECT step, digest FROM results.checkpoints WHERE purpose = 'weights' ORDER BY step")
}

fn undisturbed() -> Vec<Value> {
    let stack = Stack::start(1);
    stack.submit(&sweep_file("long.yaml"));
    stack.wait().ok();
    weights(&stack)
}

/// Until the second segment is being trained, in its middle.
fn wait_for_the_middle(stack: &Stack) {
    stack.wait_for("the second segment", |s| {
        s.one("SELECT count(*) FROM results.jobs WHERE kind = 'train' AND step = 2000 AND state = 'running'")
            == json!(1)
    });
    sleep(Duration::from_millis(100));
}

/// No row missing, none doubled.
fn assert_complete(stack: &Stack) {
    assert_eq!(stack.one("SELECT count(*) FROM results.jobs WHERE state <> 'done'"), json!(0));
    let doubled = "SELECT run_id, step, latent_task, position FROM results.icl GROUP BY 1, 2, 3, 4 HAVING count(*) > 1";
    assert_eq!(stack.sql(doubled), Vec::<Value>::new());
    // 4 checkpoints × 2 latent tasks × (4 positions and their mean).
    assert_eq!(stack.one("SELECT count(*) FROM results.icl"), json!(40));
    let steps = "SELECT count(*) - count(DISTINCT step) FROM results.train_loss";
    assert_eq!(stack.one(steps), json!(0));
    assert_eq!(stack.one("SELECT max(step) FROM results.train_loss"), json!(3000));
}

#[test]
fn a_killed_worker_costs_nothing_but_time() {
    let mut stack = Stack::start(1);
    stack.submit(&sweep_file("long.yaml"));
    wait_for_the_middle(&stack);
    stack.kill_worker(0);
    stack.start_worker();
    stack.wait().ok();
    assert_complete(&stack);
    let tries = "SELECT attempts FROM results.jobs WHERE kind = 'train' AND step = 2000";
    assert_eq!(stack.one(tries), json!(2), "the segment was begun again");
    assert_eq!(weights(&stack), undisturbed());
}

#[test]
fn a_worker_asked_to_leave_hands_its_segment_over() {
    let mut stack = Stack::start(1);
    stack.submit(&sweep_file("long.yaml"));
    wait_for_the_middle(&stack);
    assert!(stack.stop_worker(0).success(), "{}", stack.read_log("w0"));
    stack.start_worker();
    stack.wait().ok();
    assert_complete(&stack);
    assert_eq!(weights(&stack), undisturbed());
}

#[test]
fn a_killed_server_and_a_killed_database_lose_nothing() {
    let mut stack = Stack::start(2);
    stack.submit(&sweep_file("long.yaml"));
    wait_for_the_middle(&stack);
    stack.kill_server();
    stack.start_server();
    stack.wait_for("progress after the server's death", |s| {
        s.one("SELECT count(*) FROM results.jobs WHERE kind = 'train' AND step = 2000 AND state = 'done'") == json!(1)
    });
    stack.kill_postgres();
    stack.wait_for("the end", |s| {
        let ran = s.client(&["sweep", "wait", "last"]);
        assert_ne!(ran.code, 1, "{}", ran.stderr);
        ran.code == 0
    });
    assert_complete(&stack);
    assert_eq!(weights(&stack), undisturbed());
}

#[test]
fn a_worker_that_slept_past_its_lease_is_refused() {
    let mut stack = Stack::start(1);
    stack.submit(&sweep_file("long.yaml"));
    wait_for_the_middle(&stack);
    stack.signal_worker(0, Signal::STOP);
    sleep(Duration::from_secs_f64(LEASE_SECONDS * 1.5));
    stack.start_worker();
    stack.wait_for("the second attempt", |s| {
        s.one("SELECT max(attempts) FROM results.jobs WHERE kind = 'train'") == json!(2)
    });
    stack.signal_worker(0, Signal::CONT);
    stack.wait().ok();
    assert_complete(&stack);
    let log = stack.client(&["job", "list", "-o", "json"]).ok();
    let jobs: Value = serde_json::from_str(&log).expect("JSON");
    let segment = jobs.as_array().expect("rows").iter().find(|j| j["kind"] == "train" && j["step"] == 2000);
    let id = segment.expect("the segment")["job_id"].to_string();
    let attempts: Value = serde_json::from_str(&stack.client(&["job", "logs", &id, "-o", "json"]).ok()).expect("JSON");
    let states: Vec<&Value> = attempts.as_array().expect("rows").iter().map(|a| &a["state"]).collect();
    assert_eq!(states, [&json!("expired"), &json!("succeeded")]);
    assert_eq!(weights(&stack), undisturbed());
}

//! A server beyond loopback: everything it says and hears is encrypted.

use crate::support::{Stack, sweep_file};
use serde_json::json;

#[test]
fn a_sweep_runs_between_a_server_and_a_worker_that_speak_tls() {
    let mut stack = Stack::with_tls();
    stack.start_worker();
    stack.submit(&sweep_file("tiny.yaml"));
    stack.wait().ok();
    assert_eq!(stack.one("SELECT count(*) FROM results.jobs WHERE state <> 'done'"), json!(0));
    let uploaded = stack.one("SELECT count(*) FROM results.checkpoints");
    assert!(uploaded.as_i64() > Some(0), "checkpoints went through the same channel: {uploaded}");
}

//! A job that fails, fails alone and says why.

use crate::support::{Stack, sweep_file};
use serde_json::json;
use std::process::Command;

#[test]
fn a_panic_fails_its_job_after_the_allowed_tries() {
    let stack = Stack::start(1);
    stack.submit(&sweep_file("panic.yaml"));
    assert_eq!(stack.wait().code, 1);
    let runs = stack.sql("SELECT state, count(*) AS n FROM results.runs GROUP BY 1 ORDER BY 1");
    assert_eq!(runs, [json!({"state": "done", "n": 1}), json!({"state": "failed", "n": 1})]);
    let failed = stack.sql("SELECT error, attempts FROM results.jobs WHERE state = 'failed'");
    assert_eq!(failed.len(), 2);
    for job in failed {
        assert!(job["error"].as_str().expect("a reason").contains("panic"), "{job}");
        assert_eq!(job["attempts"], 3);
    }
}

#[test]
fn a_diverging_run_fails_alone_at_once() {
    let stack = Stack::start(2);
    stack.submit(&sweep_file("diverge.yaml"));
    let ran = stack.wait();
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    let failed = stack.sql("SELECT run_id, kind, error, attempts FROM results.jobs WHERE state = 'failed'");
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert_eq!(
        (&failed[0]["run_id"], &failed[0]["kind"], &failed[0]["attempts"]),
        (&json!(2), &json!("train"), &json!(1))
    );
    assert!(failed[0]["error"].as_str().expect("a reason").contains("diverged"), "{failed:?}");
    assert_eq!(stack.one("SELECT count(*) FROM results.jobs WHERE run_id = 1 AND state <> 'done'"), json!(0));
    let skipped = stack.sql("SELECT DISTINCT error FROM results.jobs WHERE state = 'skipped'");
    assert!(!skipped.is_empty() && skipped[0]["error"].as_str().expect("a reason").contains("failed"), "{skipped:?}");
}

#[test]
fn a_damaged_checkpoint_fails_what_reads_it_and_nothing_else() {
    let mut stack = Stack::start(1);
    let text = std::fs::read_to_string(sweep_file("tiny.yaml")).expect("the sweep file");
    let only_icl: String = text.lines().filter(|l| !l.contains("kind: td")).map(|l| format!("{l}\n")).collect();
    let file = stack.data().join("icl.yaml");
    std::fs::write(&file, only_icl).expect("writes");
    stack.submit(&file);
    stack.wait().ok();

    let digest =
        stack.one("SELECT digest FROM results.checkpoints WHERE run_id = 1 AND step = 40 AND purpose = 'weights'");
    let digest = digest.as_str().expect("a digest");
    let change = format!(
        "UPDATE taskvec.chunks SET data = overlay(data PLACING '\\x00ff00ff' FROM 100) \
         WHERE hash = (SELECT hash FROM taskvec.blob_chunks WHERE digest = '\\x{digest}' ORDER BY ordinal LIMIT 1)"
    );
    let psql = Command::new("psql").args([&stack.owner_url(), "-q", "-c", &change]).status().expect("psql runs");
    assert!(psql.success());

    // A worker without the old one's cache, and a sweep that needs the damaged checkpoint again.
    assert!(stack.stop_worker(0).success());
    stack.start_worker();
    stack.submit(&sweep_file("tiny.yaml"));
    assert_eq!(stack.wait().code, 1);
    let failed = stack.sql("SELECT run_id - 2 AS run, kind, step, error FROM results.jobs WHERE state = 'failed'");
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert_eq!((&failed[0]["run"], &failed[0]["kind"], &failed[0]["step"]), (&json!(1), &json!("td"), &json!(40)));
    let reason = failed[0]["error"].as_str().expect("a reason");
    assert!(reason.contains("damaged") || reason.contains("corrupt"), "{reason}");
    let rest = "SELECT count(*) FROM results.jobs WHERE state NOT IN ('done', 'failed')";
    assert_eq!(stack.one(rest), json!(0));
}

//! One worker or three: the same tables, all but the times.

use crate::support::{Stack, sweep_file};
use serde_json::Value;

/// Every result view without its times and without what depends on who did the work.
const TABLES: [&str; 9] = [
    "SELECT run_id, sweep_id, kind, state, seed, params, spec FROM results.runs ORDER BY 1",
    "SELECT job_id, run_id, sweep_id, kind, step, state, attempts, error FROM results.jobs ORDER BY 1",
    "SELECT run_id, step, bytes, digest, purpose FROM results.checkpoints ORDER BY 1, 2, 5",
    "SELECT run_id, step, loss, learning_rate FROM results.train_loss ORDER BY 1, 2",
    "SELECT * FROM results.icl ORDER BY run_id, step, latent_task, position",
    "SELECT * FROM results.baselines ORDER BY run_id, latent_task, position, estimator",
    "SELECT * FROM results.td ORDER BY run_id, step, layer, site, latent_task",
    "SELECT * FROM results.td_bound ORDER BY run_id, latent_task",
    "SELECT * FROM results.td_vs_icl ORDER BY run_id, step, layer, site, latent_task",
];

fn tables(workers: usize) -> Vec<Vec<Value>> {
    let stack = Stack::start(workers);
    stack.submit(&sweep_file("tiny.yaml"));
    stack.wait().ok();
    TABLES.iter().map(|query| stack.sql(query)).collect()
}

#[test]
fn the_number_of_workers_changes_no_number() {
    let (one, three) = (tables(1), tables(3));
    for ((query, one), three) in TABLES.iter().zip(one).zip(three) {
        assert!(!one.is_empty(), "no rows: {query}");
        assert_eq!(one, three, "{query}");
    }
}

//! What a report shows of models that are trained from scratch.

use crate::support::{Stack, folder};
use std::process::Command;

/// One run with interventions at two checkpoints, in two replicates.
const PATCHED: &str = "
INSERT INTO taskvec.sweeps (sweep_id, name, state, priority, spec, yaml) VALUES (1, 'moved', 'done', 0, '{}', '');
INSERT INTO taskvec.runs (run_id, sweep_id, kind, seed, params, spec) VALUES (1, 1, 'pretrain', 0, '{\"seed\": 0}', '{}');
INSERT INTO taskvec.results (key, kind) SELECT decode(repeat(lpad(n::text, 2, '0'), 32), 'hex'), 'interventions'
    FROM generate_series(1, 2) AS n ORDER BY n;
INSERT INTO taskvec.jobs (job_id, sweep_id, run_id, kind, step, key, flops, repeats, cached, state, result_id)
    SELECT result_id, 1, 1, kind, 100 * result_id, key, 1, false, false, 'done', result_id FROM taskvec.results;
INSERT INTO taskvec.interventions (result_id, layer, site, positions, mode, source_task, target_task, shots, metric,
    baseline, patched, replicate, n)
    SELECT result_id, 2, 'x', 'all', 'add_mean_difference', 'B1', 'B2', 19, 'mse', 1.5, 1.5 + result_id + replicate, replicate, 100
    FROM generate_series(1, 2) AS result_id, generate_series(0, 1) AS replicate;
";

#[test]
fn the_report_shows_the_interventions_of_the_last_checkpoint() {
    let stack = Stack::start(0);
    let filled = Command::new("psql").args([&stack.owner_url(), "-q", "-v", "ON_ERROR_STOP=1", "-c", PATCHED]).status();
    assert!(filled.expect("psql runs").success());
    let dir = folder();
    let out = dir.path().join("report");
    let text = stack.client(&["report", "last", "-o", &out.display().to_string()]).ok();
    let squeezed = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let expected = "run 1 seed=0, step 200 Interventions: mean squared error before and after";
    assert!(squeezed.contains(expected) && !text.contains("step 100"), "{text}");
    assert!(squeezed.contains("B1 B2 2 x, all, add_mean_difference 19 1.500 4.000 +2.500 0.707"), "{text}");
}

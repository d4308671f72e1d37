//! Sweeps on pretrained language models, from the command line: plans, refusals, and the report of what was measured.

use crate::support::{Stack, folder, taskvec};
use std::{fs, process::Command};

const SWEEP: &str = "version: 1
name: words
kind: evaluate
model: { path: models/no-such-model }
data: { family: bitwise }
analyses: [{ kind: icl }, { kind: td, layers: [0, 2] }]
";

#[test]
fn a_model_that_is_not_there_is_named_with_its_place_and_a_plan_goes_on_without_it() {
    let dir = folder();
    let file = dir.path().join("words.yaml");
    fs::write(&file, SWEEP).expect("writes");
    let stack = Stack::start(0);
    let path = file.display().to_string();
    let refused = stack.client(&["sweep", "submit", &path]);
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    assert!(refused.stderr.contains(&format!("{path}:4:16: `model.path`:")), "{}", refused.stderr);
    let planned = taskvec().args(["sweep", "plan", &path]).output().expect("it runs");
    let text = String::from_utf8(planned.stdout).expect("text");
    assert!(planned.status.success() && text.contains("measure"), "{text}");
    assert!(text.contains("planned without a look at models and data"), "{text}");
}

/// One run on a language model of two layers: two tasks and Null, 1 and 4 shots, an intervention in two replicates.
const MEASURED: &str = "
INSERT INTO taskvec.sweeps (sweep_id, name, state, priority, spec, yaml) VALUES (1, 'words', 'done', 0, '{}', '');
INSERT INTO taskvec.runs (run_id, sweep_id, kind, seed, params, spec)
    VALUES (1, 1, 'evaluate', 0, '{\"data.family\": \"bitwise\"}', '{}');
INSERT INTO taskvec.results (key, kind) SELECT decode(repeat(lpad(n::text, 2, '0'), 32), 'hex'), kind
    FROM (VALUES (1, 'measure'), (2, 'measure'), (3, 'interventions')) AS w(n, kind) ORDER BY n;
INSERT INTO taskvec.jobs (job_id, sweep_id, run_id, kind, step, key, flops, repeats, cached, state, result_id)
    SELECT result_id, 1, 1, kind, 0, key, 1, false, false, 'done', result_id FROM taskvec.results;
INSERT INTO taskvec.icl (result_id, latent_task, shots, metric, value, stderr, n) VALUES
    (1, 'AND', 1, 'accuracy', 0.2, 0, 100), (1, 'OR', 1, 'accuracy', 0.1, 0, 100), (1, 'Null', 1, 'accuracy', 0, 0, 100),
    (2, 'AND', 4, 'accuracy', 0.6, 0, 100), (2, 'OR', 4, 'accuracy', 0.5, 0, 100), (2, 'Null', 4, 'accuracy', 0, 0, 100);
INSERT INTO taskvec.td (result_id, layer, site, latent_task, shots, k, n, value, stderr)
    SELECT result_id, layer, 'x', task, shots, 10, 100, layer * 0.3 + value, 0 FROM (VALUES
        (1, 1, 'AND', 0.2), (1, 1, 'OR', 0.1), (1, 1, 'Null', 0.3),
        (2, 4, 'AND', 0.6), (2, 4, 'OR', 0.5), (2, 4, 'Null', 0.4)
    ) AS w(result_id, shots, task, value), generate_series(0, 1) AS layer;
INSERT INTO taskvec.interventions (result_id, layer, site, positions, mode, source_task, target_task, shots, metric,
    baseline, patched, replicate, n) VALUES
    (3, 1, 'x', 'last', 'replace', 'AND', 'Null', 4, 'accuracy', 0.6, 0.4, 1, 100),
    (3, 1, 'x', 'last', 'replace', 'AND', 'Null', 4, 'accuracy', 0.6, 0.5, 2, 100);
";

#[test]
fn the_report_shows_accuracy_decodability_their_line_and_interventions() {
    let stack = Stack::start(0);
    let filled =
        Command::new("psql").args([&stack.owner_url(), "-q", "-v", "ON_ERROR_STOP=1", "-c", MEASURED]).status();
    assert!(filled.expect("psql runs").success());
    let dir = folder();
    let out = dir.path().join("report");
    let text = stack.client(&["report", "last", "-o", &out.display().to_string()]).ok();
    // Layer 1 is best; accuracy is TD there less 0.3, so the line is exact; Null has no part in the means of accuracy.
    let squeezed = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for expected in [
        "1 family=\"bitwise\" 0 0.150 0.550 0.500 0.800 1 1.000 4",
        "run 1 family=\"bitwise\", step 0, TD at layer 1",
        "AND 0.200 0.600 0.500 0.900",
        "Null 0.000 0.000 0.600 0.700",
        "AND Null 1 x, last, replace 4 0.600 0.450 -0.150 0.071",
    ] {
        assert!(squeezed.contains(expected), "`{expected}` is not in:\n{text}");
    }
    let svg = fs::read_to_string(out.join("language.svg")).expect("a picture");
    assert!(svg.contains("R² = 1.00 (4 points)"), "{svg}");
}

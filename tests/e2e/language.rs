//! Sweeps on pretrained language models, from the command line: plans, refusals, and the report of what was measured.

use crate::{
    hub::tiny,
    support::{Stack, folder, taskvec},
};
use serde_json::json;
use std::{fs, path::Path, process::Command};

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

/// Every analysis of a model of two layers whose context holds the demonstrations of one shot, but not of 50.
const EVALUATED: &str = "version: 1
name: tiny
kind: evaluate
model: { path: MODEL }
data: { family: bitwise, digits: 4, shots: [1, 50], tasks: [AND, OR, Null] }
analyses:
  - { kind: icl, samples_per_task: 6 }
  - { kind: td, layers: all, sites: [x, y], k: 3, samples_per_task: 6, pairs: true }
  - { kind: lens, samples_per_task: 6 }
  - { kind: interventions, shots: [1], layers: all, samples_per_task: 6, replicates: 2 }
";

const FINETUNED: &str = "version: 1
name: tiny-lora
kind: finetune
model: { path: MODEL }
data: { family: bitwise, digits: 4, shots: [1], tasks: [AND, OR, Null] }
lora: { rank: 2, alpha: 2, layers: last:1 }
train: { steps: 4, batch: 2, shots: 1, log_every: 1, optimizer: { kind: adam, learning_rate: 1e-3 } }
checkpoints: { schedule: linear, count: 2, resume_every: 2 }
analyses: [{ kind: icl, samples_per_task: 6 }, { kind: td, layers: all, k: 3, samples_per_task: 6 }]
";

/// A sweep file on the tiny model, which is put beside it.
fn on_a_tiny_model(dir: &Path, sweep: &str) -> std::path::PathBuf {
    let (model, file) = (dir.join("tiny"), dir.join("sweep.yaml"));
    fs::create_dir_all(&model).expect("a folder");
    tiny(1).iter().for_each(|(name, bytes)| fs::write(model.join(name), bytes).expect("writes"));
    fs::write(&file, sweep.replace("MODEL", &model.display().to_string())).expect("writes");
    file
}

#[test]
fn all_analyses_reach_the_tables_and_a_prompt_beyond_the_context_fails_its_job_alone() {
    let (dir, stack) = (folder(), Stack::start(1));
    stack.submit(&on_a_tiny_model(dir.path(), EVALUATED));
    assert_eq!(stack.wait().code, 1, "one job fails");
    let jobs = stack
        .sql("SELECT kind, state, count(*) AS n, max(error) AS error FROM results.jobs GROUP BY 1, 2 ORDER BY 1, 2");
    let found: Vec<_> = jobs.iter().map(|job| json!([job["kind"], job["state"], job["n"]])).collect();
    let expected = json!([["interventions", "done", 1], ["measure", "done", 1], ["measure", "failed", 1]]);
    assert_eq!(json!(found), expected);
    let error = jobs[2]["error"].as_str().expect("why it failed");
    for part in ["50 shots", "the model's context is 512", "use fewer shots"] {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
    // Three tasks; three layers with the embedding, at two sites; two operators towards the right task and Null after two blocks.
    for (rows, count) in [
        ("icl WHERE metric = 'accuracy' AND n = 6", 3),
        ("td WHERE value BETWEEN 0 AND 1 AND shots = 1", 3 * 3 * 2),
        ("td_pairs", 3 * 3 * 2),
        ("lens WHERE log_prob < 0 AND rank >= 1", 3 * 3),
        ("interventions WHERE baseline BETWEEN 0 AND 1 AND replicate = 2", 2 * 2 * 2),
    ] {
        assert_eq!(stack.one(&format!("SELECT count(*) FROM results.{rows}")), count, "{rows}");
    }
}

#[test]
fn adapters_are_trained_and_measured_by_a_worker() {
    let (dir, stack) = (folder(), Stack::start(1));
    stack.submit(&on_a_tiny_model(dir.path(), FINETUNED));
    stack.wait().ok();
    // Of its last step, the adapters and the state to go on from.
    for (rows, count) in [
        ("train_loss WHERE loss > 0", 4),
        ("checkpoints WHERE step = 4", 2),
        ("icl WHERE step = 4", 3),
        ("td WHERE step = 4", 3 * 3),
    ] {
        assert_eq!(stack.one(&format!("SELECT count(*) FROM results.{rows}")), count, "{rows}");
    }
}

/// Where the model is on GPUs, its tables are those of the CPU, and its losses are to rounding.
#[cfg(feature = "candle-cuda")]
#[test]
fn a_worker_with_two_gpus_measures_and_tunes_on_them() {
    use std::io::Write;
    if let Err(why) = taskvec_science::gpu::free_bytes(1) {
        return std::io::stderr()
            .write_fmt(format_args!("\nSKIPPED: no model is on two GPUs: {why}\n"))
            .expect("it says so");
    }
    let dir = folder();
    let [on_gpus, on_cpu] = ["cuda:0,1", "cpu"].map(|device| {
        let mut stack = Stack::start(0);
        stack.start_worker_with(&["--device", device, "--slots", "1"]);
        for sweep in [EVALUATED, FINETUNED] {
            stack.submit(&on_a_tiny_model(dir.path(), sweep));
            stack.wait();
        }
        stack
    });
    assert!(on_gpus.client(&["worker", "list"]).ok().contains("cuda:0"));
    for table in ["icl", "td", "td_pairs", "interventions"] {
        let rows =
            |stack: &Stack| stack.sql(&format!("SELECT to_jsonb(t) AS row FROM results.{table} AS t ORDER BY 1"));
        let found = rows(&on_gpus);
        assert!(!found.is_empty() && found == rows(&on_cpu), "{table}");
    }
    let losses = |stack: &Stack| stack.sql("SELECT step, loss FROM results.train_loss ORDER BY 1");
    let (ours, theirs) = (losses(&on_gpus), losses(&on_cpu));
    assert!(ours.len() == 4 && theirs.len() == 4);
    for (ours, theirs) in ours.iter().zip(&theirs) {
        let [a, b] = [ours, theirs].map(|row| row["loss"].as_f64().expect("a loss"));
        assert!((a / b - 1.0).abs() < 1e-4, "{ours} and {theirs}");
    }
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

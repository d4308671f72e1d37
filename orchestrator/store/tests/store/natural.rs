//! Results on language models: in the views that every kind of run shares, and in those of their own.

use crate::fixture::*;
use serde_json::Value;
use std::collections::BTreeMap;
use taskvec_model::{
    id::SweepId,
    job::{JobWork, Purpose, Subject, TdPart},
    metric::{Icl, IclMetric, Metrics, Td},
    plan::{Need, Plan, PlannedJob},
    spec::{
        At, CheckpointSpec, Decay, Family, FloatType, Instruction, InterventionSpec, Layers, LoraLayers, LoraSpec,
        NaturalSpec, OptimizerKind, OptimizerSpec, PatchLayers, PatchMode, PatchPairs, PatchPositions, PretrainedSpec,
        Schedule, Site, Template, TuneSpec,
    },
};

fn pretrained() -> PretrainedSpec {
    PretrainedSpec { path: "models/tiny".into(), revision: None, dtype: FloatType::F32, identity: None }
}

fn words(shots: u32) -> NaturalSpec {
    NaturalSpec {
        family: Family::Bitwise { digits: 5 },
        shots: vec![shots],
        tasks: vec!["AND".into(), "Null".into()],
        template: Template::default(),
        instruction: Instruction::None,
    }
}

fn measure(shots: u32) -> JobWork {
    let td = TdPart { layers: Layers::All, sites: vec![Site::X], k: 10, samples_per_task: 100, pairs: true };
    JobWork::Measure {
        seed: 1,
        model: pretrained(),
        data: words(shots),
        shots,
        icl: Some(100),
        td: Some(td),
        lens: None,
    }
}

fn intervene() -> JobWork {
    let spec = InterventionSpec {
        at: At::All,
        layers: PatchLayers::Best,
        site: Site::X,
        positions: PatchPositions::Last,
        mode: PatchMode::Replace,
        pairs: PatchPairs::Paper,
        shots: Vec::new(),
        samples_per_task: 100,
        replicates: 5,
    };
    JobWork::Intervene { seed: 1, subject: Subject::Language { model: pretrained(), data: words(4), shots: 4 }, spec }
}

fn tune(from: u64, to: u64) -> JobWork {
    let lora =
        LoraSpec { rank: 16, alpha: 16.0, dropout: 0.1, targets: vec!["q_proj".into()], layers: LoraLayers::First(10) };
    let train = TuneSpec {
        steps: 20,
        batch: 4,
        accumulate: 2,
        max_examples: 10_000,
        shots: 4,
        optimizer: OptimizerSpec {
            kind: OptimizerKind::Adam,
            learning_rate: 2e-4,
            betas: [0.9, 0.999],
            epsilon: 1e-8,
            weight_decay: 0.0,
        },
        warmup: 0,
        decay: Decay::None,
        clip_norm: None,
        log_every: 1,
    };
    let checkpoints = CheckpointSpec { schedule: Schedule::Linear, count: 2, resume_every: 10 };
    JobWork::Finetune { seed: 1, model: pretrained(), data: words(4), lora, train, checkpoints, from, to }
}

/// Two segments of fine-tuning, and both kinds of analysis of the last checkpoint. Keys 1 to 4.
fn finetune() -> Plan {
    let weights = || vec![Need { job: 1, step: 20, purpose: Purpose::Weights }];
    plan(vec![
        job(tune(0, 10), Some(10), 1, vec![]),
        job(tune(10, 20), Some(20), 2, vec![Need { job: 0, step: 10, purpose: Purpose::Resume }]),
        job(measure(4), Some(20), 3, weights()),
        job(intervene(), Some(20), 4, weights()),
    ])
}

#[tokio::test]
async fn every_measurement_of_a_fine_tuned_model_shows_at_its_step() {
    let db = db().await;
    let mut leader = db.lead().await;
    leader.submit(&finetune(), "", 0, None).await.expect("submits");
    let given = db.store.assignment(taskvec_model::id::JobId(1)).await.expect("assigns");
    assert_eq!(given.work, tune(0, 10), "work survives the database");
    finish(&db, &mut leader, 1, outcome(metrics(3.0), vec![])).await;
    let progress = db.store.sweep_progress(SweepId(1)).await.expect("asks");
    assert_eq!((progress.runs[0].step, progress.runs[0].steps), (10, 20));
    leader.commit(&[ready(2), ready(3), ready(4)], &BTreeMap::new()).await.expect("commits");
    finish(&db, &mut leader, 3, outcome(metrics(0.25), vec![])).await;
    finish(&db, &mut leader, 4, outcome(metrics(0.75), vec![])).await;
    // Each of the jobs has rows of every kind; a view takes those of its own kinds of job.
    let seen: Vec<(String, i64, f64)> = db
        .rows(
            "SELECT 'train_loss', step, loss FROM results.train_loss UNION ALL
             SELECT 'icl', step, value FROM results.icl WHERE position IS NULL UNION ALL
             SELECT 'td', step, value FROM results.td UNION ALL
             SELECT 'td_pairs', step, value FROM results.td_pairs
                 WHERE (latent_task_a, latent_task_b) = ('B1', 'B2') UNION ALL
             SELECT 'lens', step, accuracy FROM results.lens WHERE (log_prob, rank) = (-1.5, 2.5) UNION ALL
             SELECT 'interventions', step, patched FROM results.interventions
                 WHERE (source_task, target_task, baseline, replicate) = ('B1', 'B2', 0.5, 1) UNION ALL
             SELECT 'td_vs_icl', step, td FROM results.td_vs_icl",
        )
        .await;
    let expected = [
        ("train_loss", 10, 3.0),
        ("icl", 20, 0.25),
        ("td", 20, 0.25),
        ("td_pairs", 20, 0.25),
        ("lens", 20, 0.25),
        ("interventions", 20, 0.75),
        ("td_vs_icl", 20, 0.25),
    ];
    assert_eq!(seen, expected.map(|(view, step, value)| (view.to_owned(), step, value)));
}

/// `tests/fixtures/line.json`: points, and the lines that scikit-learn draws through them.
fn line() -> Value {
    serde_json::from_str(include_str!("../fixtures/line.json")).expect("JSON")
}

/// What the jobs with these shots found.
fn points(fixture: &Value, shots: u64) -> Metrics {
    let mut out = Metrics::default();
    for p in fixture["points"].as_array().expect("points").iter().filter(|p| p["shots"] == shots) {
        let latent_task = p["task"].as_str().expect("a task").to_owned();
        let layer = p["layer"].as_u64().expect("a layer") as u32;
        let shots = shots as u32;
        if layer == 0 {
            let value = p["icl"].as_f64().expect("a number");
            let metric = IclMetric::Accuracy;
            out.icl.push(Icl {
                latent_task: latent_task.clone(),
                shots,
                position: None,
                metric,
                value,
                stderr: 0.0,
                n: 100,
            });
        }
        let value = p["td"].as_f64().expect("a number");
        out.td.push(Td { layer, site: Site::X, latent_task, shots, k: 10, n: 100, value, stderr: 0.0 });
    }
    out
}

#[tokio::test]
async fn where_every_answer_is_equally_right_nothing_is_explained() {
    let db = db().await;
    let mut leader = db.lead().await;
    leader.submit(&plan(vec![job(measure(4), Some(0), 1, vec![])]), "", 0, None).await.expect("submits");
    let mut found = points(&line(), 4);
    found.icl.iter_mut().for_each(|row| row.value = 0.1);
    finish(&db, &mut leader, 1, outcome(found, vec![])).await;
    let fits: Vec<(i32, Option<f64>, Option<f64>)> =
        db.rows("SELECT layer, slope, r2 FROM results.td_vs_icl_fit WHERE layer > 0 ORDER BY layer").await;
    assert_eq!(fits.len(), 2);
    assert!(fits.iter().all(|(_, slope, r2)| slope.is_some_and(|s| s.abs() < 1e-12) && r2.is_none()), "{fits:?}");
}

#[tokio::test]
async fn the_line_through_accuracy_and_decodability_is_that_of_scikit_learn() {
    let db = db().await;
    let mut leader = db.lead().await;
    let jobs: Vec<PlannedJob> = [1, 4, 10].map(|shots| job(measure(shots), Some(0), shots as u8, vec![])).into();
    leader.submit(&plan(jobs), "", 0, None).await.expect("submits");
    let fixture = line();
    for (id, shots) in [(1, 1), (2, 4), (3, 10)] {
        finish(&db, &mut leader, id, outcome(points(&fixture, shots), vec![])).await;
    }
    type Fit = (i32, Option<f64>, Option<f64>, Option<f64>, i64);
    let fits: Vec<Fit> = db
        .rows(
            "SELECT layer, slope, intercept, r2, n FROM results.td_vs_icl_fit WHERE metric = 'accuracy' ORDER BY layer",
        )
        .await;
    let expected = fixture["fits"].as_array().expect("fits");
    assert_eq!(fits.len(), expected.len());
    for ((layer, slope, intercept, r2, n), want) in fits.into_iter().zip(expected) {
        assert_eq!((want["layer"].as_i64(), want["n"].as_i64()), (Some(layer.into()), Some(n)));
        for (name, got) in [("slope", slope), ("intercept", intercept), ("r2", r2)] {
            match (got, want[name].as_f64()) {
                (Some(got), Some(want)) => {
                    assert!((got - want).abs() < 1e-12, "{name} of layer {layer}: {got}, {want}")
                }
                (got, want) => assert_eq!(got, want, "{name} of layer {layer}"),
            }
        }
    }
}

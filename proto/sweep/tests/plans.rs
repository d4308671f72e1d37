//! What sound files become: runs in order, the DAG of jobs, estimates.

use std::{fs, path::Path};
use taskvec_model::{
    job::{JobKind, JobWork, Purpose},
    plan::{CachedResult, Plan},
    spec::{AnalysisSpec, At, Behaviour, DataSpec, Decay, Layers, RunSpec, Schedule, Site, YChannel},
};
use taskvec_sweep::{Limits, estimate, keys, plan, reference};

const SMALL: &str = "
version: 1
name: small
kind: pretrain
model: { arch: gpt2, layers: 2, width: 16, heads: 4 }
data: { family: sparse_linear, dim: 4, bases: 2, rank: 2, examples: 8 }
train: { steps: 100, batch: 8 }
checkpoints: { schedule: linear, count: 3, resume_every: 40 }
analyses: [{ kind: icl, at: last }, { kind: td, layers: [2, 1] }]
";

fn planned(yaml: &str) -> Plan {
    plan(yaml, "test.yaml", &Limits::default()).unwrap_or_else(|faults| panic!("{faults}"))
}

fn pretrain(plan: &Plan, run: usize) -> &taskvec_model::spec::Pretrain {
    match &plan.runs[run].spec {
        RunSpec::Pretrain(spec) => spec,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_committed_sweep_file_plans_without_a_fault() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../sweeps");
    let mut shapes = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let plan = planned(&fs::read_to_string(&path).unwrap());
        assert_eq!(path.file_stem().unwrap().to_str(), Some(plan.name.as_str()), "named as its file");
        shapes.push((plan.name.clone(), plan.runs.len(), plan.jobs.len()));
    }
    shapes.sort();
    let shapes: Vec<_> = shapes.iter().map(|(name, runs, jobs)| (name.as_str(), *runs, *jobs)).collect();
    assert_eq!(
        shapes,
        [
            ("laptop", 2, 2 * (1 + 12 + 2 * 13)),
            ("paper-interventions", 2, 2 * 2),
            ("paper-lora", 4, 4 * (5 + 6)),
            ("paper-more-bases", 5, 5 * (1 + 60 + 2 * 31)),
            // A run for every checkpoint, once the model is there.
            ("paper-olmo", 2, 2),
            ("paper-overlap", 5, 5 * (1 + 40 + 2 * 24)),
            ("paper-prompting", 4, 4),
            ("paper-synthetic", 5, 5 * (1 + 40 + 2 * 24)),
            ("paper-words", 12, 12 * 3),
            ("precision", 9, 9 * (1 + 6 + 2 * 31)),
            ("quickstart", 4, 4 * (1 + 6 + 2 * 11)),
            ("quickstart-patching", 4, 4 * (1 + 6 + 2)),
            ("selftest", 1, 20),
            ("smollm2", 2, 2 * (3 + 1)),
            ("smollm2-lora", 2, 2 * (2 + 2)),
        ]
    );
}

#[test]
fn the_example_of_the_contract_is_the_main_experiment_with_the_papers_defaults() {
    let full = planned(
        &fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../sweeps/paper-synthetic.yaml")).unwrap(),
    );
    // Everything that has a default left out.
    let short = planned(
        "
version: 1
name: coupled-emergence
kind: pretrain
model: { arch: gpt2, layers: 12, width: 256, heads: 8 }
data: { family: sparse_linear, dim: 16, bases: 4, rank: 4, examples: 20 }
train: { steps: 80000, batch: 128 }
analyses: [{ kind: icl }, { kind: td }]
grid: { seed: [0, 1, 2, 3, 4] }
",
    );
    assert_eq!(full.runs, short.runs);
    assert_eq!(full.jobs, short.jobs);
}

#[test]
fn defaults_are_made_explicit() {
    let plan = planned(SMALL);
    let spec = pretrain(&plan, 0);
    assert_eq!(spec.seed, 0);
    assert_eq!((spec.model.init.std, spec.model.init.position_std), (0.02, 0.02));
    assert_eq!(spec.model.init.read_in_std, 1.0 / 12f64.sqrt());
    let DataSpec::SparseLinear(data) = &spec.data;
    assert_eq!((data.noise_variance, data.weight_mean, data.y_channel), (0.01, 0.0, YChannel::Shared));
    let (train, optimizer) = (&spec.train, &spec.train.optimizer);
    assert_eq!((optimizer.learning_rate, optimizer.betas, optimizer.epsilon), (1e-4, [0.9, 0.9999], 1e-8));
    assert_eq!(optimizer.weight_decay, 0.0);
    assert_eq!((train.warmup, train.decay, train.clip_norm, train.log_every), (0, Decay::None, None, 10));
    assert_eq!(spec.evaluate.sequences, 1000);
    let AnalysisSpec::Td(td) = &spec.analyses[1] else { panic!() };
    assert_eq!((&td.layers, &*td.sites), (&Layers::List(vec![2, 1]), &[Site::X, Site::Y][..]));
    assert_eq!((td.k, td.samples_per_task, &td.at), (10, 100, &At::All));
    let plan = planned(&SMALL.replace("checkpoints:", "# "));
    let checkpoints = &pretrain(&plan, 0).checkpoints;
    assert_eq!((checkpoints.schedule, checkpoints.count, checkpoints.resume_every), (Schedule::Log, 24, 2000));
}

#[test]
fn a_y_channel_of_its_own_counts_for_the_default_of_the_read_in() {
    let plan = planned(&SMALL.replace("rank: 2,", "rank: 2, y_channel: own,"));
    assert_eq!(pretrain(&plan, 0).model.init.read_in_std, 1.0 / 15f64.sqrt());
    let plan = planned(&SMALL.replace("heads: 4", "heads: 4, init: { read_in_std: 0.5 }"));
    assert_eq!(pretrain(&plan, 0).model.init.read_in_std, 0.5);
}

#[test]
fn a_run_becomes_baselines_then_segments_each_followed_by_its_analyses() {
    let plan = planned(SMALL);
    let shape: Vec<_> = plan.jobs.iter().map(|j| (j.kind().as_str(), j.step)).collect();
    assert_eq!(
        shape,
        [
            ("baselines", None),
            ("train", Some(40)),
            ("td", Some(0)),
            ("train", Some(80)),
            ("td", Some(50)),
            ("train", Some(100)),
            ("icl", Some(100)),
            ("td", Some(100)),
        ]
    );
    let needs: Vec<Vec<_>> =
        plan.jobs.iter().map(|j| j.needs.iter().map(|n| (n.job, n.step, n.purpose)).collect()).collect();
    assert_eq!(
        needs,
        [
            vec![],
            vec![],
            vec![(1, 0, Purpose::Weights)],
            vec![(1, 40, Purpose::Resume)],
            vec![(3, 50, Purpose::Weights)],
            vec![(3, 80, Purpose::Resume)],
            vec![(5, 100, Purpose::Weights)],
            vec![(5, 100, Purpose::Weights)],
        ]
    );
    let JobWork::Baselines { td_samples_per_task, sequences, .. } = &plan.jobs[0].work else { panic!() };
    assert_eq!((*td_samples_per_task, *sequences), (Some(100), 1000));
    let JobWork::Td { td, .. } = &plan.jobs[2].work else { panic!() };
    assert_eq!((&td.layers, &td.at), (&Layers::List(vec![1, 2]), &At::All), "as every run that shares the job asks");
}

#[test]
fn every_job_comes_after_what_it_needs_and_names_a_checkpoint_that_is_written() {
    let plan = planned(&SMALL.replace("schedule: linear, count: 3", "schedule: log, count: 9"));
    for (i, job) in plan.jobs.iter().enumerate() {
        for need in &job.needs {
            assert!(need.job < i);
            let JobWork::Train { checkpoints, train, from, to, .. } = &plan.jobs[need.job].work else { panic!() };
            match need.purpose {
                Purpose::Resume => assert_eq!(need.step, *to),
                Purpose::Weights => {
                    assert!(checkpoints.analysis_steps(train.steps).contains(&need.step));
                    assert!(need.step <= *to && (need.step > *from || need.step == 0));
                }
            }
        }
    }
}

#[test]
fn without_analyses_there_is_only_training() {
    let plan = planned(&SMALL.replace("[{ kind: icl, at: last }, { kind: td, layers: [2, 1] }]", "[]"));
    assert!(plan.jobs.iter().all(|j| j.kind() == JobKind::Train));
    assert_eq!(plan.jobs.len(), 3);
}

#[test]
fn the_grid_is_a_product_whose_last_path_varies_fastest() {
    let plan = planned(&format!(
        "{SMALL}grid:\n  train.optimizer: [{{ learning_rate: 1e-3 }}, {{ betas: [0.9, 0.999] }}]\n  \
         model.init.std: [0.1, 1]\n  seed: [9223372036854775807, 7]\n"
    ));
    let of = |i: usize| {
        let spec = pretrain(&plan, i);
        (spec.train.optimizer.learning_rate, spec.train.optimizer.betas[1], spec.model.init.std, spec.seed)
    };
    let all: Vec<_> = (0..plan.runs.len()).map(of).collect();
    let (a, b) = (i64::MAX as u64, 7);
    assert_eq!(
        all,
        [
            (1e-3, 0.9999, 0.1, a),
            (1e-3, 0.9999, 0.1, b),
            (1e-3, 0.9999, 1.0, a),
            (1e-3, 0.9999, 1.0, b),
            (1e-4, 0.999, 0.1, a),
            (1e-4, 0.999, 0.1, b),
            (1e-4, 0.999, 1.0, a),
            (1e-4, 0.999, 1.0, b),
        ]
    );
    assert_eq!(
        plan.runs[0].params,
        serde_json::json!({ "train.optimizer": { "learning_rate": 1e-3 }, "model.init.std": 0.1, "seed": a })
    );
    assert!(plan.jobs.windows(2).all(|w| w[0].run <= w[1].run));
}

#[test]
fn the_grid_may_vary_whole_sections_and_wins_over_the_file() {
    let plan = planned(&format!(
        "{SMALL}seed: 5\ngrid:\n  seed: [1]\n  data:\n    - {{ family: sparse_linear, dim: 8, bases: 4, rank: 2, examples: 4 }}\n    \
         - {{ family: sparse_linear, dim: 6, bases: 2, rank: 3, examples: 5 }}\n  analyses: [[{{ kind: icl }}], [{{ kind: td }}]]\n"
    ));
    let dims: Vec<u32> = (0..4)
        .map(|i| match &pretrain(&plan, i).data {
            DataSpec::SparseLinear(data) => data.dim,
        })
        .collect();
    assert_eq!(dims, [8, 8, 6, 6]);
    assert!((0..4).all(|i| plan.runs[i].spec.seed() == 1));
    assert!(matches!(pretrain(&plan, 0).analyses[..], [AnalysisSpec::Icl(_)]));
    assert!(matches!(pretrain(&plan, 1).analyses[..], [AnalysisSpec::Td(_)]));
}

#[test]
fn the_plan_keeps_the_file_as_json() {
    let plan = planned(&format!("{SMALL}grid: {{ seed: [0, 1] }}\n"));
    assert_eq!(plan.spec["grid"], serde_json::json!({ "seed": [0, 1] }));
    assert_eq!(plan.spec["train"], serde_json::json!({ "steps": 100, "batch": 8 }));
}

#[test]
fn a_selftest_is_jobs_without_dependencies() {
    let plan =
        planned("version: 1\nname: s\nkind: selftest\nselftest: { jobs: 3, behaviour: panic, millis: 10 }\nseed: 4\n");
    let expected = |index| JobWork::Selftest { seed: 4, index, behaviour: Behaviour::Panic, millis: 10 };
    assert_eq!(plan.jobs.iter().map(|j| j.work.clone()).collect::<Vec<_>>(), [0, 1, 2].map(expected));
    assert!(plan.jobs.iter().all(|j| j.needs.is_empty() && j.step.is_none()));
    assert!((estimate(&plan, &[true]).fixed_seconds - 0.02).abs() < 1e-12, "one of three is cached");
}

#[test]
fn estimates_count_what_is_left_to_do() {
    let plan = planned(SMALL);
    let none = estimate(&plan, &[]);
    assert_eq!((none.runs, none.jobs(), none.cached()), (1, 8, 0));
    assert_eq!(none.kinds[&JobKind::Train].jobs, 3);
    // 2 blocks of 12·16² + 13·16, read-in and read-out 16·(4 + 1), 16 positions, final norm and two biases: 3·16 + 1.
    let parameters = 2.0 * (12.0 * 256.0 + 208.0) + 16.0 * 5.0 + 16.0 * 16.0 + 49.0;
    assert_eq!(none.weight_bytes, 3.0 * 4.0 * parameters);
    assert_eq!(none.resume_bytes, 3.0 * 12.0 * parameters);
    // 100 steps of 8 sequences of 16 tokens, forward and backward: about 6 operations a parameter and token.
    let rough = 6.0 * 2.0 * 12.0 * 256.0 * (100.0 * 8.0 * 16.0);
    let train = none.kinds[&JobKind::Train].flops;
    assert!(train > rough && train < 1.3 * rough, "{train} and {rough}");
    assert!((none.seconds(2.0) - none.flops() / 2e9).abs() < 1e-9);

    let all = estimate(&plan, &plan.satisfied(|_| Some(CachedResult { checkpoints: Default::default() })));
    assert_eq!((all.cached(), all.flops(), all.weight_bytes), (8, 0.0, 0.0));
}

#[test]
fn equal_jobs_of_a_sweep_are_estimated_once() {
    // The analyses differ between the runs, training does not.
    let twice = planned(&format!("{SMALL}grid: {{ evaluate.sequences: [500, 1000] }}\n"));
    let (one, two) = (estimate(&planned(SMALL), &[]), estimate(&twice, &[]));
    assert_eq!(two.kinds[&JobKind::Train].flops, one.kinds[&JobKind::Train].flops);
    assert_eq!(two.kinds[&JobKind::Train].jobs, 2 * one.kinds[&JobKind::Train].jobs);
    assert_eq!(two.weight_bytes, one.weight_bytes);
    assert!(two.kinds[&JobKind::Icl].flops > one.kinds[&JobKind::Icl].flops);
}

#[test]
fn the_papers_model_has_the_papers_size() {
    let yaml =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../sweeps/paper-synthetic.yaml")).unwrap();
    let estimate = estimate(&planned(&yaml), &[]);
    let parameters = estimate.weight_bytes / 4.0 / (5.0 * 24.0);
    assert!((parameters - 9.5e6).abs() < 0.05e6, "{parameters}");
    // The study measured 298 GFLOP a step.
    let step = estimate.kinds[&JobKind::Train].flops / (5.0 * 80_000.0);
    assert!((step / 298e9 - 1.0).abs() < 0.05, "{step}");
}

#[test]
fn the_reference_names_every_key_with_its_default() {
    let keys = keys();
    let of = |path: &str| keys.iter().find(|k| k.path == path).unwrap_or_else(|| panic!("{path} is missing"));
    assert_eq!(of("train.optimizer.betas").default, "`[0.9, 0.9999]`");
    assert_eq!(of("analyses[].k").when, "`kind: td`");
    assert_eq!(of("model.init.read_in_std").default, "1 / sqrt(3 · channels of a token)");
    assert_eq!(of("kind").values, "`pretrain`, `finetune`, `evaluate` or `selftest`");
    assert_eq!(of("grid").default, "none");
    let text = reference();
    assert_eq!(text.lines().count(), keys.len() + 2);
    assert!(text.lines().all(|line| line.starts_with("| ") && line.ends_with(" |")), "{text}");
    assert!(text.contains("| `train.steps` | a whole number from 1 to 1000000000 | required | updates |"), "{text}");
}

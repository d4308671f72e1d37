//! Content keys: equal where the result is equal, different where it is not, and the same in every build.

use std::collections::{BTreeMap, BTreeSet};
use taskvec_model::{
    id::JobKey,
    job::{JobKind, JobWork, Purpose},
    plan::{CachedResult, Plan},
    spec::RunSpec,
};
use taskvec_sweep::{Input, Limits, job_key, plan, trajectory};

const SMALL: &str = "
version: 1
name: small
kind: pretrain
model: { arch: gpt2, layers: 2, width: 16, heads: 4 }
data: { family: sparse_linear, dim: 4, bases: 2, rank: 2, examples: 8 }
train: { steps: 100, batch: 8, decay: cosine }
checkpoints: { schedule: linear, count: 3, resume_every: 50 }
analyses: [{ kind: icl }, { kind: td }]
grid: { seed: [0, 1] }
";

fn planned(yaml: &str) -> Plan {
    plan(yaml, "test.yaml", &Limits::default()).unwrap_or_else(|faults| panic!("{faults}"))
}

/// SMALL with some text replaced.
fn changed(pairs: &[(&str, &str)]) -> Plan {
    let mut yaml = SMALL.to_owned();
    for (from, to) in pairs {
        assert!(yaml.contains(from), "{from}");
        yaml = yaml.replace(from, to);
    }
    planned(&yaml)
}

fn keys(plan: &Plan) -> Vec<JobKey> {
    plan.jobs.iter().map(|j| j.key).collect()
}

/// The jobs of `after` that are left to do, by kind, when the results of `before` are stored. Of the checkpoints, those
/// with a purpose in `kept` are still there.
fn left_with(kept: &[Purpose], before: &Plan, after: &Plan) -> BTreeMap<JobKind, usize> {
    let mut stored: BTreeMap<JobKey, CachedResult> = BTreeMap::new();
    for job in &before.jobs {
        let mut checkpoints = BTreeSet::new();
        if let JobWork::Train { checkpoints: spec, train, from, to, .. } = &job.work {
            let inside = spec.analysis_steps(train.steps).into_iter().filter(|s| (*from..=*to).contains(s));
            checkpoints.extend(inside.filter(|s| s != from || *s == 0).map(|s| (s, Purpose::Weights)));
            checkpoints.insert((*to, Purpose::Resume));
        }
        checkpoints.retain(|(_, purpose)| kept.contains(purpose));
        stored.insert(job.key, CachedResult { checkpoints });
    }
    let satisfied = after.satisfied(|key| stored.get(key).cloned());
    let mut out = BTreeMap::new();
    for (job, done) in after.jobs.iter().zip(satisfied) {
        if !done {
            *out.entry(job.kind()).or_default() += 1;
        }
    }
    out
}

/// The same after the resume states were removed, as no job needs them any more.
fn left(before: &Plan, after: &Plan) -> BTreeMap<JobKind, usize> {
    left_with(&[Purpose::Weights], before, after)
}

fn nothing() -> BTreeMap<JobKind, usize> {
    BTreeMap::new()
}

/// These keys are in people's databases. When this fails without a change of results being meant, all stored work would
/// be done again: find out why. When it is meant, raise the kind's `code_version` too.
#[test]
fn keys_do_not_change_by_accident() {
    let plan = changed(&[("seed: [0, 1]", "seed: [0]")]);
    let shown: Vec<String> = plan
        .jobs
        .iter()
        .map(|j| format!("{} {:?} {}", j.kind(), j.step.unwrap_or(0), &j.key.to_string()[..16]))
        .collect();
    assert_eq!(shown, GOLDEN);
    let selftest = planned("version: 1\nname: s\nkind: selftest\nselftest: { jobs: 1 }\n");
    assert_eq!(&selftest.jobs[0].key.to_string()[..16], GOLDEN_SELFTEST);
}

const GOLDEN: &[&str] = &[
    "baselines 0 a9dc5fe5e29708d2",
    "train 50 e150cc09555c5c92",
    "icl 0 3d15f794f10c8fd4",
    "td 0 2af54f9294c4da03",
    "icl 50 6610ff16e7553ac0",
    "td 50 dc7841f2a031eb62",
    "train 100 1d95d7c40575d293",
    "icl 100 e3284181763ec9b2",
    "td 100 326288ec98ffbbd7",
];
const GOLDEN_SELFTEST: &str = "789c33f7f256d637";

#[test]
fn spelling_order_comments_and_the_name_do_not_matter() {
    let other = planned(
        "# The same again.
grid:
    seed:
        - 0
        - 1
analyses:
- kind: icl
  at: all
- { samples_per_task: 100, k: 10, sites: [y, x], layers: [2, 0, 1], kind: td }
checkpoints: {resume_every: 50, count: 3, schedule: linear}
train:
  optimizer: { kind: adam, learning_rate: 0.0001 }
  decay:   'cosine'
  batch: 8
  steps: 100
data: { examples: 8, rank: 2, bases: 2, dim: 4, family: sparse_linear, weight_mean: -0.0, noise_variance: 1e-2 }
model: { heads: 4, width: 16, layers: 2, arch: \"gpt2\" }
name: another-name
kind: pretrain
version: 1
",
    );
    assert_eq!(keys(&planned(SMALL)), keys(&other));
}

#[test]
fn more_seeds_leave_only_their_own_jobs_to_do() {
    let more = changed(&[("seed: [0, 1]", "seed: [2, 1, 0]")]);
    let one = BTreeMap::from([(JobKind::Baselines, 1), (JobKind::Train, 2), (JobKind::Icl, 3), (JobKind::Td, 3)]);
    assert_eq!(left(&planned(SMALL), &more), one);
    assert_eq!(left(&more, &planned(SMALL)), nothing());
}

#[test]
fn a_changed_at_leaves_nothing_or_only_the_new_steps_to_do() {
    let all = planned(SMALL);
    let few = changed(&[("{ kind: td }", "{ kind: td, at: last }"), ("{ kind: icl }", "{ kind: icl, at: [0, 100] }")]);
    assert_eq!(left(&all, &few), nothing());
    assert_eq!(left(&few, &all), BTreeMap::from([(JobKind::Icl, 2), (JobKind::Td, 4)]), "two runs");
}

#[test]
fn more_analyses_leave_only_themselves_to_do() {
    let more = changed(&[("{ kind: td }", "{ kind: td }, { kind: td, k: 5 }")]);
    assert_eq!(left(&planned(SMALL), &more), BTreeMap::from([(JobKind::Td, 6)]));
    // The first TD brings the ideal observer's bound, which is part of the baselines.
    let icl_only = changed(&[(", { kind: td }", "")]);
    let new = BTreeMap::from([(JobKind::Td, 6), (JobKind::Baselines, 2)]);
    assert_eq!(left(&icl_only, &planned(SMALL)), new);
}

#[test]
fn changed_evaluation_keeps_training_and_td() {
    let other = changed(&[("analyses:", "evaluate: { sequences: 500 }\nanalyses:")]);
    assert_eq!(left(&planned(SMALL), &other), BTreeMap::from([(JobKind::Icl, 6), (JobKind::Baselines, 2)]));
}

#[test]
fn another_checkpoint_schedule_keeps_the_analyses_of_equal_steps() {
    // Steps 0, 50, 100 become 0, 25, 50, 75, 100: training has to write the new ones.
    let finer = changed(&[("count: 3", "count: 5")]);
    let new = BTreeMap::from([(JobKind::Train, 4), (JobKind::Icl, 4), (JobKind::Td, 4)]);
    assert_eq!(left(&planned(SMALL), &finer), new);
    // Other segments, the same checkpoints: training is packed otherwise, every analysis is there.
    let longer = changed(&[("resume_every: 50", "resume_every: 100")]);
    assert_eq!(left(&planned(SMALL), &longer), BTreeMap::from([(JobKind::Train, 2)]));
}

#[test]
fn a_longer_training_goes_on_from_a_shorter_one_where_the_learning_rate_allows() {
    let constant = [("decay: cosine", "decay: none")];
    let longer = [("decay: cosine", "decay: none"), ("steps: 100", "steps: 200"), ("count: 3", "count: 5")];
    let new = BTreeMap::from([(JobKind::Train, 4), (JobKind::Icl, 4), (JobKind::Td, 4)]);
    let (short, long) = (changed(&constant), changed(&longer));
    assert_eq!(left_with(&Purpose::ALL, &short, &long), new, "the second half only");
    let all_but_baselines = BTreeMap::from([(JobKind::Train, 8), (JobKind::Icl, 10), (JobKind::Td, 10)]);
    assert_eq!(left(&planned(SMALL), &changed(&longer[1..])), all_but_baselines, "cosine depends on the length");
    // Where the state at the end of the shorter one was removed, training starts over; the analyses stay.
    assert_eq!(left(&short, &long)[&JobKind::Train], 8);
    assert_eq!(left(&short, &long)[&JobKind::Icl], 4);
}

#[test]
fn a_last_update_that_is_logged_out_of_turn_tells_a_segment_from_the_same_one_of_a_longer_training() {
    let constant = ("decay: cosine", "decay: none, log_every: 7");
    let longer = [constant, ("steps: 100", "steps: 200"), ("count: 3", "count: 5")];
    let (short, long) = (changed(&[constant]), changed(&longer));
    // Of each run the segments to 100 (again), 150 and 200.
    assert_eq!(left_with(&Purpose::ALL, &short, &long)[&JobKind::Train], 2 * 3);
}

#[test]
fn how_often_the_loss_is_logged_matters_to_training_only() {
    let other = changed(&[("batch: 8", "batch: 8, log_every: 7")]);
    let (before, after) = (planned(SMALL), other);
    for (a, b) in before.jobs.iter().zip(&after.jobs) {
        assert_eq!(a.key == b.key, a.kind() != JobKind::Train, "{}", a.kind());
    }
}

#[test]
fn whatever_changes_the_results_changes_the_keys() {
    // What changes, and the kinds whose results it changes.
    use JobKind::{Baselines, Icl, Td, Train};
    let cases: &[(&str, &str, &[JobKind])] = &[
        ("seed: [0, 1]", "seed: [2, 3]", &[Train, Baselines, Icl, Td]),
        ("layers: 2", "layers: 3", &[Train, Icl, Td]),
        ("width: 16", "width: 32", &[Train, Icl, Td]),
        ("heads: 4", "heads: 2", &[Train, Icl, Td]),
        ("heads: 4", "heads: 4, init: { std: 0.03 }", &[Train, Icl, Td]),
        ("dim: 4", "dim: 5", &[Train, Baselines, Icl, Td]),
        ("rank: 2", "rank: 1", &[Train, Baselines, Icl, Td]),
        ("examples: 8", "examples: 9", &[Train, Baselines, Icl, Td]),
        ("examples: 8", "examples: 8, noise_variance: 0.02", &[Train, Baselines, Icl, Td]),
        ("examples: 8", "examples: 8, weight_mean: 1", &[Train, Baselines, Icl, Td]),
        ("examples: 8", "examples: 8, y_channel: own", &[Train, Baselines, Icl, Td]),
        ("rank: 2", "rank: 2, overlap: grouped", &[Train, Baselines, Icl, Td]),
        ("batch: 8", "batch: 9", &[Train, Icl, Td]),
        ("batch: 8", "batch: 8, warmup: 1", &[Train, Icl, Td]),
        ("batch: 8", "batch: 8, clip_norm: 1", &[Train, Icl, Td]),
        ("batch: 8", "batch: 8, optimizer: { learning_rate: 2e-4 }", &[Train, Icl, Td]),
        ("batch: 8", "batch: 8, optimizer: { betas: [0.9, 0.99] }", &[Train, Icl, Td]),
        ("batch: 8", "batch: 8, optimizer: { epsilon: 1e-7 }", &[Train, Icl, Td]),
        ("batch: 8", "batch: 8, optimizer: { weight_decay: 0.1 }", &[Train, Icl, Td]),
        // Written or not, no decay is what it was before there was one.
        ("batch: 8", "batch: 8, optimizer: { weight_decay: 0 }", &[]),
        ("decay: cosine", "decay: linear", &[Train, Icl, Td]),
        ("{ kind: td }", "{ kind: td, k: 11 }", &[Td]),
        ("{ kind: td }", "{ kind: td, samples_per_task: 99 }", &[Td, Baselines]),
        ("{ kind: td }", "{ kind: td, layers: [1] }", &[Td]),
        ("{ kind: td }", "{ kind: td, sites: [x] }", &[Td]),
    ];
    let before = planned(SMALL);
    for (from, to, kinds) in cases {
        let after = changed(&[(from, to)]);
        for (a, b) in before.jobs.iter().zip(&after.jobs) {
            assert_eq!(a.key != b.key, kinds.contains(&a.kind()), "{to}: {}", a.kind());
        }
    }
}

#[test]
fn all_jobs_of_a_run_have_different_keys() {
    let plan = planned(SMALL);
    let distinct: BTreeSet<JobKey> = keys(&plan).into_iter().collect();
    assert_eq!(distinct.len(), plan.jobs.len());
}

/// The planner works out what the jobs of a run share only once; the public function is the rule.
#[test]
fn planned_keys_are_those_of_the_public_function() {
    let plan = planned(SMALL);
    for job in &plan.jobs {
        let RunSpec::Pretrain(spec) = &plan.runs[job.run].spec else { panic!() };
        let trajectory = trajectory(spec.seed, &spec.model, &spec.data, &spec.train);
        let inputs: Vec<Input> =
            job.needs.iter().map(|n| Input { trajectory, step: n.step, purpose: n.purpose }).collect();
        assert_eq!(job.key, job_key(&job.work, &inputs), "{} {:?}", job.kind(), job.step);
    }
}

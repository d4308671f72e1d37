//! Content keys of jobs on pretrained language models: by what is in their files.

#[path = "common/files.rs"]
mod files;
#[path = "common/words.rs"]
mod words;

use std::collections::BTreeMap;
use taskvec_model::{id::JobKey, job::JobKind, plan::Plan, spec::RunSpec};
use taskvec_sweep::{Input, finetune_trajectory, job_key};
use words::{EVALUATE, FINETUNE, blind, changed, seen};

fn keys(plan: &Plan) -> Vec<JobKey> {
    plan.jobs.iter().map(|j| j.key).collect()
}

#[test]
fn keys_follow_from_what_is_in_the_files_not_from_where_they_are() {
    let here = seen(EVALUATE);
    let moved = changed(EVALUATE, &[("models/tiny", "models/copy")]);
    assert_eq!(keys(&here), keys(&moved));
    let rows = "{ family: pairs, file: rows.csv, shots: [4] }";
    let data = changed(EVALUATE, &[("{ family: bitwise }", rows)]);
    let copied = changed(EVALUATE, &[("{ family: bitwise }", &rows.replace("rows", "copy"))]);
    assert_eq!(keys(&data), keys(&copied));
    assert_ne!(keys(&here), keys(&blind(EVALUATE)), "a model that was not looked at goes by its name");
    let tuned = seen(FINETUNE);
    assert_eq!(keys(&tuned), keys(&changed(FINETUNE, &[("models/tiny", "models/copy")])));
}

#[test]
fn spelling_does_not_matter_to_keys() {
    let same = changed(
        EVALUATE,
        &[
            (
                "{ family: bitwise }",
                "{ family: bitwise, shots: [10, 1, 4], tasks: [AND, NAND, OR, NOR, XOR, XNOR, Null] }",
            ),
            ("{ kind: td }", "{ kind: td, layers: [4, 2, 0, 1, 3], k: 10 }"),
        ],
    );
    let sorted = |plan: &Plan| {
        let mut keys = keys(plan);
        keys.sort();
        keys
    };
    assert_eq!(sorted(&seen(EVALUATE)), sorted(&same));
    let tuned = changed(
        FINETUNE,
        &[(
            "layers: first:2",
            "layers: [1, 2], targets: [down_proj, q_proj, v_proj, k_proj, o_proj, up_proj, gate_proj]",
        )],
    );
    assert_eq!(keys(&seen(FINETUNE)), keys(&tuned));
}

#[test]
fn whatever_changes_the_results_of_an_evaluation_changes_its_keys() {
    use JobKind::{Interventions, Measure};
    let cases: &[(&str, &str, &[JobKind])] = &[
        ("name: words", "name: words\nseed: 1", &[Measure, Interventions]),
        ("models/tiny }", "models/tiny, dtype: bf16 }", &[Measure, Interventions]),
        ("models/tiny", "models/gpt2.gguf", &[Measure, Interventions]),
        ("bitwise", "bitwise, digits: 4", &[Measure, Interventions]),
        ("bitwise", "bitwise, tasks: [OR, AND, Null]", &[Measure, Interventions]),
        ("bitwise", "bitwise, instruction: named", &[Measure, Interventions]),
        ("bitwise", "bitwise, template: { arrow: \":\" }", &[Measure, Interventions]),
        ("{ kind: td }", "{ kind: td, k: 9 }", &[Measure]),
        ("{ kind: td }", "{ kind: td, pairs: false }", &[Measure]),
        ("{ kind: td }", "{ kind: td, sites: [x, y] }", &[Measure]),
        ("{ kind: td }", "{ kind: td, samples_per_task: 50 }", &[Measure]),
        ("{ kind: icl }", "{ kind: icl, samples_per_task: 50 }", &[Measure]),
        ("{ kind: icl }", "{ kind: icl }, { kind: lens }", &[Measure]),
        ("shots: [4]", "shots: [4], mode: add_mean_difference", &[Interventions]),
        ("shots: [4]", "shots: [4], layers: [2]", &[Interventions]),
        ("shots: [4]", "shots: [4], pairs: [[AND, OR]]", &[Interventions]),
        ("shots: [4]", "shots: [4], replicates: 2", &[Interventions]),
        ("shots: [4]", "shots: [4], positions: all", &[Interventions]),
        ("shots: [4]", "shots: [4], site: y", &[Interventions]),
    ];
    let before = seen(EVALUATE);
    for (from, to, kinds) in cases {
        let after = changed(EVALUATE, &[(from, to)]);
        for (a, b) in before.jobs.iter().zip(&after.jobs) {
            assert_eq!(a.key != b.key, kinds.contains(&a.kind()), "{to}: {}", a.kind());
        }
    }
}

/// The keys of `after` that `before` has too, by kind.
fn shared(before: &Plan, after: &Plan) -> BTreeMap<JobKind, usize> {
    let known = keys(before);
    let mut out = BTreeMap::new();
    for job in after.jobs.iter().filter(|j| known.contains(&j.key)) {
        *out.entry(job.kind()).or_default() += 1;
    }
    out
}

#[test]
fn fine_tuning_is_found_again_wherever_its_trajectory_is_the_same() {
    use JobKind::{Finetune, Interventions, Measure};
    let before = seen(FINETUNE);
    let all = BTreeMap::from([(Finetune, 2), (Measure, 6), (Interventions, 1)]);
    assert_eq!(shared(&before, &before), all);
    // More shots are measured: the training is the same.
    let more = changed(FINETUNE, &[("shots: [1, 4] }", "shots: [1, 4, 10] }")]);
    assert_eq!(shared(&before, &more), all);
    // Other segments: the checkpoints are the same.
    let cut = changed(FINETUNE, &[("resume_every: 60", "resume_every: 100")]);
    assert_eq!(shared(&before, &cut), BTreeMap::from([(Measure, 6), (Interventions, 1)]));
    // A longer training goes on from this one, as the learning rate does not depend on its length.
    let longer = changed(FINETUNE, &[("steps: 100", "steps: 200"), ("count: 3", "count: 5")]);
    assert_eq!(shared(&before, &longer)[&Finetune], 1);
    for other in [
        ("rank", "lora: { rank: 8, layers: first:2 }"),
        ("alpha", "lora: { alpha: 8, layers: first:2 }"),
        ("dropout", "lora: { dropout: 0, layers: first:2 }"),
        ("layers", "lora: { layers: last:2 }"),
        ("targets", "lora: { targets: [q_proj], layers: first:2 }"),
    ] {
        let after = changed(FINETUNE, &[("lora: { layers: first:2 }", other.1)]);
        assert_eq!(shared(&before, &after), BTreeMap::new(), "{}", other.0);
    }
    for train in [
        "batch: 16",
        "batch: 8, accumulate: 2",
        "batch: 8, max_examples: 99",
        "batch: 8, shots: 5",
        "batch: 8, warmup: 1",
        "batch: 8, optimizer: { weight_decay: 0.1 }",
    ] {
        let after = changed(FINETUNE, &[("batch: 8", train)]);
        assert_eq!(shared(&before, &after), BTreeMap::new(), "{train}");
    }
    // Written or not, no decay is what it was before there was one.
    let undecayed = changed(FINETUNE, &[("batch: 8", "batch: 8, optimizer: { weight_decay: 0 }")]);
    assert_eq!(shared(&before, &undecayed), all);
}

/// The planner works out what the jobs of a run share only once; the public functions are the rule.
#[test]
fn planned_keys_are_those_of_the_public_functions() {
    let plan = seen(FINETUNE);
    let RunSpec::Finetune(run) = &plan.runs[0].spec else { panic!() };
    let trajectory = finetune_trajectory(run.seed, &run.model, &run.data, &run.lora, &run.train);
    for job in plan.jobs.iter().chain(&seen(EVALUATE).jobs) {
        let inputs: Vec<Input> =
            job.needs.iter().map(|n| Input { trajectory, step: n.step, purpose: n.purpose }).collect();
        assert_eq!(job.key, job_key(&job.work, &inputs), "{} {:?}", job.kind(), job.step);
    }
}

/// As for the other kinds (`keys.rs`): these keys are in people's databases.
#[test]
fn keys_do_not_change_by_accident() {
    let shown = |plan: &Plan| -> Vec<String> {
        plan.jobs.iter().map(|j| format!("{} {}", j.kind(), &j.key.to_string()[..16])).collect()
    };
    assert_eq!(shown(&seen(EVALUATE)), GOLDEN_EVALUATE);
    assert_eq!(shown(&seen(FINETUNE)), GOLDEN_FINETUNE);
}

const GOLDEN_EVALUATE: &[&str] = &[
    "measure 5327093de9fc12a7",
    "measure d034a05d548dd6f1",
    "measure c0160f89446f0962",
    "interventions 1c6d8c9903547d7b",
];
const GOLDEN_FINETUNE: &[&str] = &[
    "finetune 6e7beb0c7a87038d",
    "measure de4086be11a541a3",
    "measure 590301ff4a974065",
    "measure 72d6bc885ad4bf12",
    "measure 0ae957f9c00fcdf1",
    "finetune 3f707c4e9f1615cf",
    "measure d1f1e8e3247ec4bb",
    "measure 57bca98198126363",
    "interventions 6e361a8fadb68beb",
];

//! Sweeps on pretrained language models: runs, jobs, and what a look at the files adds.

#[path = "common/files.rs"]
mod files;
#[path = "common/words.rs"]
mod words;

use files::Told;
use taskvec_model::{
    job::{JobKind, JobWork, Purpose, Subject},
    plan::Plan,
    spec::{
        At, Corpus, Family, FloatType, Instruction, Layers, LoraLayers, NaturalAnalysis, PatchLayers, PatchMode,
        PatchPairs, PatchPositions, RunSpec, Schedule, Site, Template,
    },
};
use taskvec_sweep::{Limits, NoFiles, Unseen, estimate, plan_with};
use words::{EVALUATE, FINETUNE, blind, changed, seen};

#[test]
fn the_papers_defaults_are_made_explicit() {
    let RunSpec::Evaluate(run) = &blind(EVALUATE).runs[0].spec.clone() else { panic!() };
    assert_eq!((run.model.dtype, run.model.revision.as_deref(), &run.model.identity), (FloatType::F32, None, &None));
    assert_eq!((&run.data.family, &*run.data.shots), (&Family::Bitwise { digits: 5 }, &[1, 4, 10][..]));
    assert_eq!(run.data.tasks, ["AND", "NAND", "OR", "NOR", "XOR", "XNOR", "Null"]);
    assert_eq!((&run.data.template, run.data.instruction), (&Template::default(), Instruction::None));
    let [NaturalAnalysis::Td(td), NaturalAnalysis::Icl(icl), NaturalAnalysis::Interventions(patches)] =
        &run.analyses[..]
    else {
        panic!("{:?}", run.analyses)
    };
    assert_eq!(
        (&td.layers, &*td.sites, td.k, td.samples_per_task, td.pairs),
        (&Layers::All, &[Site::X][..], 10, 100, true)
    );
    assert_eq!((icl.samples_per_task, &icl.at), (100, &At::All));
    assert_eq!((&patches.layers, patches.site, &patches.pairs), (&PatchLayers::Best, Site::X, &PatchPairs::Paper));
    assert_eq!((patches.positions, patches.mode), (PatchPositions::Last, PatchMode::Replace));
    assert_eq!((patches.samples_per_task, patches.replicates, &*patches.shots), (100, 5, &[4][..]));
    let all = blind(&EVALUATE.replace(", shots: [4]", ""));
    let RunSpec::Evaluate(run) = &all.runs[0].spec else { panic!() };
    let NaturalAnalysis::Interventions(patches) = &run.analyses[2] else { panic!() };
    assert_eq!(patches.shots, [1, 4, 10], "those of the data");
}

#[test]
fn fine_tuning_has_the_papers_adapters_and_the_defaults_of_hu_et_al() {
    let RunSpec::Finetune(run) = &blind(&FINETUNE.replace("lora: { layers: first:2 }\n", "")).runs[0].spec.clone()
    else {
        panic!()
    };
    assert_eq!((run.lora.rank, run.lora.alpha, run.lora.dropout, run.lora.layers), (16, 16.0, 0.1, LoraLayers::All));
    assert_eq!(run.lora.targets, ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]);
    let (train, optimizer) = (&run.train, &run.train.optimizer);
    assert_eq!((train.accumulate, train.max_examples, train.shots, train.log_every), (1, 10_000, 4, 10));
    assert_eq!((optimizer.learning_rate, optimizer.betas), (2e-4, [0.9, 0.999]));
    assert_eq!(run.checkpoints.schedule, Schedule::Linear);
    for (written, layers) in
        [("all", LoraLayers::All), ("last:3", LoraLayers::Last(3)), ("[2, 4]", LoraLayers::Range(2, 4))]
    {
        let RunSpec::Finetune(run) = &blind(&FINETUNE.replace("first:2", written)).runs[0].spec.clone() else {
            panic!()
        };
        assert_eq!(run.lora.layers, layers);
    }
}

#[test]
fn tasks_and_their_files_are_read_in_every_form() {
    let family = |data: &str| {
        let plan = blind(&EVALUATE.replace("{ family: bitwise }", data));
        let RunSpec::Evaluate(run) = &plan.runs[0].spec else { panic!() };
        (run.data.family.clone(), run.data.tasks.clone(), run.data.template.clone())
    };
    let (bundled, tasks, _) = family("{ family: pos, tasks: [Verb, Null] }");
    assert_eq!((bundled, tasks), (Family::Pos { corpus: Corpus::Bundled }, vec!["Verb".into(), "Null".into()]));
    let (same, all, _) = family("{ family: pos, corpus: { format: bundled } }");
    assert_eq!((same, all.len()), (Family::Pos { corpus: Corpus::Bundled }, 7));
    let (Family::Pos { corpus: Corpus::Brown { file } }, ..) =
        family("{ family: pos, corpus: { format: brown, path: brown.zip } }")
    else {
        panic!()
    };
    assert_eq!((file.path.as_str(), file.digest), ("brown.zip", None));
    let (Family::Pairs { file }, tasks, template) = family(
        "{ family: pairs, file: rows.csv, template: { input: \"Q: \", arrow: \"\\nA:\", separator: \"\\n\\n\" } }",
    ) else {
        panic!()
    };
    assert_eq!((file.path.as_str(), tasks), ("rows.csv", vec![]));
    assert_eq!(
        [&*template.input, &*template.arrow, &*template.gap, &*template.separator],
        ["Q: ", "\nA:", " ", "\n\n"]
    );
}

/// Kind, step and shots of every job.
fn shape(plan: &Plan) -> Vec<(&'static str, Option<u64>, Option<u32>)> {
    let shots = |work: &JobWork| match work {
        JobWork::Measure { shots, .. } | JobWork::Intervene { subject: Subject::Language { shots, .. }, .. } => {
            Some(*shots)
        }
        _ => None,
    };
    plan.jobs.iter().map(|j| (j.kind().as_str(), j.step, shots(&j.work))).collect()
}

#[test]
fn one_job_for_each_number_of_shots_measures_everything_and_interventions_have_their_own() {
    let plan = seen(EVALUATE);
    assert_eq!(
        shape(&plan),
        [
            ("measure", Some(0), Some(1)),
            ("measure", Some(0), Some(4)),
            ("measure", Some(0), Some(10)),
            ("interventions", Some(0), Some(4)),
        ]
    );
    assert!(plan.jobs.iter().all(|j| j.needs.is_empty() && j.flops > 0.0));
    let JobWork::Measure { data, icl, td: Some(td), lens: None, .. } = &plan.jobs[1].work else { panic!() };
    assert_eq!((&*data.shots, *icl, &td.layers), (&[4][..], Some(100), &Layers::List(vec![0, 1, 2, 3, 4])));
    let JobWork::Intervene { spec, .. } = &plan.jobs[3].work else { panic!() };
    assert_eq!((&*spec.shots, &spec.layers), (&[][..], &PatchLayers::Best));
    let only = changed(EVALUATE, &[("{ kind: td }, { kind: icl }, ", "")]);
    assert_eq!(shape(&only), [("interventions", Some(0), Some(4))]);
}

#[test]
fn fine_tuning_is_cut_into_segments_each_followed_by_the_analyses_of_its_checkpoints() {
    let plan = seen(FINETUNE);
    assert_eq!(
        shape(&plan),
        [
            ("finetune", Some(60), None),
            ("measure", Some(0), Some(1)),
            ("measure", Some(0), Some(4)),
            ("measure", Some(50), Some(1)),
            ("measure", Some(50), Some(4)),
            ("finetune", Some(100), None),
            ("measure", Some(100), Some(1)),
            ("measure", Some(100), Some(4)),
            ("interventions", Some(100), Some(4)),
        ]
    );
    let needs: Vec<_> = plan.jobs.iter().map(|j| j.needs.first().map(|n| (n.job, n.step, n.purpose))).collect();
    assert_eq!(needs[0], None);
    assert_eq!((needs[1], needs[4]), (Some((0, 0, Purpose::Weights)), Some((0, 50, Purpose::Weights))));
    assert_eq!((needs[5], needs[8]), (Some((0, 60, Purpose::Resume)), Some((5, 100, Purpose::Weights))));
    let JobWork::Measure { td, .. } = &plan.jobs[1].work else { panic!() };
    assert!(td.is_none(), "TD is asked for at the last step only");
    let JobWork::Finetune { data, lora, .. } = &plan.jobs[0].work else { panic!() };
    assert_eq!((&*data.shots, lora.layers), (&[4][..], LoraLayers::Range(1, 2)));
    let estimate = estimate(&plan, &[]);
    assert!(estimate.weight_bytes > 0.0 && estimate.resume_bytes > estimate.weight_bytes);
    assert_eq!(plan.jobs.len() as u64, 9);
}

#[test]
fn interventions_in_synthetic_models_are_jobs_of_their_checkpoints() {
    let plan = blind(
        "
version: 1
name: small
kind: pretrain
model: { arch: gpt2, layers: 6, width: 16, heads: 4 }
data: { family: sparse_linear, dim: 4, bases: 2, rank: 2, examples: 8 }
train: { steps: 100, batch: 8 }
checkpoints: { schedule: linear, count: 3 }
analyses: [{ kind: interventions }, { kind: interventions, at: last, layers: all, mode: add_mean_difference, site: y }]
",
    );
    let steps: Vec<_> = plan.jobs.iter().filter(|j| j.kind() == JobKind::Interventions).map(|j| j.step).collect();
    assert_eq!(steps, [Some(0), Some(50), Some(100), Some(100)]);
    let JobWork::Intervene { subject: Subject::Synthetic { model, .. }, spec, .. } = &plan.jobs[2].work else {
        panic!()
    };
    assert_eq!((model.layers, &spec.layers, &spec.pairs), (6, &PatchLayers::List(vec![5]), &PatchPairs::Matrix));
    assert_eq!((spec.site, spec.positions, spec.replicates), (Site::X, PatchPositions::All, 1));
    let JobWork::Intervene { spec, .. } = &plan.jobs.last().unwrap().work else { panic!() };
    assert_eq!((&spec.layers, spec.site), (&PatchLayers::List((1..=6).collect()), Site::Y));
    assert!(plan.jobs.iter().all(|j| j.flops > 0.0));
}

#[test]
fn a_pattern_becomes_a_run_for_every_revision_in_order() {
    let yaml = EVALUATE.replace("{ path: models/tiny }", "{ path: models/steps, revision: \"step*\" }");
    let plan = seen(&format!("{yaml}grid: {{ seed: [0, 1] }}\n"));
    let runs: Vec<_> = plan.runs.iter().map(|r| r.params.clone()).collect();
    let expected = [0, 1].iter().flat_map(|seed| {
        [0, 1000, 20_000].map(|s| serde_json::json!({ "seed": seed, "model.revision": format!("step{s}") }))
    });
    assert_eq!(runs, expected.collect::<Vec<_>>());
    let steps: Vec<_> = plan.jobs.iter().filter(|j| j.run == 1).map(|j| j.step).collect();
    assert_eq!(steps, [Some(1000); 4]);
    // In a grid, beside others; the same revision once.
    let yaml = EVALUATE.replace("{ path: models/tiny }", "{ path: models/steps }");
    let plan = seen(&format!("{yaml}grid: {{ model.revision: [step1000, \"step2*\", \"step*\"] }}\n"));
    let names: Vec<_> = plan.runs.iter().map(|r| r.params["model.revision"].clone()).collect();
    assert_eq!(names, ["step1000", "step20000", "step0"]);
    let blind = blind(&format!("{yaml}grid: {{ model.revision: [step1000, \"step*\"] }}\n"));
    assert_eq!(blind.runs.len(), 2, "left as it is where no files are looked at");
}

#[test]
fn patterns_count_for_the_limit_of_runs() {
    let yaml = EVALUATE.replace("{ path: models/tiny }", "{ path: models/steps, revision: \"step*\" }");
    let limits = Limits { runs: 2, ..Limits::default() };
    let faults = plan_with(&yaml, "r.yaml", &limits, &Told).unwrap_err().to_string();
    assert_eq!(faults, "r.yaml:5:40: with all revisions that match, the sweep has more than 2 runs; at most 2");
}

#[test]
fn jobs_are_counted_before_they_are_made() {
    for (yaml, jobs) in [(EVALUATE, 4), (FINETUNE, 9)] {
        let with = |jobs: u64| plan_with(yaml, "n.yaml", &Limits { jobs, ..Limits::default() }, &Told);
        assert_eq!(with(jobs).unwrap().jobs.len() as u64, jobs);
        let refused = with(jobs - 1).unwrap_err().to_string();
        assert!(refused.contains(&format!("the sweep has {jobs} jobs; a sweep may have {}", jobs - 1)), "{refused}");
    }
}

#[test]
fn work_survives_being_stored() {
    for job in seen(EVALUATE).jobs.iter().chain(&seen(FINETUNE).jobs) {
        let text = serde_json::to_string(&job.work).unwrap();
        assert_eq!(serde_json::from_str::<JobWork>(&text).unwrap(), job.work);
    }
    for run in seen(EVALUATE).runs.iter().chain(&seen(FINETUNE).runs) {
        let text = serde_json::to_string(&run.spec).unwrap();
        assert_eq!(serde_json::from_str::<RunSpec>(&text).unwrap(), run.spec);
    }
}

#[test]
fn a_server_that_sees_no_files_says_so_once() {
    let faults = plan_with(EVALUATE, "w.yaml", &Limits::default(), &NoFiles).unwrap_err();
    assert_eq!(faults.len(), 1);
    assert!(
        faults.to_string().starts_with("w.yaml:5:16: `model.path`: models and data cannot be looked at here"),
        "{faults}"
    );
    assert!(
        plan_with("version: 1\nname: s\nkind: selftest\nselftest: { jobs: 1 }\n", "s", &Limits::default(), &NoFiles)
            .is_ok()
    );
}

#[test]
fn each_model_is_looked_at_once_a_plan() {
    #[derive(Debug, Default)]
    struct Counting(std::cell::Cell<u32>);
    impl taskvec_sweep::Files for Counting {
        fn model(&self, path: &str, revision: Option<&str>) -> Result<taskvec_model::spec::ModelIdentity, Unseen> {
            self.0.set(self.0.get() + 1);
            taskvec_sweep::Files::model(&Told, path, revision)
        }
        fn revisions(&self, _: &str, _: &str) -> Result<Vec<String>, Unseen> {
            Ok(Vec::new())
        }
        fn data(&self, family: &Family) -> Result<Family, Unseen> {
            Ok(family.clone())
        }
    }
    let counting = Counting::default();
    let seeds: Vec<String> = (0..200).map(|s| s.to_string()).collect();
    let yaml = format!("{EVALUATE}grid: {{ seed: [{}], model.path: [models/tiny, models/copy] }}\n", seeds.join(", "));
    let plan = plan_with(&yaml, "many.yaml", &Limits::default(), &counting).unwrap();
    assert_eq!((plan.runs.len(), counting.0.get()), (400, 2));
}

/// Answers every question with several lines.
#[derive(Debug)]
struct Verbose;

impl taskvec_sweep::Files for Verbose {
    fn model(&self, _: &str, _: Option<&str>) -> Result<taskvec_model::spec::ModelIdentity, Unseen> {
        Err(Unseen::Unusable("the model is:\n  cut short\n\nfetch it again\n".to_owned()))
    }

    fn revisions(&self, _: &str, _: &str) -> Result<Vec<String>, Unseen> {
        Err(Unseen::Absent("no revisions\r\nplace them".to_owned()))
    }

    fn data(&self, _: &Family) -> Result<Family, Unseen> {
        Err(Unseen::Unusable("rows.csv:3: no tab\nrows.csv:4: no tab".to_owned()))
    }
}

#[test]
fn an_answer_of_several_lines_is_one_fault_in_one_line() {
    let faults = |yaml: &str| {
        let faults = plan_with(yaml, "w.yaml", &Limits::default(), &Verbose).unwrap_err();
        assert_eq!(faults.to_string().lines().count(), faults.len(), "{faults}");
        faults.to_string()
    };
    let pairs = EVALUATE.replace("family: bitwise", "family: pairs, file: rows.csv");
    assert_ne!(pairs, EVALUATE);
    let text = faults(&pairs);
    assert!(text.contains("`model.path`: the model is: cut short; fetch it again"), "{text}");
    assert!(text.contains("rows.csv:3: no tab; rows.csv:4: no tab"), "{text}");
    let text = faults(&format!("{EVALUATE}grid: {{ model.revision: [\"step*\"] }}\n"));
    assert!(text.ends_with("`model.revision`: no revisions; place them"), "{text}");
}

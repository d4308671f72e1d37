//! Fine-tuning is a function of the specification: however it is cut, stopped, handed over or threaded, the bytes are equal.
//! Its adapters are read by analyses, and by PEFT.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use candle_core::Device;
use common::{
    Folder, Memory, fixture,
    tiny::{self, LAYERS},
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};
use taskvec_model::{
    job::{JobWork, LensPart, Purpose, Retry, Subject, TdPart},
    metric::Metrics,
    spec::{
        At, CheckpointSpec, Decay, InterventionSpec, Layers, LoraLayers, LoraSpec, OptimizerKind, OptimizerSpec,
        PatchLayers, PatchMode, PatchPairs, PatchPositions, PretrainedSpec, Schedule, Site, TuneSpec,
    },
};
use taskvec_science::{
    Executed, Inputs, Models, ScienceError, execute,
    load::{Files, Room},
    lora::peft,
    model::language::{Batch, Logits},
};

const STEPS: u64 = 8;

fn lora() -> LoraSpec {
    let targets = ["v_proj", "q_proj", "down_proj"].map(str::to_owned).to_vec();
    LoraSpec { rank: 3, alpha: 6.0, dropout: 0.1, targets, layers: LoraLayers::Last(2) }
}

fn train() -> TuneSpec {
    TuneSpec {
        steps: STEPS,
        batch: 6,
        accumulate: 2,
        max_examples: 20,
        shots: 1,
        optimizer: OptimizerSpec {
            kind: OptimizerKind::Adam,
            learning_rate: 1e-2,
            betas: [0.9, 0.999],
            epsilon: 1e-8,
            weight_decay: 0.0,
        },
        warmup: 2,
        decay: Decay::Cosine,
        clip_norm: Some(1.0),
        log_every: 3,
    }
}

/// A model on disk, and the processes' models.
struct World {
    folder: Folder,
    models: Models,
}

impl World {
    fn new() -> Self {
        Self { folder: tiny::folder(1), models: Models::default() }
    }

    fn model(&self) -> PretrainedSpec {
        tiny::pretrained(&self.folder)
    }

    fn work(&self, from: u64, to: u64) -> JobWork {
        let checkpoints = CheckpointSpec { schedule: Schedule::Linear, count: 3, resume_every: STEPS };
        let (model, data) = (self.model(), tiny::bitwise(1));
        JobWork::Finetune { seed: 3, model, data, lora: lora(), train: train(), checkpoints, from, to }
    }

    fn execute(&self, work: &JobWork, inputs: Inputs, sink: &mut Memory) -> Result<Executed, ScienceError> {
        execute(work, &inputs, &self.models, sink)
    }

    fn run(&self, from: u64, to: u64, resume: Option<&Path>, sink: &mut Memory) -> Result<Executed, ScienceError> {
        let inputs = Inputs { resume: resume.map(Path::to_owned), weights: None };
        self.execute(&self.work(from, to), inputs, sink)
    }

    /// All of training in one segment.
    fn undisturbed(&self) -> Memory {
        let mut sink = Memory::default();
        assert!(matches!(self.run(0, STEPS, None, &mut sink), Ok(Executed::Finished(m)) if m.rows() == 0));
        sink
    }

    /// Everything that is measured, with these adapters or without any.
    fn measured(&self, adapters: Option<&Path>) -> Metrics {
        let td = TdPart { layers: Layers::All, sites: vec![Site::X], k: 3, samples_per_task: 8, pairs: true };
        let lens = LensPart { layers: Layers::All, samples_per_task: 8 };
        let (model, data) = (self.model(), tiny::bitwise(1));
        let measure = JobWork::Measure { seed: 3, model, data, shots: 1, icl: Some(8), td: Some(td), lens: Some(lens) };
        let spec = InterventionSpec {
            at: At::All,
            layers: PatchLayers::All,
            site: Site::X,
            positions: PatchPositions::Last,
            mode: PatchMode::Replace,
            pairs: PatchPairs::Paper,
            shots: Vec::new(),
            samples_per_task: 4,
            replicates: 1,
        };
        let subject = Subject::Language { model: self.model(), data: tiny::bitwise(1), shots: 1 };
        let intervene = JobWork::Intervene { seed: 3, subject, spec };
        let run = |work| {
            let inputs = Inputs { resume: None, weights: adapters.map(Path::to_owned) };
            match self.execute(work, inputs, &mut Memory::default()) {
                Ok(Executed::Finished(metrics)) => metrics,
                other => panic!("{other:?}"),
            }
        };
        Metrics { interventions: run(&intervene).interventions, ..run(&measure) }
    }
}

/// What several parts produced, with the resume states between them left out.
fn joined(parts: Vec<Memory>) -> Memory {
    let mut all = Memory::default();
    for part in parts {
        all.files.extend(part.files);
        all.losses.extend(part.losses);
    }
    all.files.retain(|(step, purpose), _| *purpose == Purpose::Weights || *step == STEPS);
    all
}

fn assert_same(a: &Memory, b: &Memory) {
    assert_eq!(a.files.keys().collect::<Vec<_>>(), b.files.keys().collect::<Vec<_>>());
    for (key, bytes) in &a.files {
        assert!(bytes == &b.files[key], "{key:?} differs");
    }
    let rows = |m: &Memory| m.losses.iter().map(|r| (r.step, r.loss.to_bits(), r.learning_rate.to_bits())).collect();
    let (a, b): (Vec<_>, Vec<_>) = (rows(a), rows(b));
    assert_eq!(a, b);
}

#[test]
fn a_run_writes_its_schedule_and_logs_its_steps() {
    let sink = World::new().undisturbed();
    let steps = |purpose| sink.files.keys().filter(|k| k.1 == purpose).map(|k| k.0).collect::<Vec<_>>();
    assert_eq!(steps(Purpose::Weights), [0, 4, 8]);
    assert_eq!(steps(Purpose::Resume), [8]);
    assert_eq!(sink.losses.iter().map(|r| r.step).collect::<Vec<_>>(), [1, 3, 6, 8]);
    assert_eq!(sink.losses[0].learning_rate, 0.5e-2);
    assert!(sink.losses.iter().all(|r| r.sequences_per_second > 0.0));
    assert_eq!(sink.progress.iter().map(|p| p.done).collect::<Vec<_>>(), (1..=STEPS).collect::<Vec<_>>());
    let last = sink.progress.last().unwrap();
    assert!(last.total == STEPS && last.loss == Some(sink.losses[3].loss));
}

#[test]
fn cutting_into_segments_changes_nothing() {
    let (folder, world) = (Folder::new(), World::new());
    let whole = world.undisturbed();
    for cuts in [vec![3], vec![1, 4, 7]] {
        let mut parts = Vec::new();
        let (mut from, mut state) = (0, None);
        for to in cuts.into_iter().chain([STEPS]) {
            let mut sink = Memory::default();
            assert!(matches!(world.run(from, to, state.as_deref(), &mut sink), Ok(Executed::Finished(_))));
            state = Some(folder.put("state", &sink.files[&(to, Purpose::Resume)]));
            parts.push(sink);
            from = to;
        }
        assert_same(&whole, &joined(parts));
    }
}

#[test]
fn a_stop_hands_over_and_another_attempt_goes_on() {
    let (folder, world) = (Folder::new(), World::new());
    let whole = world.undisturbed();
    for stop in [1, 4, 7] {
        let mut first = Memory { stop_at: Some(stop), ..Memory::default() };
        let Ok(Executed::Stopped { at }) = world.run(0, STEPS, None, &mut first) else { panic!("it should stop") };
        assert_eq!((at.step, at.purpose), (stop, Purpose::Resume));
        let state = folder.put("handover", &first.files[&(stop, Purpose::Resume)]);
        let mut second = Memory::default();
        assert!(matches!(world.run(0, STEPS, Some(&state), &mut second), Ok(Executed::Finished(_))));
        assert_same(&whole, &joined(vec![first, second]));
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let world = World::new();
    let runs = [1, 2, 3].map(|threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| world.undisturbed())
    });
    for run in &runs[1..] {
        assert_same(&runs[0], run);
    }
}

#[test]
fn adapters_learn_and_the_model_stays_as_it_is() {
    let world = World::new();
    let before = fs::read(world.folder.path().join("model.safetensors")).unwrap();
    let mut work = world.work(0, 60);
    let JobWork::Finetune { train, lora, .. } = &mut work else { unreachable!() };
    (train.steps, train.decay, train.log_every) = (60, Decay::None, 1);
    lora.layers = LoraLayers::All;
    let base = world.measured(None);
    let mut sink = Memory::default();
    world.execute(&work, Inputs::default(), &mut sink).unwrap();
    let mean = |rows: &[taskvec_model::metric::TrainLoss]| rows.iter().map(|r| r.loss).sum::<f64>() / rows.len() as f64;
    let (first, last) = (mean(&sink.losses[..5]), mean(&sink.losses[55..]));
    assert!(last < 0.5 * first, "{first} → {last}");
    assert_eq!(world.measured(None), base);
    assert_eq!(fs::read(world.folder.path().join("model.safetensors")).unwrap(), before);
}

#[test]
fn analyses_see_the_model_with_its_adapters() {
    let (folder, world) = (Folder::new(), World::new());
    let sink = world.undisturbed();
    let base = world.measured(None);
    let at = |step| world.measured(Some(&folder.put("weights", &sink.files[&(step, Purpose::Weights)])));
    // B is zero: the same numbers, bit for bit.
    assert_eq!(at(0), base);
    let tuned = at(STEPS);
    assert!(tuned.icl.len() == base.icl.len() && tuned.interventions.len() == base.interventions.len());
    let lens = |m: &Metrics, last: bool| {
        let rows = m.lens.iter().filter(|l| (l.layer == LAYERS as u32) == last);
        rows.map(|l| l.log_prob.to_bits()).collect::<Vec<_>>()
    };
    assert!(!base.lens.is_empty());
    assert_ne!(lens(&tuned, true), lens(&base, true));
    // The adapters are those of the last two layers: what the first leaves is as before.
    let first = |m: &Metrics| m.td.iter().filter(|t| t.layer == 1).map(|t| t.value.to_bits()).collect::<Vec<_>>();
    assert_eq!(first(&tuned), first(&base));
}

#[test]
fn divergence_is_reported_with_its_step_and_never_retried() {
    let world = World::new();
    let mut work = world.work(0, STEPS);
    let JobWork::Finetune { train, .. } = &mut work else { unreachable!() };
    (train.optimizer.learning_rate, train.warmup, train.clip_norm) = (1e300, 0, None);
    let mut sink = Memory::default();
    let error = world.execute(&work, Inputs::default(), &mut sink).unwrap_err();
    let ScienceError::Diverged { step, last_loss, .. } = error else { panic!("{error}") };
    let before = sink.progress.last().unwrap();
    assert_eq!((step, last_loss), (before.done + 1, before.loss));
    assert_eq!(error.retry(), Retry::Never);
    assert!(!sink.files.contains_key(&(STEPS, Purpose::Resume)));
}

/// As in training from the beginning: a loss that nobody could have who knows nothing, though it is a number.
#[test]
fn a_loss_that_explodes_is_divergence() {
    let world = World::new();
    let path = world.folder.path().join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    let norm = tensors.get_mut("model.norm.weight").unwrap();
    *norm = (&*norm * 1e9).unwrap();
    candle_core::safetensors::save(&tensors, &path).unwrap();
    let error = world.run(0, STEPS, None, &mut Memory::default()).unwrap_err();
    let message =
        "training diverged at step 1: the loss is over a million times that of finding all tokens equally likely";
    assert!(error.to_string().starts_with(message), "{error}");
    assert_eq!(error.retry(), Retry::Never);
}

/// Examples are made when they are needed: as many as a sweep may ask for are no more than a few.
#[test]
fn the_number_of_examples_costs_nothing() {
    let world = World::new();
    let losses = |count| {
        let mut work = world.work(0, STEPS);
        let JobWork::Finetune { train, .. } = &mut work else { unreachable!() };
        (train.max_examples, train.log_every) = (count, 1);
        let mut sink = Memory::default();
        assert!(matches!(world.execute(&work, Inputs::default(), &mut sink), Ok(Executed::Finished(_))));
        sink.losses.iter().map(|row| row.loss.to_bits()).collect::<Vec<_>>()
    };
    let (most, more) = (losses(100_000_000), losses(u32::MAX));
    assert!(most.len() == STEPS as usize && most != more);
}

#[test]
fn a_state_that_does_not_belong_is_refused() {
    let (folder, world) = (Folder::new(), World::new());
    let whole = world.undisturbed();
    let (resume, weights) = (&whole.files[&(STEPS, Purpose::Resume)], &whole.files[&(STEPS, Purpose::Weights)]);
    let mut half = Memory::default();
    world.run(0, 4, None, &mut half).unwrap();
    let middle = &half.files[&(4, Purpose::Resume)];
    let refused = |work: &JobWork, world: &World, bytes: &[u8], says: &str| {
        let path = folder.put("state", bytes);
        let inputs = match work {
            JobWork::Finetune { .. } => Inputs { resume: Some(path), weights: None },
            _ => Inputs { resume: None, weights: Some(path) },
        };
        let error = world.execute(work, inputs, &mut Memory::default()).unwrap_err();
        assert_eq!(error.retry(), Retry::Never);
        assert!(error.to_string().contains(says), "{error}");
    };
    let changed = |change: fn(&mut u64, &mut LoraSpec)| {
        let mut work = world.work(4, STEPS);
        let JobWork::Finetune { seed, lora, .. } = &mut work else { unreachable!() };
        change(seed, lora);
        work
    };
    let whole_run = world.work(0, STEPS);
    refused(&whole_run, &world, resume, "at step 8, outside the segment 0 to 8");
    refused(&whole_run, &world, weights, "its purpose is weights, wanted resume");
    refused(&changed(|seed, _| *seed = 4), &world, middle, "its seed is 3, wanted 4");
    refused(&changed(|_, lora| lora.dropout = 0.2), &world, middle, "its lora is");
    refused(&whole_run, &world, &middle[..middle.len() - 1], "is not an intact safetensors file");
    let other = World { folder: tiny::folder(2), models: Models::default() };
    refused(&other.work(4, STEPS), &other, middle, "its model is");
    let measure = |world: &World, seed| JobWork::Measure {
        seed,
        model: world.model(),
        data: tiny::bitwise(1),
        shots: 1,
        icl: Some(1),
        td: None,
        lens: None,
    };
    refused(&measure(&world, 3), &world, resume, "its purpose is resume, wanted weights");
    refused(&measure(&world, 4), &world, weights, "its seed is 3, wanted 4");
    refused(&measure(&other, 3), &other, weights, "its model is");
    let error = world.run(4, STEPS, None, &mut Memory::default()).unwrap_err();
    assert_eq!(error.to_string(), "the job was given no resume checkpoint to read");
    // The same layers and modules in other words are the same run.
    let same = changed(|_, lora| {
        lora.layers = LoraLayers::Range(2, 3);
        lora.targets.reverse();
    });
    let inputs = Inputs { resume: Some(folder.put("state", middle)), weights: None };
    let mut sink = Memory::default();
    world.execute(&same, inputs, &mut sink).unwrap();
    assert!(sink.files[&(STEPS, Purpose::Weights)] == *weights);
}

#[test]
fn a_module_that_is_not_there_is_refused_before_anything_is_written() {
    let world = World::new();
    let mut work = world.work(0, STEPS);
    let JobWork::Finetune { lora, .. } = &mut work else { unreachable!() };
    lora.targets = vec!["c_attn".into()];
    let mut sink = Memory::default();
    let error = world.execute(&work, Inputs::default(), &mut sink).unwrap_err();
    assert_eq!(error.retry(), Retry::Never);
    let message = error.to_string();
    assert!(message.contains("no module `c_attn`; it has `q_proj`") && sink.files.is_empty(), "{message}");
}

/// The names of tensors and the keys of the configuration are exactly those that PEFT writes.
#[test]
fn checkpoints_become_folders_for_peft() {
    let (folder, world) = (Folder::new(), World::new());
    let sink = world.undisturbed();
    let checkpoint = folder.put("weights.safetensors", &sink.files[&(STEPS, Purpose::Weights)]);
    let written = folder.path().join("adapter");
    peft::write_folder(&checkpoint, &written).unwrap();
    let json = |path: &Path| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let ours = json(&written.join("adapter_config.json"));
    let theirs = json(&fixture("lora").join("llama/adapter_config.json"));
    let keys = |v: &Value| v.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&ours), keys(&theirs));
    for (key, value) in theirs.as_object().unwrap() {
        let ours = &ours[key];
        match key.as_str() {
            "base_model_name_or_path" => assert_eq!(ours, &Value::from(world.folder.path().to_str().unwrap())),
            "r" => assert_eq!((value, ours), (&3.into(), &3.into())),
            "target_modules" => assert_eq!(ours, &serde_json::json!(["down_proj", "q_proj", "v_proj"])),
            _ => assert_eq!(ours, value, "{key}"),
        }
    }
    let names = |path: &Path| -> BTreeSet<String> {
        let tensors = candle_core::safetensors::load(path, &candle_core::Device::Cpu).unwrap();
        tensors.into_keys().collect()
    };
    let ours = names(&written.join("adapter_model.safetensors"));
    let wanted = |name: &&String| lora().targets.iter().any(|target| name.contains(target.as_str()));
    let theirs = names(&fixture("lora").join("llama/adapter_model.safetensors"));
    assert_eq!(ours.iter().collect::<Vec<_>>(), theirs.iter().filter(wanted).collect::<Vec<_>>());

    // What is written is read as what is measured.
    let model = Files::find(world.folder.path().to_str().unwrap(), None).unwrap();
    let model = model.load(candle_core::DType::F32, &[Room::cpu()]).unwrap();
    let read = peft::read(&written, &model).unwrap();
    let batch = Batch::new([[1u32, 50, 60, 70]]).unwrap();
    let logits = |m: &taskvec_science::model::language::LanguageModel| {
        m.forward(&batch, None, None, Logits::All).unwrap().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    assert_ne!(logits(&model.with_adapters(&read).unwrap()), logits(&model));
    let state = folder.put("resume.safetensors", &sink.files[&(STEPS, Purpose::Resume)]);
    let error = peft::write_folder(&state, &written).unwrap_err().to_string();
    assert!(error.contains("is a state to resume from"), "{error}");
    let error = peft::write_folder(&world.folder.path().join("model.safetensors"), &written).unwrap_err().to_string();
    assert!(error.contains("holds no adapters: it was not written by taskvec"), "{error}");
}

/// The adapters of a whole run as a folder for PEFT.
fn for_peft(world: &World, to: &Path) {
    let (folder, sink) = (Folder::new(), world.undisturbed());
    let checkpoint = folder.put("weights.safetensors", &sink.files[&(STEPS, Purpose::Weights)]);
    peft::write_folder(&checkpoint, to).unwrap();
}

/// Writes what `fixtures/lora_ours.py` has PEFT load, and the model that it is for to the folder `MODEL`:
/// `MODEL=/tmp/tiny cargo test --test tune -- --ignored`.
#[test]
#[ignore = "writes a fixture"]
fn write_adapters_for_peft() {
    let (world, model) = (World::new(), std::env::var_os("MODEL").expect("a folder for the model"));
    for_peft(&world, &fixture("lora_ours"));
    fs::create_dir_all(&model).unwrap();
    for entry in fs::read_dir(world.folder.path()).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), Path::new(&model).join(entry.file_name())).unwrap();
    }
}

/// PEFT has loaded the folder in the fixture, without a warning. What we write now is that, and predicts what PEFT predicted.
#[test]
fn peft_loads_what_we_write_and_predicts_the_same() {
    let (folder, world) = (Folder::new(), World::new());
    for_peft(&world, folder.path());
    let [ours, kept] = [folder.path().to_owned(), fixture("lora_ours")].map(|folder| {
        let mut config: Value = serde_json::from_slice(&fs::read(folder.join("adapter_config.json")).unwrap()).unwrap();
        config["base_model_name_or_path"] = Value::Null;
        let tensors = candle_core::safetensors::load(folder.join("adapter_model.safetensors"), &Device::Cpu).unwrap();
        (config, tensors.into_iter().collect::<BTreeMap<_, _>>())
    });
    assert_eq!(ours.0, kept.0);
    assert!(ours.1.keys().eq(kept.1.keys()) && !ours.1.is_empty());
    for (name, tensor) in &ours.1 {
        common::language::assert_close(name, tensor, &kept.1[name], 1e-4);
    }
    let expected = candle_core::safetensors::load(fixture("lora_ours/expected.safetensors"), &Device::Cpu).unwrap();
    let ids: Vec<u32> = expected["input_ids"].to_vec1::<i64>().unwrap().into_iter().map(|id| id as u32).collect();
    let model = Files::find(world.folder.path().to_str().unwrap(), None).unwrap();
    let model = model.load(candle_core::DType::F32, &[Room::cpu()]).unwrap();
    let adapted = model.with_adapters(&peft::read(folder.path(), &model).unwrap()).unwrap();
    let logits = adapted.forward(&Batch::new([ids]).unwrap(), None, None, Logits::All).unwrap().unwrap();
    common::language::assert_close("logits", &logits, &expected["logits"], 1e-4);
    let plain = common::language::flat(&expected["plain"]);
    let far = common::language::flat(&logits).iter().zip(&plain).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(far > 0.01, "the adapters do nothing: {far}");
}

//! Language models on GPUs: they agree with transformers, and with themselves on the CPU.
#![cfg(feature = "candle-cuda")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use candle_core::{DType, Device, Tensor};
use common::{
    Folder, Memory, fixture,
    language::{self, Expected, MODELS, assert_close, assert_same, flat, part},
    tiny,
};
use taskvec_model::{
    job::{JobWork, LensPart, Purpose, Subject, TdPart},
    metric::Metrics,
    spec::{
        At, CheckpointSpec, Decay, InterventionSpec, Layers, LoraLayers, LoraSpec, OptimizerKind, OptimizerSpec,
        PatchLayers, PatchMode, PatchPairs, PatchPositions, Schedule, Site, TuneSpec,
    },
};
use taskvec_science::{
    Executed, Inputs, Models, execute,
    hook::{Capture, Change, Edit, HookPoint, Tokens},
    load::{Files, Room},
    lora::{DropoutAt, Example, gradients, peft},
    model::language::{Batch, LanguageModel, Logits, generate},
};

/// Two GPUs; where there is one, that one twice, and none, with a word about it, where there is none.
fn gpus() -> Option<[Device; 2]> {
    match [Room::gpu(0), Room::gpu(1)] {
        [Ok(first), Ok(second)] => Some([first.device, second.device]),
        [Ok(only), Err(_)] => {
            common::skipped(format_args!("there is one GPU: no model lies on two"));
            Some([only.device.clone(), only.device])
        }
        [Err(error), _] => {
            common::skipped(format_args!("there is no GPU ({error})"));
            None
        }
    }
}

/// Their numbers.
fn numbers() -> Vec<usize> {
    (0..2).filter(|gpu| Room::gpu(*gpu).is_ok()).collect()
}

fn files(name: &str) -> Files {
    let folder = if name == "mamba2" { fixture("mamba2/two_groups") } else { language::folder(name) };
    Files::find(folder.to_str().unwrap(), None).unwrap()
}

/// The model on the first GPU; over both, the last block and what follows on the second; on both and the CPU.
fn placed(name: &str, dtype: DType, [first, second]: &[Device; 2]) -> Vec<LanguageModel> {
    let files = files(name);
    let all = files.bytes(dtype);
    let room = |device: &Device, bytes| Room { device: device.clone(), bytes };
    let most = files.parts(dtype);
    let of_first = most.embedding + most.unembedding + most.blocks[0];
    let spread = [
        vec![room(first, all)],
        vec![room(first, of_first), room(second, all)],
        vec![room(first, of_first), room(second, most.blocks[1]), room(&Device::Cpu, all)],
    ];
    spread.iter().map(|rooms| files.load(dtype, rooms).unwrap()).collect()
}

fn on_cpu(name: &str, dtype: DType) -> LanguageModel {
    files(name).load(dtype, &[Room::cpu()]).unwrap()
}

fn back(x: &Tensor) -> Tensor {
    x.to_device(&Device::Cpu).unwrap()
}

#[test]
fn every_architecture_agrees_with_transformers_on_one_gpu_and_over_several() {
    let Some(gpus) = gpus() else { return };
    for name in MODELS {
        let expected = Expected::of(name);
        for model in placed(name, DType::F32, &gpus) {
            expected.check_pass(&model);
        }
    }
}

#[test]
fn blocks_lie_where_there_is_room() {
    let Some(gpus) = gpus() else { return };
    let where_they_are = |model: &LanguageModel| {
        let logits = model.forward(&Batch::new([[1, 2]]).unwrap(), None, None, Logits::Last).unwrap().unwrap();
        (model.device().location(), logits.device().location())
    };
    let [one, two, three] = &placed("llama", DType::F32, &gpus)[..] else { panic!() };
    let [first, second] = gpus.each_ref().map(Device::location);
    assert_eq!(where_they_are(one), (first, first));
    assert_eq!(where_they_are(two), (first, second));
    assert_eq!(where_they_are(three), (first, Device::Cpu.location()));
}

#[test]
fn states_and_weights_of_fewer_bits_are_as_on_the_cpu() {
    let Some(gpus) = gpus() else { return };
    for (name, dtype, tolerance) in [
        ("mamba2", DType::F32, 1e-5),
        ("llama", DType::BF16, 1e-2),
        ("gemma2", DType::F16, 1e-3),
        ("gpt2", DType::F64, 1e-10),
    ] {
        let batch = Batch::new([vec![1, 5, 9, 3], vec![7], vec![2; 20]]).unwrap();
        let all = |model: &LanguageModel| {
            let mut capture = Capture::new((0..=model.config().layers).map(HookPoint::hidden), Tokens::all());
            let logits = model.forward(&batch, None, Some(&mut capture), Logits::All).unwrap().unwrap();
            let states = (0..=model.config().layers).map(|i| back(&capture.take(HookPoint::hidden(i)).unwrap()));
            states.chain([back(&logits)]).collect::<Vec<_>>()
        };
        let want = all(&on_cpu(name, dtype));
        for model in placed(name, dtype, &gpus) {
            for (got, want) in all(&model).iter().zip(&want) {
                assert_close(name, got, want, tolerance);
            }
        }
    }
}

#[test]
fn answers_are_those_of_the_cpu() {
    let Some(gpus) = gpus() else { return };
    for name in MODELS.into_iter().chain(["mamba2"]) {
        let prompts = Batch::new([vec![1, 5, 9, 3, 4, 4, 8], vec![7, 2], vec![2; 20]]).unwrap();
        let answers = |model: &LanguageModel| generate(model, &prompts, 12, |_, _| false, None).unwrap();
        let want = answers(&on_cpu(name, DType::F32));
        for model in placed(name, DType::F32, &gpus) {
            assert_eq!(answers(&model), want, "{name}");
        }
    }
}

#[test]
fn a_patched_row_leaves_the_others_alone_and_a_state_of_its_own_changes_nothing() {
    let Some(gpus) = gpus() else { return };
    for name in MODELS {
        for model in placed(name, DType::F32, &gpus) {
            let batch = Expected::of(name).batch();
            let plain = model.forward(&batch, None, None, Logits::All).unwrap().unwrap();
            let point = HookPoint::hidden(1);
            let mut capture = Capture::new([point], Tokens::all());
            model.forward(&batch, None, Some(&mut capture), Logits::All).unwrap();
            let states = capture.take(point).unwrap();
            let row = batch.range(1);
            let edited = |values: Tensor| {
                let change = Change::Replace(values);
                let tokens = Tokens::by_row([(1, (0..row.len()).collect())]);
                let mut edit = Edit::new(point, tokens, change);
                model.forward(&batch, None, Some(&mut edit), Logits::All).unwrap().unwrap()
            };
            let own = part(&states, row.clone());
            assert_same(name, &edited(own.clone()), &plain);
            let other = edited((&own * 0.5).unwrap());
            assert_same(name, &part(&other, 0..row.start), &part(&plain, 0..row.start));
            let behind = row.end..plain.dim(0).unwrap();
            assert_same(name, &part(&other, behind.clone()), &part(&plain, behind));
            assert_ne!(flat(&part(&other, row.clone())), flat(&part(&plain, row.clone())));
        }
    }
}

#[test]
fn gradients_of_adapters_are_those_of_the_cpu() {
    let Some(gpus) = gpus() else { return };
    let example = |prompt: &[u32], target: &[u32]| Example { prompt: prompt.to_vec(), target: target.to_vec() };
    let examples = [example(&[1, 2, 3], &[4, 5]), example(&[6; 9], &[7]), example(&[8, 9], &[1, 2, 3])];
    let dropout = Some(DropoutAt { probability: 0.2, seed: 1, update: 1 });
    for name in ["llama", "gemma2", "olmo", "olmo2", "gpt2", "mamba2"] {
        let all = |model: &LanguageModel| {
            let adapters = peft::read(&fixture("lora").join(name), model).unwrap().trainable().unwrap();
            gradients(model, &adapters, &examples, 2, dropout).unwrap()
        };
        let want = all(&on_cpu(name, DType::F32));
        for model in placed(name, DType::F32, &gpus) {
            let got = all(&model);
            assert!((got.loss - want.loss).abs() < 1e-5 * want.loss, "{name}: {} and {}", got.loss, want.loss);
            for (got, want) in got.by_parameter.iter().zip(&want.by_parameter) {
                assert!(got.device().is_cpu(), "what trains them is on the CPU");
                assert_close(name, got, want, 1e-4);
            }
        }
    }
}

fn tune(from: u64, to: u64, folder: &Folder) -> JobWork {
    let targets = ["v_proj", "q_proj", "down_proj"].map(str::to_owned).to_vec();
    let optimizer = OptimizerSpec {
        kind: OptimizerKind::Adam,
        learning_rate: 1e-2,
        betas: [0.9, 0.999],
        epsilon: 1e-8,
        weight_decay: 0.0,
    };
    JobWork::Finetune {
        seed: 3,
        model: tiny::pretrained(folder),
        data: tiny::bitwise(1),
        lora: LoraSpec { rank: 3, alpha: 6.0, dropout: 0.1, targets, layers: LoraLayers::Last(2) },
        train: TuneSpec {
            steps: 6,
            batch: 6,
            accumulate: 2,
            max_examples: 20,
            shots: 1,
            optimizer,
            warmup: 2,
            decay: Decay::Cosine,
            clip_norm: Some(1.0),
            log_every: 1,
        },
        checkpoints: CheckpointSpec { schedule: Schedule::Linear, count: 2, resume_every: 3 },
        from,
        to,
    }
}

fn done(models: &Models, work: &JobWork, inputs: Inputs) -> (Memory, Metrics) {
    let mut sink = Memory::default();
    match execute(work, &inputs, models, &mut sink) {
        Ok(Executed::Finished(metrics)) => (sink, metrics),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_run_is_fine_tuned_and_goes_on_with_the_same_bytes() {
    if gpus().is_none() {
        return;
    }
    let (folder, kept) = (tiny::folder(1), Folder::new());
    let [cpu, gpu] = [Models::default(), Models::on_gpus(numbers())];
    let [want, got] = [&cpu, &gpu].map(|models| done(models, &tune(0, 6, &folder), Inputs::default()).0);
    for (got, want) in got.losses.iter().zip(&want.losses) {
        assert!((got.loss - want.loss).abs() < 1e-4 * want.loss, "step {}: {} and {}", got.step, got.loss, want.loss);
    }
    let (first, _) = done(&gpu, &tune(0, 3, &folder), Inputs::default());
    let resume = kept.put("resume", &first.files[&(3, Purpose::Resume)]);
    let (second, _) = done(&gpu, &tune(3, 6, &folder), Inputs { resume: Some(resume), weights: None });
    for key in [(6, Purpose::Weights), (6, Purpose::Resume)] {
        assert!(second.files[&key] == got.files[&key], "{key:?} differs");
    }
}

#[test]
fn what_is_measured_is_what_the_cpu_measures() {
    if gpus().is_none() {
        return;
    }
    let folder = tiny::folder(1);
    let (model, data) = (tiny::pretrained(&folder), tiny::bitwise(1));
    let td = TdPart { layers: Layers::All, sites: vec![Site::X], k: 3, samples_per_task: 8, pairs: true };
    let lens = LensPart { layers: Layers::All, samples_per_task: 8 };
    let subject = Subject::Language { model: model.clone(), data: data.clone(), shots: 1 };
    let measure = JobWork::Measure { seed: 3, model, data, shots: 1, icl: Some(8), td: Some(td), lens: Some(lens) };
    let spec = InterventionSpec {
        at: At::All,
        layers: PatchLayers::All,
        site: Site::X,
        positions: PatchPositions::Last,
        mode: PatchMode::AddMeanDifference,
        pairs: PatchPairs::Paper,
        shots: Vec::new(),
        samples_per_task: 4,
        replicates: 2,
    };
    let intervene = JobWork::Intervene { seed: 3, subject, spec };
    for work in [measure, intervene] {
        let [want, got] = [Models::default(), Models::on_gpus(vec![0])].map(|m| done(&m, &work, Inputs::default()).1);
        assert!(got.rows() > 0);
        let strip = |metrics: &Metrics| Metrics { lens: Vec::new(), ..metrics.clone() };
        assert_eq!(strip(&got), strip(&want));
        assert_eq!(got.lens.len(), want.lens.len());
        for (got, want) in got.lens.iter().zip(&want.lens) {
            assert!((got.log_prob - want.log_prob).abs() < 1e-4, "{got:?} and {want:?}");
        }
    }
}

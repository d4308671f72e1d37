//! Adapters agree with PEFT's and their gradients with PyTorch's (fixtures/lora.py); computing blocks again changes nothing.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use candle_core::{D, DType, Device, Tensor};
use common::{
    Folder, fixture,
    language::{self, assert_close, assert_same},
};
use serde_json::{Value, json};
use std::{collections::HashMap, fs, path::PathBuf};
use taskvec_model::spec::{LoraLayers, LoraSpec, OptimizerKind, OptimizerSpec};
use taskvec_science::{
    ScienceError,
    load::{Files, Room},
    lora::{Adapters, DropoutAt, Example, gradients, peft},
    model::language::{Batch, LanguageModel, Logits},
    optim::Optimizer,
};

const ALL: [&str; 6] = ["llama", "gemma2", "olmo", "olmo2", "gpt2", "mamba2"];

/// The model that the adapters of a fixture are for.
fn load(name: &str, dtype: DType) -> LanguageModel {
    let folder = if name == "mamba2" { fixture("mamba2/two_groups") } else { language::folder(name) };
    Files::find(folder.to_str().unwrap(), None).unwrap().load(dtype, &[Room::cpu()]).unwrap()
}

fn folder(name: &str) -> PathBuf {
    fixture("lora").join(name)
}

/// What PyTorch makes of a model with adapters.
struct Expected {
    tensors: HashMap<String, Tensor>,
    examples: Vec<Example>,
}

impl Expected {
    fn of(name: &str) -> Self {
        let tensors = candle_core::safetensors::load(folder(name).join("expected.safetensors"), &Device::Cpu).unwrap();
        let ids: Vec<u32> = tensors["input_ids"].to_vec1::<i64>().unwrap().into_iter().map(|i| i as u32).collect();
        let mut rest = &ids[..];
        let mut take = |n: i64| {
            let (taken, left) = rest.split_at(n as usize);
            rest = left;
            taken.to_vec()
        };
        let lengths: Vec<Vec<i64>> = tensors["lengths"].to_vec2().unwrap();
        let examples = lengths.iter().map(|l| Example { prompt: take(l[0]), target: take(l[1]) }).collect();
        Self { tensors, examples }
    }

    /// All tokens of all examples.
    fn batch(&self) -> Batch {
        Batch::new(self.examples.iter().map(|e| [&e.prompt[..], &e.target].concat())).unwrap()
    }
}

fn logits(model: &LanguageModel, batch: &Batch) -> Tensor {
    model.forward(batch, None, None, Logits::All).unwrap().unwrap()
}

/// Loss and gradients of the whole model in one graph.
fn whole_graph(model: &LanguageModel, adapters: &Adapters, expected: &Expected) -> (f64, Vec<Tensor>) {
    let model = model.with_adapters(adapters).unwrap();
    let (mut sites, mut targets, mut end) = (Vec::new(), Vec::new(), 0);
    for Example { prompt, target } in &expected.examples {
        end += (prompt.len() + target.len()) as u32;
        let first = end - target.len() as u32;
        sites.extend(first - 1..end - 1);
        targets.extend(target);
    }
    let index = |values: Vec<u32>| Tensor::new(values, &Device::Cpu).unwrap();
    let logits = logits(&model, &expected.batch()).index_select(&index(sites), 0).unwrap();
    let norms = logits.exp().unwrap().sum_keepdim(D::Minus1).unwrap().log().unwrap();
    let right = logits.gather(&index(targets).unsqueeze(1).unwrap(), D::Minus1).unwrap();
    let loss = (norms - right).unwrap().mean_all().unwrap();
    let store = loss.backward().unwrap();
    let of = |(name, p): &(String, Tensor)| store.get(p).unwrap_or_else(|| panic!("{name} has none")).clone();
    (language::flat(&loss)[0], adapters.parameters().iter().map(of).collect())
}

/// Trainable adapters of a fixture.
fn adapters(name: &str, model: &LanguageModel) -> Adapters {
    peft::read(&folder(name), model).unwrap().trainable().unwrap()
}

#[test]
fn a_model_with_pefts_adapters_predicts_what_it_does_there() {
    for name in ALL {
        let (model, expected) = (load(name, DType::F32), Expected::of(name));
        let adapters = peft::read(&folder(name), &model).unwrap();
        let adapted = model.with_adapters(&adapters).unwrap();
        assert_close(name, &logits(&adapted, &expected.batch()), &expected.tensors["logits"], 1e-4);
        let plain = language::flat(&logits(&model, &expected.batch()));
        let far = plain.iter().zip(language::flat(&expected.tensors["logits"]));
        assert!(far.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) > 0.1, "the adapters of {name} do nothing");
        let names: Vec<&String> = adapters.parameters().iter().map(|(name, _)| name).collect();
        let theirs = candle_core::safetensors::load(folder(name).join("adapter_model.safetensors"), &Device::Cpu);
        assert!(
            names.len() == theirs.as_ref().unwrap().len()
                && names.iter().all(|n| theirs.as_ref().unwrap().contains_key(*n))
        );
    }
}

#[test]
fn losses_and_gradients_are_pytorchs() {
    for name in ALL {
        let (model, expected) = (load(name, DType::F32), Expected::of(name));
        let adapters = adapters(name, &model);
        let found = gradients(&model, &adapters, &expected.examples, 1, None).unwrap();
        let loss = language::flat(&expected.tensors["loss"])[0];
        assert!((found.loss - loss).abs() < 1e-4 * loss, "{name}: {} for {loss}", found.loss);
        for ((parameter, _), gradient) in adapters.parameters().iter().zip(&found.by_parameter) {
            let what = format!("{name}: {parameter}");
            assert_close(&what, gradient, &expected.tensors[&format!("grad.{parameter}")], 1e-4);
        }
    }
}

#[test]
fn three_steps_of_adam_are_pytorchs() {
    let (model, expected) = (language::load("llama"), Expected::of("llama"));
    let adapters = adapters("llama", &model);
    let kind = OptimizerKind::Adam;
    let spec = OptimizerSpec { kind, learning_rate: 1e-2, betas: [0.9, 0.99], epsilon: 1e-3, weight_decay: 0.0 };
    let optimizer = Optimizer::new(&spec, None, adapters.parameters()).unwrap();
    let losses = language::flat(&expected.tensors["losses"]);
    for (i, loss) in losses.iter().enumerate() {
        let found = gradients(&model, &adapters, &expected.examples, 1, None).unwrap();
        assert!((found.loss - loss).abs() < 1e-4 * loss, "step {i}: {} for {loss}", found.loss);
        optimizer.update(adapters.parameters(), &found.stored(&adapters), 1e-2, i as u64 + 1).unwrap();
    }
    for (name, parameter) in adapters.parameters() {
        assert_close(name, parameter, &expected.tensors[&format!("after.{name}")], 1e-4);
    }
    assert_eq!(losses.len(), 3);
}

#[test]
fn computing_blocks_again_gives_the_gradients_of_the_whole_graph() {
    for name in ALL {
        let (model, expected) = (load(name, DType::F64), Expected::of(name));
        let adapters = adapters(name, &model);
        let (loss, whole) = whole_graph(&model, &adapters, &expected);
        let found = gradients(&model, &adapters, &expected.examples, 1, None).unwrap();
        assert!((found.loss - loss).abs() < 1e-10, "{name}: {} for {loss}", found.loss);
        for ((parameter, _), (ours, theirs)) in adapters.parameters().iter().zip(found.by_parameter.iter().zip(&whole))
        {
            assert_close(&format!("{name}: {parameter}"), ours, theirs, 1e-10);
            assert!(!ours.track_op(), "a gradient keeps no graph alive");
        }
    }
}

#[test]
fn a_batch_in_pieces_has_the_same_gradient() {
    let (model, expected) = (language::load_as("llama", DType::F64), Expected::of("llama"));
    let adapters = adapters("llama", &model);
    for dropout in [None, Some(DropoutAt { probability: 0.3, seed: 3, update: 2 })] {
        let of = |pieces| gradients(&model, &adapters, &expected.examples, pieces, dropout).unwrap();
        let whole = of(1);
        for pieces in [2, 3] {
            let found = of(pieces);
            assert!((found.loss - whole.loss).abs() < 1e-12);
            for (ours, theirs) in found.by_parameter.iter().zip(&whole.by_parameter) {
                assert_close("gradient", ours, theirs, 1e-12);
            }
        }
    }
}

#[test]
fn dropout_changes_the_gradient_and_always_in_the_same_way() {
    let (model, expected) = (language::load("llama"), Expected::of("llama"));
    let adapters = adapters("llama", &model);
    let of = |seed, update, probability| {
        let dropout = Some(DropoutAt { probability, seed, update });
        gradients(&model, &adapters, &expected.examples, 1, dropout).unwrap()
    };
    let first = of(3, 1, 0.1);
    for (a, b) in first.by_parameter.iter().zip(&of(3, 1, 0.1).by_parameter) {
        assert_same("gradient", a, b);
    }
    let none = gradients(&model, &adapters, &expected.examples, 1, None).unwrap().loss;
    assert_eq!(of(3, 1, 0.0).loss, none);
    assert!([of(4, 1, 0.1).loss, of(3, 2, 0.1).loss, none].iter().all(|loss| *loss != first.loss));
}

/// As near as PyTorch's gradients in the same types, whose cosines with those in f64 are 0.88 and 0.9985 at the worst.
#[test]
fn sixteen_bits_are_near() {
    let expected = Expected::of("llama");
    for (dtype, alike) in [(DType::BF16, 0.88), (DType::F16, 0.9985)] {
        let model = language::load_as("llama", dtype);
        let adapters = adapters("llama", &model);
        let found = gradients(&model, &adapters, &expected.examples, 1, None).unwrap();
        for ((name, parameter), gradient) in adapters.parameters().iter().zip(&found.by_parameter) {
            assert_eq!((parameter.dtype(), gradient.dtype()), (DType::F32, DType::F32));
            let (ours, theirs) = (language::flat(gradient), language::flat(&expected.tensors[&format!("grad.{name}")]));
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let cosine = dot(&ours, &theirs) / (dot(&ours, &ours) * dot(&theirs, &theirs)).sqrt();
            assert!(cosine > alike, "{dtype:?} {name}: {cosine}");
        }
    }
}

fn spec(targets: &[&str], layers: LoraLayers) -> LoraSpec {
    let targets = targets.iter().map(|t| (*t).to_owned()).collect();
    LoraSpec { rank: 4, alpha: 8.0, dropout: 0.1, targets, layers }
}

#[test]
fn new_adapters_change_nothing() {
    for (name, target) in [("llama", "down_proj"), ("gemma2", "q_proj"), ("gpt2", "c_attn")] {
        for dtype in [DType::F32, DType::BF16] {
            let model = language::load_as(name, dtype);
            let adapters = Adapters::fresh(&model, &spec(&[target], LoraLayers::All), 1).unwrap();
            let batch = language::Expected::of(name).batch();
            let adapted = model.with_adapters(&adapters).unwrap();
            assert_same(name, &logits(&adapted, &batch), &logits(&model, &batch));
        }
    }
}

/// PEFT's default: `kaiming_uniform_` with a = √5 is uniform in ± 1/√inputs.
#[test]
fn a_begins_uniform_and_b_at_zero() {
    let model = language::load("llama");
    let spec = LoraSpec { rank: 400, ..spec(&["q_proj", "down_proj"], LoraLayers::First(2)) };
    let fresh = |seed| Adapters::fresh(&model, &spec, seed).unwrap();
    let adapters = fresh(1);
    let names: Vec<&str> = adapters.parameters().iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names.len(), 8);
    assert_eq!(names[0], "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight");
    assert_eq!(names[7], "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight");
    for (name, parameter) in adapters.parameters() {
        let values = language::flat(parameter);
        if name.contains("lora_B") {
            assert!(values.iter().all(|v| *v == 0.0), "{name}");
            continue;
        }
        let inputs = if name.contains("q_proj") { 24.0f64 } else { 40.0 };
        assert_eq!(parameter.dims(), [400, inputs as usize]);
        let (bound, n) = (1.0 / inputs.sqrt(), values.len() as f64);
        assert!(values.iter().all(|v| v.abs() <= bound));
        let mean = values.iter().sum::<f64>() / n;
        let square = values.iter().map(|v| v * v).sum::<f64>() / n;
        // A uniform variable on ±b has variance b²/3, and its square the standard deviation 2b²/√45.
        assert!(mean.abs() < 4.0 * bound / (3.0 * n).sqrt(), "{name}: mean {mean}");
        assert!((square - bound * bound / 3.0).abs() < 4.0 * 2.0 * bound * bound / (45.0 * n).sqrt(), "{name}");
    }
    let firsts: Vec<f64> = [&adapters, &fresh(2)].map(|a| language::flat(&a.parameters()[0].1)[0]).to_vec();
    assert!(firsts[0] != firsts[1] && firsts[0] == language::flat(&fresh(1).parameters()[0].1)[0]);
    let others = language::flat(&adapters.parameters()[4].1);
    assert_ne!(language::flat(&adapters.parameters()[0].1), others, "layers differ");
}

#[test]
fn what_the_model_has_not_is_refused_with_what_it_has() {
    let refused = |name: &str, spec: &LoraSpec, says: &[&str]| {
        let error = Adapters::fresh(&language::load(name), spec, 1).unwrap_err().to_string();
        assert!(says.iter().all(|part| error.contains(part)), "{error}");
    };
    let all = LoraLayers::All;
    let seven = "`q_proj`, `k_proj`, `v_proj`, `o_proj`, `gate_proj`, `up_proj`, `down_proj`";
    refused("llama", &spec(&["q_proj", "c_attn"], all), &["a llama model has no module `c_attn`", seven]);
    refused("olmo_original", &spec(&["att_proj"], all), &["a olmo model has no module `att_proj`", seven]);
    refused("gpt2", &spec(&["q_proj"], all), &["`q_proj`; it has `c_attn`, `c_proj`, `c_fc`"]);
    for (targets, says) in [
        (["in_proj", "q_proj"], "a mamba2 model has no module `q_proj`; it has `in_proj`"),
        (["in_proj", "out_proj"], "PEFT refuses adapters of a mamba2 model's `out_proj`"),
    ] {
        let error = Adapters::fresh(&load("mamba2", DType::F32), &spec(&targets, all), 1).unwrap_err().to_string();
        assert!(error.contains(says) && error.ends_with("`in_proj`"), "{error}");
    }
    refused("llama", &spec(&["q_proj"], LoraLayers::Last(4)), &["the last 4 layers, but the model has 3"]);
    refused("llama", &spec(&["q_proj"], LoraLayers::Range(2, 4)), &["layers 2 to 4, but the model has 3"]);
    // Adapters of one model do not go with another.
    let adapters = Adapters::fresh(&language::load("llama"), &spec(&["q_proj"], all), 1).unwrap();
    let error = language::load("olmo2").with_adapters(&adapters).map(drop).unwrap_err().to_string();
    assert!(error.contains("the model has no model.layers.0.self_attn.q_proj of shape [32, 24]"), "{error}");
}

fn changed(
    name: &str,
    change: impl FnOnce(&mut Value, &mut HashMap<String, Tensor>),
) -> Result<Adapters, ScienceError> {
    let folder = Folder::new();
    let source = self::folder(name);
    let mut config = serde_json::from_slice(&fs::read(source.join("adapter_config.json")).unwrap()).unwrap();
    let mut tensors = candle_core::safetensors::load(source.join("adapter_model.safetensors"), &Device::Cpu).unwrap();
    change(&mut config, &mut tensors);
    folder.put("adapter_config.json", config.to_string().as_bytes());
    candle_core::safetensors::save(&tensors, folder.path().join("adapter_model.safetensors")).unwrap();
    peft::read(folder.path(), &language::load(name))
}

#[test]
fn folders_that_ask_for_what_is_not_built_are_refused() {
    type Change = fn(&mut Value, &mut HashMap<String, Tensor>);
    let a = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight";
    let cases: [(Change, &str); 8] = [
        (|c, _| c["use_dora"] = json!(true), "asks for `use_dora`: true"),
        (|c, _| c["rank_pattern"] = json!({"q_proj": 4}), "asks for `rank_pattern`"),
        (|c, _| c["bias"] = json!("all"), "asks for `bias`: \"all\""),
        (|c, _| c["peft_type"] = json!("IA3"), "is of type IA3"),
        (|c, _| drop(c.as_object_mut().unwrap().remove("r")), "missing field `r`"),
        (|c, _| c["r"] = json!(4), "where [4, 24] is wanted"),
        (
            |_, t| drop(t.remove("base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight")),
            "lacks the tensor `base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight`",
        ),
        (
            |_, t| {
                let extra = t.values().next().unwrap().clone();
                t.insert("base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight".into(), extra);
            },
            "layers.7.self_attn.q_proj.lora_A.weight`, for which the model has no place",
        ),
    ];
    for (change, says) in cases {
        let error = changed("llama", change).unwrap_err().to_string();
        assert!(error.contains(says), "{says}: {error}");
    }
    let same = changed("llama", |c, _| drop(c.as_object_mut().unwrap().remove("velora_config"))).unwrap();
    assert!(same.parameters().iter().any(|(name, _)| name == a));
}

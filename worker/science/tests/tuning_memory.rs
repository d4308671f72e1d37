//! How much memory fine-tuning takes beside the weights: each case in a process of its own, since it is the process that is
//! measured.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use candle_core::{DType, Tensor};
use common::{Folder, peak, resident};
use serde_json::json;
use std::{collections::HashMap, process::Command};
use taskvec_kernels::cross_entropy;
use taskvec_model::spec::{LoraLayers, LoraSpec};
use taskvec_science::{
    load::{Files, Room},
    lora::{Adapters, Example, gradients},
    model::language::{Batch, LanguageModel, Logits},
};

/// Which case the process is there for.
const CASE: &str = "TASKVEC_TUNING_MEMORY";

const VOCABULARY: usize = 2000;
const WIDTH: usize = 192;
const INNER: usize = 768;
const LAYERS: usize = 24;
const EXAMPLES: usize = 8;
const TOKENS: usize = 128;
const RANK: usize = 8;

fn model(folder: &Folder) -> LanguageModel {
    let config = json!({
        "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
        "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": VOCABULARY, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 512, "tie_word_embeddings": true, "hidden_act": "silu", "rope_theta": 10000.0,
    });
    folder.put("config.json", config.to_string().as_bytes());
    let mut tensors = HashMap::new();
    let mut add = |name: String, shape: &[usize]| {
        let values = (0..shape.iter().product::<usize>()).map(|i| (i * 7919 % 199) as f32 / 2000.0 - 0.05).collect();
        tensors.insert(name, Tensor::from_vec::<_, f32>(values, shape, &candle_core::Device::Cpu).unwrap());
    };
    add("model.embed_tokens.weight".into(), &[VOCABULARY, WIDTH]);
    add("model.norm.weight".into(), &[WIDTH]);
    for layer in 0..LAYERS {
        let mut add = |name: &str, shape: &[usize]| add(format!("model.layers.{layer}.{name}.weight"), shape);
        ["q", "k", "v", "o"].iter().for_each(|name| add(&format!("self_attn.{name}_proj"), &[WIDTH, WIDTH]));
        ["gate", "up"].iter().for_each(|name| add(&format!("mlp.{name}_proj"), &[INNER, WIDTH]));
        add("mlp.down_proj", &[WIDTH, INNER]);
        add("input_layernorm", &[WIDTH]);
        add("post_attention_layernorm", &[WIDTH]);
    }
    candle_core::safetensors::save(&tensors, folder.path().join("model.safetensors")).unwrap();
    drop(tensors);
    Files::find(folder.path().to_str().unwrap(), None).unwrap().load(DType::F32, &[Room::cpu()]).unwrap()
}

/// What docs/science.md says, of adapters in all layers and maps: for each token what enters each block, and four times what a
/// pass through one takes; and the gradients of the adapters twice.
fn expected() -> u64 {
    let (states, passing) = (LAYERS * WIDTH, 10 * WIDTH + 3 * INNER);
    let adapters = RANK * LAYERS * (4 * 2 * WIDTH + 3 * (WIDTH + INNER));
    4 * (EXAMPLES * TOKENS * (states + 4 * passing) + 2 * adapters) as u64
}

#[test]
fn fine_tuning_holds_one_block_at_a_time() {
    if let Ok(case) = std::env::var(CASE) {
        // As many threads everywhere: each has memory of its own to work in.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        println!("TAKEN {}", pool.install(|| taken(&case)));
        return;
    }
    if peak().is_none() {
        common::skipped(format_args!("/proc/self/status does not tell the peak of memory here"));
        return;
    }
    let [by_block, whole] = ["by block", "whole"].map(|case| {
        let mut child = Command::new(std::env::current_exe().unwrap());
        let this = "fine_tuning_holds_one_block_at_a_time";
        let ended = child.args(["--exact", this, "--nocapture"]).env(CASE, case).output().unwrap();
        let said = String::from_utf8(ended.stdout).unwrap();
        assert!(ended.status.success(), "{case}: {said}");
        let taken = said.split_once("TAKEN ").expect(&said).1.split_whitespace().next().unwrap();
        taken.parse::<u64>().unwrap()
    });
    eprintln!("beside the weights: {by_block} bytes of {} expected, {whole} with one graph", expected());
    assert!(by_block < expected(), "{by_block} bytes, where {} were expected", expected());
    assert!(by_block > expected() / 2, "{by_block} bytes are too few to have been measured");
    assert!(whole > 3 * by_block, "one graph of the whole model takes {whole} bytes, block by block {by_block}");
}

fn taken(case: &str) -> u64 {
    let folder = Folder::new();
    let model = model(&folder);
    let targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"].map(str::to_owned);
    let lora =
        LoraSpec { rank: RANK as u32, alpha: 8.0, dropout: 0.0, targets: targets.to_vec(), layers: LoraLayers::All };
    let adapters = Adapters::fresh(&model, &lora, 1).unwrap().trainable().unwrap();
    let example = |i: usize| {
        let tokens: Vec<u32> = (0..TOKENS).map(|t| ((i * 31 + t * 17) % VOCABULARY) as u32).collect();
        Example { prompt: tokens[..TOKENS - 4].to_vec(), target: tokens[TOKENS - 4..].to_vec() }
    };
    let examples: Vec<Example> = (0..EXAMPLES).map(example).collect();
    // What was given back is not taken again unseen.
    let before = resident().unwrap();
    let high = peak().unwrap();
    match case {
        "whole" => one_graph(&model.with_adapters(&adapters).unwrap(), &examples),
        _ => drop(gradients(&model, &adapters, &examples, 1, None).unwrap()),
    }
    let most = peak().unwrap();
    assert!(most > high, "what loading took hides what tuning takes: {before}, {high}");
    most - before
}

fn one_graph(model: &LanguageModel, examples: &[Example]) {
    let (mut sites, mut targets, mut end) = (Vec::new(), Vec::new(), 0);
    for Example { prompt, target } in examples {
        end += (prompt.len() + target.len()) as u32;
        sites.extend(end - target.len() as u32 - 1..end - 1);
        targets.extend(target);
    }
    let batch = Batch::new(examples.iter().map(|e| [&e.prompt[..], &e.target].concat())).unwrap();
    let logits = model.forward(&batch, None, None, Logits::All).unwrap().unwrap();
    let sites = Tensor::new(sites, logits.device()).unwrap();
    let loss = cross_entropy(&logits.index_select(&sites, 0).unwrap(), &targets).unwrap();
    drop(loss.backward().unwrap());
}

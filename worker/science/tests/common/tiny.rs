//! A tiny language model in a folder, with a real tokenizer, as a job finds it.

use super::{Folder, fixture};
use candle_core::{DType, Device, Tensor};
use std::{collections::HashMap, fs};
use taskvec_model::spec::{Family, FloatType, Instruction, NaturalSpec, PretrainedSpec, Template};
use taskvec_science::rng::{Purpose, Stream, name_step};

const WIDTH: usize = 16;
const INNER: usize = 24;
pub const LAYERS: usize = 3;
const VOCABULARY: usize = 424;

/// A folder with a Llama of [`LAYERS`] layers, its weights drawn with `seed`.
pub fn folder(seed: u64) -> Folder {
    let folder = Folder::new();
    let tokenizer = fixture("tokenizer").join("llama3");
    for entry in fs::read_dir(tokenizer).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let config = serde_json::json!({
        "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": INNER,
        "num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": true, "torch_dtype": "float32",
    });
    folder.put("config.json", config.to_string().as_bytes());
    let mut tensors = HashMap::new();
    let mut add = |name: String, shape: &[usize]| {
        let mut values = vec![0.0; shape.iter().product()];
        Stream { seed, purpose: Purpose::Init, step: name_step(&name) }.at(0).normals(&mut values);
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
        let tensor = if shape.len() == 1 { tensor.ones_like() } else { tensor * 0.3 };
        tensors.insert(name, tensor.unwrap());
    };
    add("model.embed_tokens.weight".into(), &[VOCABULARY, WIDTH]);
    add("model.norm.weight".into(), &[WIDTH]);
    for i in 0..LAYERS {
        let mut add = |name: &str, shape: &[usize]| add(format!("model.layers.{i}.{name}.weight"), shape);
        add("input_layernorm", &[WIDTH]);
        add("post_attention_layernorm", &[WIDTH]);
        for (name, outputs) in [("q", WIDTH), ("k", WIDTH / 2), ("v", WIDTH / 2), ("o", WIDTH)] {
            add(&format!("self_attn.{name}_proj"), &[outputs, WIDTH]);
        }
        add("mlp.gate_proj", &[INNER, WIDTH]);
        add("mlp.up_proj", &[INNER, WIDTH]);
        add("mlp.down_proj", &[WIDTH, INNER]);
    }
    candle_core::safetensors::save(&tensors, folder.path().join("model.safetensors")).unwrap();
    folder
}

pub fn pretrained(folder: &Folder) -> PretrainedSpec {
    let path = folder.path().to_str().unwrap().to_owned();
    PretrainedSpec { path, revision: None, dtype: FloatType::F32, identity: None }
}

/// Three tasks of two digits.
pub fn bitwise(shots: u32) -> NaturalSpec {
    let (family, template) = (Family::Bitwise { digits: 2 }, Template::default());
    let tasks = ["AND", "XOR", "Null"].map(str::to_owned).to_vec();
    NaturalSpec { family, shots: vec![shots], tasks, template, instruction: Instruction::None }
}

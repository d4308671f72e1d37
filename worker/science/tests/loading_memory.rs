//! How much memory loading a folder takes beside the weights: each case in a process of its own, since it is the
//! process that is measured.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use candle_core::DType;
use common::{Folder, peak};
use serde_json::json;
use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::Path,
    process::Command,
};
use taskvec_science::load::{Files, Room};

/// Which case the process is there for: type in the file, type in memory.
const CASE: &str = "TASKVEC_LOADING_MEMORY";

const VOCABULARY: usize = 8000;
const WIDTH: usize = 512;
const INNER: usize = 2048;
const LAYERS: usize = 5;

/// Names and shapes of a llama with tied embeddings of 25 million parameters.
fn tensors() -> Vec<(String, Vec<usize>)> {
    let mut all = vec![("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, WIDTH])];
    for layer in 0..LAYERS {
        let mut add =
            |name: &str, shape: &[usize]| all.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
        for name in ["q", "k", "v", "o"] {
            add(&format!("self_attn.{name}_proj"), &[WIDTH, WIDTH]);
        }
        add("mlp.gate_proj", &[INNER, WIDTH]);
        add("mlp.up_proj", &[INNER, WIDTH]);
        add("mlp.down_proj", &[WIDTH, INNER]);
        add("input_layernorm", &[WIDTH]);
        add("post_attention_layernorm", &[WIDTH]);
    }
    all.push(("model.norm.weight".to_owned(), vec![WIDTH]));
    all
}

/// Written piece by piece, so that the test itself takes no memory. The same bytes again and again are as good as any.
fn write_model(folder: &Path, dtype: &str, size: usize) {
    let config = json!({
        "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
        "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": VOCABULARY, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 512, "tie_word_embeddings": true, "hidden_act": "silu", "rope_theta": 10000.0,
    });
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in tensors() {
        let bytes = shape.iter().product::<usize>() * size;
        header.insert(name, json!({"dtype": dtype, "shape": shape, "data_offsets": [end, end + bytes]}));
        end += bytes;
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut file = BufWriter::new(File::create(folder.join("model.safetensors")).unwrap());
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    let block = [0x3c; 1 << 12];
    let mut left = end;
    while left > 0 {
        let now = left.min(block.len());
        file.write_all(&block[..now]).unwrap();
        left -= now;
    }
    file.flush().unwrap();
}

#[test]
fn loading_takes_little_more_than_the_weights() {
    if let Ok(case) = std::env::var(CASE) {
        return measure(&case);
    }
    if peak().is_none() {
        common::skipped(format_args!("/proc/self/status does not tell the peak of memory here"));
        return;
    }
    for case in ["F32 f32", "BF16 bf16", "BF16 f32", "F32 bf16"] {
        let mut child = Command::new(std::env::current_exe().unwrap());
        let this = "loading_takes_little_more_than_the_weights";
        let ended = child.args(["--exact", this, "--nocapture"]).env(CASE, case).status().unwrap();
        assert!(ended.success(), "{case}");
    }
}

fn measure(case: &str) {
    let (stored, held) = case.split_once(' ').unwrap();
    let dtype = if held == "f32" { DType::F32 } else { DType::BF16 };
    let folder = Folder::new();
    write_model(folder.path(), stored, if stored == "F32" { 4 } else { 2 });
    let before = peak().unwrap();
    let files = Files::find(folder.path().to_str().unwrap(), None).unwrap();
    let model = files.load(dtype, &[Room::cpu()]).unwrap();
    let weights = files.bytes(dtype);
    assert!(weights > 45 << 20, "{weights} bytes are too few to measure");
    let ratio = (peak().unwrap() - before) as f64 / weights as f64;
    eprintln!("peak memory of loading {stored} as {held} is {ratio:.3} of the weights");
    // At least nearly all of them, or the measurement saw nothing.
    assert!((0.9..1.1).contains(&ratio), "{stored} as {held}: {ratio}");
    assert_eq!(model.dtype(), dtype);
}

//! GGUF files made by llama.cpp's converter against the checkpoints they were made from (tests/fixtures/gguf_models.py),
//! and files that cannot be read.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use candle_core::{
    DType, Device, Tensor,
    quantized::{
        GgmlDType, QTensor,
        gguf_file::{self, Value},
    },
};
use std::{collections::HashMap, path::PathBuf};
use taskvec_science::{
    load::{Files, LoadError, Room, Weights, gguf::Gguf},
    model::language::{Batch, LanguageModel, Logits, MixerConfig, RotaryScaling},
};

const ARCHITECTURES: [&str; 7] = ["llama", "llama_bias", "gemma2", "olmo", "olmo2", "gpt2", "mamba2"];

fn folder(name: &str) -> PathBuf {
    common::fixture("gguf").join(name)
}

fn file(name: &str) -> PathBuf {
    folder(name).join("model.gguf")
}

fn flat(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1().unwrap()
}

/// Largest error relative to the largest magnitude.
fn error_of(ours: &Tensor, theirs: &Tensor) -> f32 {
    assert_eq!(ours.dims(), theirs.dims());
    let (ours, theirs) = (flat(ours), flat(theirs));
    let scale = theirs.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    ours.iter().zip(&theirs).fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / scale
}

#[test]
fn tensors_are_those_of_the_checkpoint() {
    for name in ARCHITECTURES {
        let gguf = Gguf::open(&file(name)).unwrap();
        let weights = gguf.weights(DType::F32);
        let checkpoint = candle_core::safetensors::load(folder(name).join("model.safetensors"), &Device::Cpu).unwrap();
        let mut names: Vec<&String> = checkpoint.keys().collect();
        names.sort();
        assert_eq!(weights.shapes().keys().collect::<Vec<_>>(), names, "{name}");
        for (tensor, theirs) in &checkpoint {
            assert_eq!(weights.shapes()[tensor], theirs.dims(), "{name}: {tensor}");
            let ours = weights.read(tensor, 0..theirs.dim(0).unwrap()).unwrap();
            // Adding 1 and taking it away again, or the exponential and the logarithm, round.
            let changed = (name == "gemma2" && tensor.contains("norm")) || tensor.ends_with("A_log");
            let tolerance = if changed { 1e-6 } else { 0.0 };
            assert!(error_of(&ours, theirs) <= tolerance, "{name}: {tensor}");
            let last = theirs.dim(0).unwrap() - 1..theirs.dim(0).unwrap();
            assert_eq!(
                flat(&weights.read(tensor, last.clone()).unwrap()),
                flat(&ours.narrow(0, last.start, 1).unwrap())
            );
        }
    }
}

fn logits(model: &LanguageModel) -> Tensor {
    let batch = Batch::new([(0..40).collect::<Vec<u32>>(), vec![3, 1, 4, 1, 5, 9, 2, 6]]).unwrap();
    model.forward(&batch, None, None, Logits::All).unwrap().unwrap()
}

#[test]
fn models_are_those_of_the_checkpoint() {
    for name in ARCHITECTURES {
        let of = |path: PathBuf| Files::find(path.to_str().unwrap(), None).unwrap();
        let (ours, theirs) = (of(file(name)), of(folder(name)));
        let (mut config, mut wanted) = (ours.config().clone(), theirs.config().clone());
        if name == "mamba2" {
            // llama.cpp writes a context of its own invention.
            assert_eq!((config.context, wanted.context), (None, None));
        }
        if let (MixerConfig::Attention(ours), MixerConfig::Attention(theirs)) = (&mut config.mixer, &mut wanted.mixer)
            && name == "llama"
        {
            // Of Llama 3.1's scaling a file has the factors alone.
            let (ours, theirs) = (ours.rotary.as_mut().unwrap(), theirs.rotary.as_mut().unwrap());
            assert!(matches!(theirs.scaling, RotaryScaling::Llama3 { .. }));
            assert!(matches!(&ours.scaling, RotaryScaling::Factors(f) if f.contains(&1.0) && f.contains(&8.0)));
            theirs.scaling = ours.scaling.clone();
        }
        assert_eq!(config, wanted, "{name}");
        assert_eq!(ours.parameters(), theirs.parameters(), "{name}");
        let load = |files: &Files| files.load(DType::F32, &[Room::cpu()]).unwrap();
        let error = error_of(&logits(&load(&ours)), &logits(&load(&theirs)));
        assert!(error < 1e-5, "{name}: logits differ by {error:e}");
        let half = ours.load(DType::BF16, &[Room::cpu()]).unwrap();
        assert_eq!(half.dtype(), DType::BF16, "{name}");
        let error = error_of(&logits(&half), &logits(&load(&theirs)));
        assert!(error < 0.1, "{name}: logits in bf16 differ by {error:e}");
    }
}

#[test]
fn every_type_of_quantisation_gives_its_values() {
    let gguf = Gguf::open(&common::fixture("gguf/quantised.gguf")).unwrap();
    let path = common::fixture("gguf/quantised.safetensors");
    let values: HashMap<String, Tensor> = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let (_, about) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let names: HashMap<String, String> = serde_json::from_str(&about.metadata().as_ref().unwrap()["names"]).unwrap();
    assert_eq!(values.len(), 13);
    for (kind, theirs) in &values {
        let weights = gguf.weights(DType::F32);
        let module = names[kind].strip_prefix("blk.").unwrap();
        let (block, module) = module.split_once('.').unwrap();
        let tensor =
            weights.shapes().keys().find(|t| t.starts_with(&format!("model.layers.{block}.")) && matches(t, module));
        let ours = weights.read(tensor.unwrap(), 0..3).unwrap();
        assert!(error_of(&ours, theirs) < 1e-6, "{kind} is off by {:e}", error_of(&ours, theirs));
        let rows = weights.read(tensor.unwrap(), 1..3).unwrap();
        assert_eq!(flat(&rows), flat(&ours.narrow(0, 1, 2).unwrap()), "{kind}: rows by themselves");
    }
}

/// Is this the checkpoint's name of the file's module?
fn matches(tensor: &str, module: &str) -> bool {
    let names = [
        ("attn_v.weight", "v_proj"),
        ("attn_output.weight", "o_proj"),
        ("ffn_gate.weight", "gate_proj"),
        ("ffn_up.weight", "up_proj"),
        ("ffn_down.weight", "down_proj"),
    ];
    names.iter().any(|(file, checkpoint)| *file == module && tensor.contains(checkpoint))
}

/// A file with the metadata of a small Llama, changed, and its tensors.
fn written(folder: &common::Folder, change: impl Fn(&mut HashMap<String, Value>)) -> PathBuf {
    let mut source = std::fs::File::open(file("llama")).unwrap();
    let mut content = gguf_file::Content::read(&mut source).unwrap();
    change(&mut content.metadata);
    let tensors: Vec<(String, QTensor)> = content
        .tensor_infos
        .keys()
        .map(|name| (name.clone(), content.tensor(&mut source, name, &Device::Cpu).unwrap()))
        .collect();
    let path = folder.put("changed.gguf", &[]);
    let mut out = std::fs::File::create(&path).unwrap();
    let metadata: Vec<(&str, &Value)> = content.metadata.iter().map(|(k, v)| (k.as_str(), v)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(k, v)| (k.as_str(), v)).collect();
    gguf_file::write(&mut out, &metadata, &tensors).unwrap();
    path
}

fn refusal(path: &std::path::Path) -> String {
    match Files::find(path.to_str().unwrap(), None) {
        Ok(_) => panic!("{} is read", path.display()),
        Err(e) => e.to_string(),
    }
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let whole = std::fs::read(file("llama")).unwrap();
    let folder = common::Folder::new();
    let mut short = 0;
    // Every length within the header's first bytes, then in steps, then the last byte.
    for length in (0..64).chain((64..whole.len()).step_by(509)).chain([whole.len() - 1]) {
        let path = folder.put("cut.gguf", &whole[..length]);
        let message = refusal(&path);
        assert!(message.contains("cut.gguf"), "{message}");
        short += u32::from(message.contains("is cut short"));
    }
    assert!(short > 5, "where the header is whole, the message says so");
}

#[test]
fn what_is_not_known_is_named() {
    let folder = common::Folder::new();
    let text = |s: &str| Value::String(s.to_owned());
    let path = written(&folder, |m| drop(m.insert("general.architecture".into(), text("rwkv7"))));
    let error = Files::find(path.to_str().unwrap(), None).err().unwrap();
    assert!(matches!(&error, LoadError::UnknownArchitecture { found, .. } if found == "rwkv7"), "{error}");

    let path = written(&folder, |m| drop(m.insert("llama.rope.scaling.type".into(), text("yarn"))));
    assert!(refusal(&path).contains("`yarn`"), "{}", refusal(&path));
    let path = written(&folder, |m| drop(m.remove("llama.block_count")));
    assert!(refusal(&path).contains("`llama.block_count`"), "{}", refusal(&path));
    let path = written(&folder, |m| drop(m.insert("llama.block_count".into(), text("two"))));
    assert!(refusal(&path).contains("as string, not a whole number"), "{}", refusal(&path));
    let path = written(&folder, |m| drop(m.insert("split.count".into(), Value::U16(3))));
    assert!(refusal(&path).contains("one of 3 parts"), "{}", refusal(&path));
    // Every second layer has other heads.
    let heads = Value::Array(vec![Value::U32(4), Value::U32(2)]);
    let path = written(&folder, |m| drop(m.insert("llama.attention.head_count".into(), heads.clone())));
    assert!(refusal(&path).contains("differs between layers"), "{}", refusal(&path));

    let path = folder.put("not.gguf", b"GGUF is the name of a file format");
    assert!(refusal(&path).contains("no GGUF file that can be read"), "{}", refusal(&path));
    let revision = Files::find(file("llama").to_str().unwrap(), Some("main")).err().unwrap();
    assert!(matches!(revision, LoadError::NoRevision { .. }), "{revision}");
}

/// A file with one tensor, whose type is `number`.
fn typed(folder: &common::Folder, number: u32) -> PathBuf {
    let path = folder.put("typed.gguf", &[]);
    let zeros = Tensor::zeros((1, 256), DType::F32, &Device::Cpu).unwrap();
    let tensor = QTensor::quantize(&zeros, GgmlDType::F32).unwrap();
    let arch = Value::String("llama".into());
    let name = "token_embd.weight";
    gguf_file::write(
        &mut std::fs::File::create(&path).unwrap(),
        &[("general.architecture", &arch)],
        &[(name, &tensor)],
    )
    .unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    // After the name: the number of dimensions, two dimensions, then the type.
    let at = bytes.windows(name.len()).position(|w| w == name.as_bytes()).unwrap() + name.len() + 4 + 16;
    assert_eq!(bytes[at..at + 4], [0; 4]);
    bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn types_that_are_not_read_are_refused() {
    let folder = common::Folder::new();
    // IQ2_XXS, Q8_1, Q8_K.
    for number in [16, 9, 15] {
        let message = refusal(&typed(&folder, number));
        assert!(message.contains("Q4_0, Q4_1"), "{message}");
    }
}

#[test]
fn a_tensor_too_many_is_refused() {
    let folder = common::Folder::new();
    let mut source = std::fs::File::open(file("llama")).unwrap();
    let content = gguf_file::Content::read(&mut source).unwrap();
    let tensor = content.tensor(&mut source, "output_norm.weight", &Device::Cpu).unwrap();
    let arch = Value::String("llama".into());
    let path = folder.put("more.gguf", &[]);
    let tensors = [("token_embd.weight", &tensor), ("blk.0.ffn_gate_inp.weight", &tensor)];
    let mut out = std::fs::File::create(&path).unwrap();
    gguf_file::write(&mut out, &[("general.architecture", &arch)], &tensors).unwrap();
    let message = refusal(&path);
    assert!(message.contains("`blk.0.ffn_gate_inp.weight`, which models of type llama have not"), "{message}");
}

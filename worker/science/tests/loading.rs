//! Folders of all kinds: found, identified, or refused with a reason.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use candle_core::{DType, Device, Tensor};
use common::{
    Folder,
    language::{self, Expected, assert_same},
};
use serde_json::{Value, json};
use std::{collections::HashMap, fs, path::Path};
use taskvec_science::{
    load::{Files, LoadError, Room, identify, revisions},
    model::language::{LanguageModel, Logits},
};

fn copy(name: &str, into: &Path) {
    fs::create_dir_all(into).unwrap();
    for entry in fs::read_dir(language::folder(name)).unwrap().map(Result::unwrap) {
        if entry.file_name() != "expected.safetensors" {
            fs::copy(entry.path(), into.join(entry.file_name())).unwrap();
        }
    }
}

fn copied(name: &str) -> Folder {
    let folder = Folder::new();
    copy(name, folder.path());
    folder
}

fn find(folder: &Folder) -> Result<Files, LoadError> {
    Files::find(folder.path().to_str().unwrap(), None)
}

fn load(folder: &Folder) -> Result<(), LoadError> {
    find(folder)?.load(DType::F32, &[Room::cpu()]).map(drop)
}

/// The error must say all of these.
fn refused(result: Result<(), LoadError>, says: &[&str]) {
    let error = result.expect_err("is refused").to_string();
    for part in says {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
}

fn with_config(name: &str, change: impl FnOnce(&mut Value)) -> Folder {
    let folder = copied(name);
    let mut config = serde_json::from_slice(&fs::read(folder.path().join("config.json")).unwrap()).unwrap();
    change(&mut config);
    folder.put("config.json", config.to_string().as_bytes());
    folder
}

fn with_tensors(name: &str, change: impl FnOnce(&mut HashMap<String, Tensor>)) -> Folder {
    let folder = copied(name);
    let path = folder.path().join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    change(&mut tensors);
    candle_core::safetensors::save(&tensors, &path).unwrap();
    folder
}

#[test]
fn what_is_not_there_is_described() {
    let nowhere = || Files::find("somebody/some-model", None).map(drop);
    refused(
        nowhere(),
        &[
            "`somebody/some-model`",
            "config.json, tokenizer.json",
            "model.safetensors.index.json",
            "taskvec model fetch",
        ],
    );
    let folder = Folder::new();
    refused(find(&folder).map(drop), &["has no config.json", &folder.path().display().to_string()]);
    fs::copy(language::folder("llama").join("config.json"), folder.path().join("config.json")).unwrap();
    refused(load(&folder), &["has no weights: neither model.safetensors nor model.safetensors.index.json"]);
    folder.put("pytorch_model.bin", b"");
    refused(load(&folder), &["pytorch_model.bin only", "save_pretrained"]);
}

#[test]
fn damaged_files_are_named() {
    let folder = copied("llama");
    let path = folder.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    let short = format!("is cut short: it has {} bytes where its header promises {}", whole.len() - 100, whole.len());
    folder.put("model.safetensors", &whole[..whole.len() - 100]);
    refused(find(&folder).map(drop), &["model.safetensors", &short]);
    folder.put("model.safetensors", &whole[..50]);
    refused(load(&folder), &["is cut short within its header"]);
    folder.put("model.safetensors", b"abc");
    refused(load(&folder), &["is cut short"]);
    folder.put("model.safetensors", &[0xff; 64]);
    refused(load(&folder), &["is not a safetensors file"]);
    folder.put("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:00");
    refused(load(&folder), &["Git LFS pointer", "git lfs pull"]);
    let mut broken = whole.clone();
    broken[20] = b'{';
    folder.put("model.safetensors", &broken);
    refused(load(&folder), &["model.safetensors"]);
    folder.put("model.safetensors", &whole);
    load(&folder).unwrap();
    folder.put("config.json", b"{\"model_type\": ");
    refused(load(&folder), &["config.json", "is not JSON"]);
}

#[test]
fn missing_shards_are_named() {
    let folder = copied("llama_tied");
    let shards: Vec<String> = fs::read_dir(folder.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".safetensors"))
        .collect();
    assert!(shards.len() > 2);
    fs::remove_file(folder.path().join(&shards[0])).unwrap();
    refused(load(&folder), &["model.safetensors.index.json", &shards[0], "incomplete"]);
    fs::copy(folder.path().join(&shards[1]), folder.path().join(&shards[0])).unwrap();
    refused(load(&folder), &["has the tensor"]);
    folder.put("model.safetensors.index.json", br#"{"weight_map": {"a": "../../etc/passwd"}}"#);
    refused(load(&folder), &["is not the plain name of a file"]);
}

#[test]
fn weights_and_configuration_must_belong_together() {
    let name = "model.layers.1.mlp.up_proj.weight";
    let folder = with_tensors("llama", |t| drop(t.remove(name)));
    refused(load(&folder), &["model.safetensors", "lacks the tensor", name, "[40, 24]"]);
    let folder = with_tensors("llama", |t| drop(t.insert("model.extra".into(), t[name].clone())));
    refused(load(&folder), &["no place for", "`model.extra`"]);
    let folder = with_config("llama", |c| c["intermediate_size"] = json!(48));
    refused(load(&folder), &["mlp.gate_proj.weight", "is [40, 24]", "asks for [48, 24]"]);
    let folder = with_config("llama", |c| c["num_hidden_layers"] = json!(2));
    refused(load(&folder), &["no place for", "model.layers.2.", "and 11 more"]);
    let folder = with_config("llama", |c| c["num_hidden_layers"] = json!(4));
    refused(load(&folder), &["lacks the tensor", "model.layers.3."]);
    // A second copy of tied weights, and tables that older versions saved, are no strangers.
    let folder = with_tensors("gemma2", |t| {
        t.insert("lm_head.weight".into(), t["model.embed_tokens.weight"].clone());
        t.insert(
            "model.layers.0.self_attn.rotary_emb.inv_freq".into(),
            Tensor::zeros(4, DType::F32, &Device::Cpu).unwrap(),
        );
    });
    load(&folder).unwrap();
    assert_eq!(find(&folder).unwrap().parameters(), find(&copied("gemma2")).unwrap().parameters());
}

#[test]
fn configurations_that_are_not_built_here_are_refused() {
    let refuse = |name: &str, key: &str, value: Value, says: &[&str]| {
        refused(load(&with_config(name, |c| c[key] = value)), &[&["config.json"], says].concat());
    };
    refuse("llama", "model_type", json!("mamba7"), &["`mamba7`", "llama, gemma2, olmo, hf_olmo, olmo2, gpt2"]);
    refuse("llama", "hidden_size", json!("wide"), &["`hidden_size` is \"wide\""]);
    refuse("llama", "hidden_size", Value::Null, &["lacks `hidden_size`"]);
    refuse("llama", "num_key_value_heads", json!(3), &["4 attention heads", "3 key-value heads"]);
    refuse("llama", "hidden_act", json!("relu"), &["`relu`", "silu"]);
    refuse("llama", "rope_parameters", json!({"rope_type": "yarn"}), &["`yarn`", "default, linear and llama3"]);
    refuse("llama", "rope_parameters", json!({"rope_type": "llama3", "factor": 4}), &["lacks `low_freq_factor`"]);
    refuse("gemma2", "layer_types", json!(["full_attention"]), &["1 layers out of 3"]);
    refuse("gpt2", "scale_attn_by_inverse_layer_idx", json!(true), &["only models with false"]);
    refuse("olmo_original", "alibi", json!(true), &["`alibi`"]);
}

#[test]
fn another_models_tokenizer_is_refused() {
    let tokenizer = |ids: Vec<usize>, added: usize| {
        let vocab: serde_json::Map<String, Value> = ids.iter().map(|i| (format!("t{i}"), json!(i))).collect();
        let folder = copied("llama");
        let json = json!({"model": {"type": "BPE", "vocab": vocab}, "added_tokens": [{"id": added, "content": "x"}]});
        folder.put("tokenizer.json", json.to_string().as_bytes());
        load(&folder)
    };
    tokenizer((0..60).collect(), 60).unwrap();
    tokenizer((0..50).collect(), 0).unwrap();
    refused(tokenizer((0..60).collect(), 61), &["tokenizer.json", "has 62 tokens", "for 61"]);
    refused(tokenizer(vec![0, 1, 1000], 2), &["has 1001 tokens"]);
    let folder = copied("llama");
    folder.put("tokenizer.json", br#"{"model": {"vocab": [["a", 0.5], ["b", 0.1]]}}"#);
    load(&folder).unwrap();
    folder.put("tokenizer.json", b"{}");
    refused(load(&folder), &["tokenizer.json", "is not a tokenizer"]);
}

#[test]
fn a_model_is_what_its_files_say() {
    let folder = copied("llama_tied");
    let path = folder.path().to_str().unwrap();
    let files = Files::find(path, None).unwrap();
    let bytes: u64 = 61 * 24 + 24 + 2 * (2 * 24 + 24 * (24 + 6 + 6 + 24) + 3 * 24 * 40);
    assert_eq!((files.parameters(), files.bytes(DType::BF16), files.bytes(DType::F32)), (bytes, 2 * bytes, 4 * bytes));
    let first = identify(path, None).unwrap();
    assert_eq!((first.arch.as_str(), first.layers, first.width, first.heads), ("llama", 2, 24, 4));
    assert_eq!((first.vocabulary, first.parameters, first.context, first.step), (61, bytes, Some(64), 0));
    assert_eq!(identify(path, None).unwrap(), first, "the same again");
    assert_eq!(identify(copied("llama_tied").path().to_str().unwrap(), None).unwrap(), first, "wherever it lies");
    // Every file that is read counts, and no other.
    folder.put("README.md", b"about it");
    assert_eq!(identify(path, None).unwrap(), first);
    let vocab: serde_json::Map<String, Value> = (0..61).map(|i| (format!("t{i}"), json!(i))).collect();
    folder.put("tokenizer.json", json!({"model": {"vocab": vocab}}).to_string().as_bytes());
    let with_tokenizer = identify(path, None).unwrap();
    assert_ne!(with_tokenizer.digest, first.digest);
    let shard = fs::read_dir(folder.path())
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.to_str().unwrap().ends_with("2-of-00003.safetensors"));
    let shard = shard.expect("a second shard");
    let mut changed = fs::read(&shard).unwrap();
    *changed.last_mut().unwrap() ^= 1;
    fs::write(&shard, changed).unwrap();
    assert_ne!(identify(path, None).unwrap().digest, with_tokenizer.digest);
}

#[test]
fn revisions_are_folders_below() {
    let folder = Folder::new();
    for name in ["step1000-tokens4B", "step20000-tokens88B", "step3000-tokens12B", "main"] {
        copy("olmo_original", &folder.path().join(name));
    }
    fs::create_dir(folder.path().join("step9-not-a-model")).unwrap();
    let path = folder.path().to_str().unwrap();
    assert_eq!(revisions(path, "step*").unwrap(), ["step1000-tokens4B", "step3000-tokens12B", "step20000-tokens88B"]);
    assert_eq!(revisions(path, "main").unwrap(), ["main"]);
    let error = revisions(path, "stage*").unwrap_err().to_string();
    assert!(error.contains("`stage*`") && error.contains("`step1000-tokens4B`"), "{error}");
    assert_eq!(identify(path, Some("step3000-tokens12B")).unwrap().step, 3000);
    refused(Files::find(path, Some("step2")).map(drop), &["no revision `step2`", "`main`"]);
    refused(Files::find(path, Some("../x")).map(drop), &["no revision"]);
    refused(Files::find(path, None).map(drop), &["has no config.json"]);
}

#[test]
fn the_hub_caches_folders_are_read() {
    let folder = Folder::new();
    let root = folder.path().join("models--somebody--llama");
    let commit = "0123456789abcdef0123456789abcdef01234567";
    copy("llama", &root.join("snapshots").join(commit));
    copy("llama_tied", &root.join("snapshots/other"));
    fs::create_dir(root.join("refs")).unwrap();
    fs::write(root.join("refs/main"), commit).unwrap();
    fs::write(root.join("refs/step7"), "other\n").unwrap();
    fs::create_dir_all(root.join("refs/refs/pr")).unwrap();
    fs::write(root.join("refs/refs/pr/5"), "other").unwrap();
    let path = root.to_str().unwrap();
    let layers = |revision| Files::find(path, revision).map(|files| files.config().layers).unwrap();
    assert_eq!((layers(None), layers(Some("main")), layers(Some(commit)), layers(Some("step7"))), (3, 3, 3, 2));
    assert_eq!(layers(Some("refs/pr/5")), 2);
    assert_eq!(revisions(path, "*").unwrap(), ["main", "refs/pr/5", "step7"]);
    let fetch = "taskvec model fetch somebody/llama --revision 'step8'";
    refused(
        Files::find(path, Some("step8")).map(drop),
        &["no revision `step8`", "`main`, `refs/pr/5`, `step7`", fetch],
    );
}

#[test]
fn both_ways_to_name_a_decoder_are_read() {
    for (name, remove, add) in [("llama", "model.", ""), ("gpt2", "", "transformer.")] {
        let folder = with_tensors(name, |tensors| {
            let renamed = |key: &str| match key.strip_prefix(remove) {
                Some(rest) => format!("{add}{rest}"),
                None => key.to_owned(),
            };
            *tensors = tensors.iter().map(|(key, t)| (renamed(key), t.clone())).collect();
        });
        let other = find(&folder).unwrap().load(DType::F32, &[Room::cpu()]).unwrap();
        let batch = Expected::of(name).batch();
        let logits = |model: &LanguageModel| model.forward(&batch, None, None, Logits::All).unwrap().unwrap();
        assert_same(name, &logits(&other), &logits(&language::load(name)));
    }
}

#[test]
fn what_fits_no_single_room_is_spread_over_several() {
    for name in ["llama", "llama_tied", "gpt2", "gemma2"] {
        let files = Files::find(language::folder(name).to_str().unwrap(), None).unwrap();
        let parts = files.parts(DType::F32);
        assert_eq!(parts.bytes(), files.bytes(DType::F32), "{name}");
        assert!(parts.blocks.iter().all(|bytes| *bytes == parts.blocks[0]), "{name}: blocks of one model are alike");
        let room = |bytes| Room { device: Device::Cpu, bytes };
        let rooms = [room(parts.bytes() - parts.blocks[0]), room(parts.blocks[0] + parts.unembedding)];
        let (spread, batch) = (files.load(DType::F32, &rooms).unwrap(), Expected::of(name).batch());
        let logits = |model: &LanguageModel| model.forward(&batch, None, None, Logits::All).unwrap().unwrap();
        assert_same(name, &logits(&spread), &logits(&language::load(name)));

        let short = files.load(DType::F32, &[room(parts.embedding), room(parts.blocks[0])]);
        refused(short.map(drop), &["its weights take 0.0 GB", "on cpu", "smaller dtype or model"]);
    }
}

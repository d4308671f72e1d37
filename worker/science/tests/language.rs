//! Every architecture agrees with transformers (fixtures/language.py).
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use candle_core::{DType, Device};
use common::{
    Folder,
    language::{self, Expected, MODELS, assert_close},
};
use taskvec_science::{
    load::{Files, Room},
    model::language::{LanguageModel, Logits, MixerConfig},
};

/// Everything that is expected, then predictions for some tokens and for none.
fn agrees(model: &LanguageModel, expected: &Expected) {
    let logits = expected.check_pass(model);
    // The last tokens alone, and without anybody looking.
    let last: Vec<u32> = (0..expected.rows.len()).map(|i| expected.batch().range(i).end as u32 - 1).collect();
    let wanted = logits.index_select(&candle_core::Tensor::new(last, &Device::Cpu).unwrap(), 0).unwrap();
    let alone = model.forward(&expected.batch(), None, None, Logits::Last).unwrap().unwrap();
    assert_close("logits of last tokens", &alone, &wanted, 1e-6);
    assert!(model.forward(&expected.batch(), None, None, Logits::None).unwrap().is_none());
}

#[test]
fn llama() {
    agrees(&language::load("llama"), &Expected::of("llama"));
}

#[test]
fn llama_with_tied_embeddings_in_shards() {
    assert!(language::folder("llama_tied").join("model.safetensors.index.json").is_file());
    agrees(&language::load("llama_tied"), &Expected::of("llama_tied"));
}

#[test]
fn gemma2() {
    agrees(&language::load("gemma2"), &Expected::of("gemma2"));
}

#[test]
fn olmo() {
    agrees(&language::load("olmo"), &Expected::of("olmo"));
}

#[test]
fn olmo_in_its_original_layout() {
    agrees(&language::load("olmo_original"), &Expected::of("olmo"));
}

#[test]
fn olmo2() {
    agrees(&language::load("olmo2"), &Expected::of("olmo2"));
}

#[test]
fn gpt2() {
    agrees(&language::load("gpt2"), &Expected::of("gpt2"));
}

#[test]
fn the_fixtures_reach_what_they_are_for() {
    let longest = |name| Expected::of(name).rows.iter().map(Vec::len).max().unwrap();
    let config = |name| language::load(name).config().clone();
    let attention = |name| {
        let MixerConfig::Attention(attention) = config(name).mixer else { panic!("no attention") };
        attention
    };
    assert!(attention("gemma2").windows[0].unwrap() < longest("gemma2"), "rows are longer than the sliding window");
    assert_eq!(attention("gemma2").windows[1], None, "every other layer sees everything");
    assert!(longest("llama") > 32, "rows go beyond the original range of rotary positions");
    assert!(attention("llama").groups < attention("llama").heads && attention("olmo2").groups > 1);
    assert!(config("llama_tied").unembedding.tied && !config("llama").unembedding.tied);
    // Clipping and capping change numbers: without them, the same weights no longer agree.
    for (name, key) in
        [("olmo", "clip_qkv"), ("gemma2", "attn_logit_softcapping"), ("gemma2", "final_logit_softcapping")]
    {
        let model = changed(name, |config| config[key] = serde_json::Value::Null);
        let expected = Expected::of(name);
        let logits = model.forward(&expected.batch(), None, None, Logits::All).unwrap().unwrap();
        let theirs = language::flat(&expected.tensors["logits"]);
        let far = language::flat(&logits).iter().zip(&theirs).any(|(a, b)| (a - b).abs() > 1e-2);
        assert!(far, "{key} of {name} does nothing");
    }
}

/// A model of the fixtures with another `config.json`.
fn changed(name: &str, change: impl FnOnce(&mut serde_json::Value)) -> LanguageModel {
    let folder = Folder::new();
    for entry in std::fs::read_dir(language::folder(name)).unwrap().map(Result::unwrap) {
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let mut config = serde_json::from_slice(&std::fs::read(folder.path().join("config.json")).unwrap()).unwrap();
    change(&mut config);
    folder.put("config.json", config.to_string().as_bytes());
    Files::find(folder.path().to_str().unwrap(), None).unwrap().load(DType::F32, &[Room::cpu()]).unwrap()
}

#[test]
fn configurations_of_both_versions_of_transformers_say_the_same() {
    for name in MODELS {
        let new = Files::find(language::folder(name).to_str().unwrap(), None).unwrap().config().clone();
        let text = std::fs::read_to_string(language::folder(name).join("config.v4.json")).unwrap();
        assert!(text.contains("torch_dtype") && !text.contains("rope_parameters"), "{name} has the old keys");
        let old = changed(name, |config| *config = serde_json::from_str(&text).unwrap());
        assert_eq!(*old.config(), new, "{name}");
    }
}

#[test]
fn sixteen_bits_are_near() {
    for name in MODELS {
        let expected = Expected::of(name);
        for (dtype, tolerance) in [(DType::BF16, 0.1), (DType::F16, 0.02)] {
            let model = language::load_as(name, dtype);
            assert_eq!(model.dtype(), dtype);
            let logits = model.forward(&expected.batch(), None, None, Logits::All).unwrap().unwrap();
            assert_eq!(logits.dtype(), DType::F32);
            assert_close(&format!("{name} {dtype:?}"), &logits, &expected.tensors["logits"], tolerance);
        }
    }
}

//! `forward_file`, which is `taskvec model forward`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use candle_core::{Device, Tensor};
use common::{
    Folder,
    language::{self, Expected, assert_close, assert_same},
};
use serde_json::{Value, json};
use std::collections::HashMap;
use taskvec_model::spec::{DataSpec, FloatType};
use taskvec_science::{
    checkpoint::{self, Identity},
    data::{Bases, generate},
    forward_file,
    model::Transformer,
    rng::{Purpose, Stream},
};

fn run(model: &str, input: &Value) -> Result<HashMap<String, Tensor>, String> {
    let folder = Folder::new();
    let input = folder.put("input.json", input.to_string().as_bytes());
    let output = folder.path().join("out.safetensors");
    forward_file(model, None, None, &input, &output, FloatType::F32).map_err(|e| e.to_string())?;
    Ok(candle_core::safetensors::load(output, &Device::Cpu).unwrap())
}

#[test]
fn padded_batches_of_language_models() {
    let (folder, expected) = (language::folder("gemma2"), Expected::of("gemma2"));
    let table = |name: &str| expected.tensors[name].to_vec2::<i64>().unwrap();
    let (ids, mask) = (table("input_ids"), table("attention_mask"));
    let out = run(folder.to_str().unwrap(), &json!({"input_ids": ids, "attention_mask": mask})).unwrap();
    assert_eq!(out.len(), 5);
    let kept: Vec<u32> = (0u32..).zip(mask.concat()).filter(|(_, m)| *m == 1).map(|(i, _)| i).collect();
    let padding: Vec<u32> = (0u32..).zip(mask.concat()).filter(|(_, m)| *m == 0).map(|(i, _)| i).collect();
    for (name, tensor) in &out {
        assert_eq!(tensor.dims()[..2], [3, 40], "{name}");
        let places = tensor.flatten_to(1).unwrap();
        let at = |places: &Tensor, of: &[u32]| places.index_select(&Tensor::new(of, &Device::Cpu).unwrap(), 0).unwrap();
        expected.check(name, &at(&places, &kept));
        assert!(language::flat(&at(&places, &padding)).iter().all(|v| *v == 0.0), "{name} is zero at padding");
    }
    // Padding on the right gives the same numbers at other places; without padding the mask may be left out.
    let right = json!({"input_ids": [ids[0], turned(&ids[2])], "attention_mask": [mask[0], turned(&mask[2])]});
    let right = run(folder.to_str().unwrap(), &right).unwrap();
    let whole = run(folder.to_str().unwrap(), &json!({"input_ids": [ids[0]]})).unwrap();
    let row = |out: &HashMap<String, Tensor>, row, from| out["logits"].get(row).unwrap().narrow(0, from, 7).unwrap();
    assert_close("right", &row(&right, 1, 0), &row(&out, 2, 33), 1e-5);
    assert_close("whole", &row(&whole, 0, 0), &row(&out, 0, 0), 1e-5);
}

#[test]
fn language_models_with_adapters() {
    let adapter = common::fixture("lora").join("gemma2");
    let theirs = candle_core::safetensors::load(adapter.join("expected.safetensors"), &Device::Cpu).unwrap();
    let ids: Vec<i64> = theirs["input_ids"].to_vec1().unwrap();
    let folder = Folder::new();
    let input = folder.put("input.json", json!({"input_ids": [ids[..40]]}).to_string().as_bytes());
    let output = folder.path().join("out.safetensors");
    let forward = |model: &str| forward_file(model, None, Some(&adapter), &input, &output, FloatType::F32);
    forward(language::folder("gemma2").to_str().unwrap()).unwrap();
    let ours = candle_core::safetensors::load(&output, &Device::Cpu).unwrap();
    assert_close("logits", &ours["logits"].get(0).unwrap(), &theirs["logits"].narrow(0, 0, 40).unwrap(), 1e-4);
    let error = forward("weights.safetensors").unwrap_err().to_string();
    assert!(error.contains("adapters are for language models"), "{error}");
}

/// Padding moved from the front to the end: the last seven first.
fn turned(row: &[i64]) -> Vec<i64> {
    [&row[33..], &row[..33]].concat()
}

#[test]
fn sequences_of_synthetic_models() {
    let folder = Folder::new();
    let run_of = Identity { seed: 3, model: common::model(), data: common::data() };
    let network = Transformer::init(&run_of.model, &run_of.data, run_of.seed, &Device::Cpu).unwrap();
    let mut bytes = Vec::new();
    checkpoint::write(&mut bytes, &run_of, 0, &network, None).unwrap();
    let path = folder.put("checkpoint.safetensors", &bytes);
    let DataSpec::SparseLinear(data) = common::data();
    let sequences = generate(&data, Stream { seed: 5, purpose: Purpose::Evaluate, step: 0 }, 0..3, Bases::Drawn);
    let x: Vec<Vec<&[f32]>> = sequences.x.chunks(16).map(|row| row.chunks(4).collect()).collect();
    let y: Vec<&[f32]> = sequences.y.chunks(4).collect();
    let out = run(path.to_str().unwrap(), &json!({"x": x, "y": y})).unwrap();
    let tokens = sequences.tokens(&Device::Cpu).unwrap();
    let predictions = network.forward(&tokens, None).unwrap();
    assert_close("predictions", &out["predictions"], &predictions, 1e-5);
    assert_eq!(out.len(), 4);
    assert_eq!(out["hidden.2"].dims(), [3, 8, 16]);
    let mut embedding = None;
    let mut hook = |_, x: &Tensor| {
        embedding.get_or_insert(x.clone());
        Ok(None)
    };
    network.forward(&tokens, Some(&mut hook)).unwrap();
    assert_same("hidden.0", &out["hidden.0"], &embedding.unwrap());
    for (x, y) in [(json!([[[1.0]]]), json!([[1.0]])), (json!(x), json!([[1.0]])), (json!([]), json!([]))] {
        let error = run(path.to_str().unwrap(), &json!({"x": x, "y": y})).unwrap_err();
        assert!(error.contains("`x` must be B × 4 × 4 and `y` B × 4"), "{error}");
    }
    let error = run(path.to_str().unwrap(), &json!({"input_ids": [[1]]})).unwrap_err();
    assert!(error.contains("is not an input for a synthetic model"), "{error}");
}

#[test]
fn bad_inputs_are_named() {
    let folder = language::folder("llama");
    let fails = |input: Value| run(folder.to_str().unwrap(), &input).unwrap_err();
    for (input, says) in [
        (json!({"x": [[[1.0]]], "y": [[1.0]]}), "is not an input for a language model"),
        (json!({"input_ids": [[1, 2], [3]]}), "rows of different lengths"),
        (json!({"input_ids": [[1, 2]], "attention_mask": [[1]]}), "rows of different lengths"),
        (json!({"input_ids": [[1, 2], [3, 4]], "attention_mask": [[0, 1], [0, 0]]}), "row 1 of `attention_mask`"),
        (json!({"input_ids": [[1, 2, 3]], "attention_mask": [[1, 0, 1]]}), "row 0 of `attention_mask`"),
        (json!({"input_ids": [[1, 2, 3]], "attention_mask": [[1, 2, 1]]}), "row 0 of `attention_mask`"),
        (json!({"input_ids": [[1, 2, 99]]}), "token 99"),
        (json!({"input_ids": [vec![1; 200]]}), "200 tokens"),
    ] {
        let error = fails(input);
        assert!(error.contains(says), "{says}: {error}");
    }
}

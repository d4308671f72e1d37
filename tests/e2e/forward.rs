//! `taskvec model forward` on language models, from the command line, against what transformers made of them.

use crate::support::{Ran, folder, taskvec};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("worker/science/tests/fixtures").join(name)
}

/// A tensor: its shape, and its values in order.
pub type Values = (Vec<usize>, Vec<f64>);

pub fn tensors(path: &Path) -> BTreeMap<String, Values> {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let values = |dtype: Dtype, data: &[u8]| -> Vec<f64> {
        match dtype {
            Dtype::F32 => data.as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
            Dtype::I64 => data.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as f64).collect(),
            other => panic!("{other:?}"),
        }
    };
    let named = file.tensors().into_iter();
    named.map(|(name, view)| (name, (view.shape().to_vec(), values(view.dtype(), view.data())))).collect()
}

/// Largest error relative to the largest magnitude.
pub fn error_of(ours: &[f64], theirs: &[f64]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let scale = theirs.iter().fold(0.0f64, |most, value| most.max(value.abs()));
    assert!(scale > 0.0 && ours.iter().all(|value| value.is_finite()));
    ours.iter().zip(theirs).fold(0.0f64, |most, (a, b)| most.max((a - b).abs())) / scale
}

/// The inputs of the fixture `language/NAME`, as the command takes them.
pub fn inputs(name: &str) -> (Value, Vec<f64>) {
    let expected = tensors(&fixture("language").join(name).join("expected.safetensors"));
    let rows = |name: &str| -> Vec<Vec<u32>> {
        let (shape, values) = &expected[name];
        values.chunks(shape[1]).map(|row| row.iter().map(|value| *value as u32).collect()).collect()
    };
    let input = json!({"input_ids": rows("input_ids"), "attention_mask": rows("attention_mask")});
    (input, expected["attention_mask"].1.clone())
}

/// What the command wrote must be what transformers found, at every token that is not padding.
pub fn assert_as_transformers(name: &str, output: &Path) {
    let expected = tensors(&fixture("language").join(name).join("expected.safetensors"));
    assert_as_expected(name, output, &expected, &inputs(name).1);
}

fn assert_as_expected(name: &str, output: &Path, expected: &BTreeMap<String, Values>, mask: &[f64]) {
    let ours = tensors(output);
    assert!(ours.contains_key("logits") && ours.contains_key("hidden.0"), "{:?}", ours.keys());
    for (tensor, (shape, values)) in &ours {
        let rows = values.chunks(shape[2]).zip(mask).filter(|(_, mask)| **mask == 1.0);
        let kept: Vec<f64> = rows.flat_map(|(row, _)| row.iter().copied()).collect();
        let error = error_of(&kept, &expected[tensor].1);
        assert!(error < 1e-4, "{name}: {tensor}: relative error {error:e}");
    }
}

fn forward(model: &Path, input: &Value, dir: &Path) -> PathBuf {
    let (given, output) = (dir.join("input.json"), dir.join("out.safetensors"));
    fs::write(&given, input.to_string()).expect("writes");
    let mut command = taskvec();
    command.args(["model", "forward", "--model"]).arg(model).arg("--input").arg(&given).arg("-o").arg(&output);
    let ran: Ran = command.output().expect("it runs").into();
    assert_eq!(ran.ok().trim(), output.display().to_string());
    output
}

#[test]
fn a_folder_gives_what_transformers_gives() {
    let dir = folder();
    for name in ["llama", "llama_tied", "gemma2", "olmo", "olmo2", "gpt2"] {
        let output = forward(&fixture("language").join(name), &inputs(name).0, dir.path());
        assert_as_transformers(name, &output);
    }
    let output = forward(&fixture("language").join("olmo_original"), &inputs("olmo").0, dir.path());
    assert_as_transformers("olmo", &output);
}

/// A model with states, whose fixture has its rows one after the other.
#[test]
fn so_does_a_folder_of_mamba2() {
    let (dir, model) = (folder(), fixture("mamba2/two_groups"));
    let expected = tensors(&model.join("expected.safetensors"));
    let (mut ids, mut mask, mut from) = (Vec::new(), Vec::new(), 0);
    let lengths: Vec<usize> = expected["lengths"].1.iter().map(|n| *n as usize).collect();
    let longest = lengths.iter().max().copied().unwrap_or(0);
    for len in lengths {
        let row = expected["tokens"].1[from..from + len].iter().map(|token| *token as u32);
        ids.push(std::iter::repeat_n(0, longest - len).chain(row).collect::<Vec<u32>>());
        mask.push([vec![0u32; longest - len], vec![1; len]].concat());
        from += len;
    }
    let output = forward(&model, &json!({"input_ids": ids, "attention_mask": mask}), dir.path());
    let mask: Vec<f64> = mask.concat().into_iter().map(f64::from).collect();
    assert_as_expected("mamba2", &output, &expected, &mask);
}

#[test]
fn a_gguf_gives_what_the_checkpoint_it_was_made_of_gives() {
    let dir = folder();
    let input = json!({"input_ids": [(0..40).collect::<Vec<u32>>()]});
    let model = fixture("gguf/llama");
    let theirs = tensors(&forward(&model, &input, dir.path()));
    let ours = tensors(&forward(&model.join("model.gguf"), &input, dir.path()));
    assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
    for (name, (shape, values)) in &ours {
        assert_eq!(shape, &theirs[name].0, "{name}");
        let error = error_of(values, &theirs[name].1);
        assert!(error < 1e-5, "{name}: relative error {error:e}");
    }
}

//! The tiny language models of fixtures/language.py, and what transformers makes of them.

use super::fixture;
use candle_core::{D, DType, Device, Tensor};
use std::{collections::HashMap, path::PathBuf};
use taskvec_science::{
    hook::{BlockPoint, Capture, HookPoint, Tokens},
    load::{Files, Room},
    model::language::{Batch, LanguageModel, Logits},
};

/// All folders that have expectations of their own.
pub const MODELS: [&str; 6] = ["llama", "llama_tied", "gemma2", "olmo", "olmo2", "gpt2"];

pub fn folder(name: &str) -> PathBuf {
    fixture("language").join(name)
}

pub fn load(name: &str) -> LanguageModel {
    load_as(name, DType::F32)
}

pub fn load_as(name: &str, dtype: DType) -> LanguageModel {
    Files::find(folder(name).to_str().unwrap(), None).unwrap().load(dtype, &[Room::cpu()]).unwrap()
}

pub struct Expected {
    pub tensors: HashMap<String, Tensor>,
    /// The tokens of each row, without padding.
    pub rows: Vec<Vec<u32>>,
}

impl Expected {
    pub fn of(name: &str) -> Self {
        let path = folder(name).join("expected.safetensors");
        let tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
        let table = |name: &str| tensors[name].to_vec2::<i64>().unwrap();
        let kept = |(ids, mask): (Vec<i64>, Vec<i64>)| {
            ids.iter().zip(&mask).filter(|(_, m)| **m == 1).map(|(id, _)| *id as u32).collect()
        };
        let rows = table("input_ids").into_iter().zip(table("attention_mask")).map(kept).collect();
        Self { tensors, rows }
    }

    pub fn batch(&self) -> Batch {
        Batch::new(&self.rows).unwrap()
    }

    /// The model's logits, which must be those expected, as every hidden state must, and what the last block's heads read and how.
    pub fn check_pass(&self, model: &LanguageModel) -> Tensor {
        let layers = model.config().layers;
        let last = |point| HookPoint::Block(layers - 1, point);
        let points = (0..=layers).map(HookPoint::hidden).chain([last(BlockPoint::Z), last(BlockPoint::Pattern)]);
        let mut capture = Capture::new(points, Tokens::all());
        let logits = model.forward(&self.batch(), None, Some(&mut capture), Logits::All).unwrap().unwrap();
        self.check("pattern", &capture.visits(last(BlockPoint::Pattern))[1]);
        for layer in 0..=layers {
            self.check(&format!("hidden.{layer}"), &capture.take(HookPoint::hidden(layer)).unwrap());
        }
        self.check("z", &capture.take(last(BlockPoint::Z)).unwrap().flatten_from(1).unwrap());
        self.check("logits", &logits);
        logits
    }

    /// Within 1e-4 of what is expected.
    pub fn check(&self, name: &str, ours: &Tensor) {
        assert_close(name, ours, &self.tensors[name], 1e-4);
    }
}

pub fn flat(x: &Tensor) -> Vec<f64> {
    x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The largest error must be below `tolerance` times the largest magnitude.
pub fn assert_close(what: &str, ours: &Tensor, theirs: &Tensor, tolerance: f64) {
    assert_eq!(ours.dims(), theirs.dims(), "{what}");
    let (ours, theirs) = (flat(ours), flat(theirs));
    let scale = theirs.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    let error = ours.iter().zip(&theirs).fold(0.0f64, |m, (a, b)| m.max((a - b).abs()));
    assert!(scale > 0.0, "{what} is all zeros");
    // Not `error < …` alone: a NaN must fail.
    assert!(
        error / scale < tolerance && ours.iter().all(|v| v.is_finite()),
        "{what}: relative error {:e}",
        error / scale
    );
}

/// Equal bit for bit.
pub fn assert_same(what: &str, a: &Tensor, b: &Tensor) {
    assert_eq!(a.dims(), b.dims(), "{what}");
    let bits = |x: &Tensor| flat(x).into_iter().map(f64::to_bits).collect::<Vec<_>>();
    assert!(bits(a) == bits(b), "{what} differs");
}

/// Rows `from..to` of a tensor.
pub fn part(x: &Tensor, range: std::ops::Range<usize>) -> Tensor {
    x.narrow(0, range.start, range.len()).unwrap()
}

/// The likeliest token of each row of logits.
pub fn best(logits: &Tensor) -> Vec<u32> {
    logits.argmax(D::Minus1).unwrap().to_vec1().unwrap()
}

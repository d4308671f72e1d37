//! Hook points are those of TransformerLens, and patching at them does what it does there (fixtures/lens.py).
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use candle_core::{Device, Tensor};
use common::language::{self, assert_close};
use serde::Deserialize;
use std::collections::HashMap;
use taskvec_science::{
    hook::{BlockPoint, Capture, Change, Edit, Hook, HookPoint, Tokens},
    model::language::{Batch, LanguageModel, Logits},
};

const TOLERANCE: f64 = 1e-4;

#[derive(Deserialize)]
struct Case {
    point: String,
    rows: Vec<usize>,
    positions: Vec<usize>,
    head: Option<usize>,
    change: String,
}

struct Fixture {
    model: LanguageModel,
    tensors: HashMap<String, Tensor>,
    cases: Vec<Case>,
}

impl Fixture {
    fn open(name: &str) -> Self {
        let path = common::fixture("lens").join(format!("{name}.safetensors"));
        let bytes = std::fs::read(&path).unwrap();
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let cases = serde_json::from_str(&metadata.metadata().as_ref().unwrap()["cases"]).unwrap();
        let tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
        Self { model: language::load(name), tensors, cases }
    }

    /// Logits (N, V).
    fn logits(&self, hook: Option<&mut dyn Hook>) -> Tensor {
        let ids = self.tensors["input_ids"].to_vec2::<i64>().unwrap();
        let rows = ids.iter().map(|row| row.iter().map(|id| *id as u32).collect::<Vec<u32>>());
        self.model.forward(&Batch::new(rows).unwrap(), None, hook, Logits::All).unwrap().unwrap()
    }

    /// A tensor of theirs with all tokens in one dimension.
    fn packed(&self, name: &str) -> Tensor {
        self.tensors[name].flatten(0, 1).unwrap()
    }
}

#[test]
fn activations_are_those_of_the_same_name() {
    for name in ["gpt2", "llama", "gemma2", "olmo2"] {
        let fixture = Fixture::open(name);
        let theirs: Vec<&String> = fixture.tensors.keys().filter(|key| key.starts_with("seen.")).collect();
        let point = |key: &String| key["seen.".len()..].parse::<HookPoint>().unwrap();
        let mut kept = Capture::new(theirs.iter().map(|key| point(key)), Tokens::all());
        assert_close(name, &fixture.logits(Some(&mut kept)), &fixture.packed("logits"), TOLERANCE);
        for key in theirs {
            let ours = kept.visits(point(key));
            match point(key) {
                HookPoint::Block(_, BlockPoint::Pattern) => {
                    assert_close(key, &Tensor::stack(ours, 0).unwrap(), &fixture.tensors[key], TOLERANCE);
                }
                _ => assert_close(key, &ours[0], &fixture.packed(key), TOLERANCE),
            }
        }
    }
}

#[test]
fn patches_change_the_logits_as_they_do_there() {
    for name in ["gpt2", "llama", "gemma2", "olmo2"] {
        let fixture = Fixture::open(name);
        assert!(fixture.cases.len() >= 7);
        for (i, case) in fixture.cases.iter().enumerate() {
            let value = || fixture.tensors[&format!("value.{i}")].clone();
            let change = match case.change.as_str() {
                "replace" => Change::Replace(value()),
                "add" => Change::Add(value()),
                "zero" => Change::Zero,
                other => panic!("{other}"),
            };
            let tokens = Tokens::at(case.positions.clone()).in_rows(case.rows.clone());
            let edit = Edit::new(case.point.parse().unwrap(), tokens, change);
            let mut edit = case.head.map_or(edit.clone(), |head| edit.head(head));
            let ours = fixture.logits(Some(&mut edit));
            assert_close(&format!("{name}: {}", case.point), &ours, &fixture.packed(&format!("logits.{i}")), TOLERANCE);
        }
    }
}

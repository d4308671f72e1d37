//! The model and its training agree with HuggingFace's GPT-2 blocks and PyTorch's Adam (fixtures/gpt2.py).
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use candle_core::{Device, Tensor};
use std::collections::{BTreeMap, HashMap};
use taskvec_kernels::mse_at;
use taskvec_science::{
    hook::{BlockPoint, Capture, HookPoint, Tokens},
    model::{Sizes, Transformer},
    optim::Optimizer,
};

/// Largest error allowed, relative to the largest magnitude in the tensor.
const TOLERANCE: f64 = 1e-4;

struct Fixture {
    about: serde_json::Value,
    tensors: HashMap<String, Tensor>,
    sizes: Sizes,
}

impl Fixture {
    fn open(name: &str) -> Self {
        let path = common::fixture(name);
        let bytes = std::fs::read(&path).unwrap();
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let about: serde_json::Value = serde_json::from_str(&metadata.metadata().as_ref().unwrap()["about"]).unwrap();
        let size = |key: &str| about[key].as_u64().unwrap() as usize;
        let sizes = Sizes {
            layers: size("layers"),
            width: size("width"),
            heads: size("heads"),
            positions: size("positions"),
            channels: size("channels"),
        };
        Self { tensors: candle_core::safetensors::load(&path, &Device::Cpu).unwrap(), sizes, about }
    }

    fn network(&self) -> Transformer {
        let get = |name: &str, shape: &[usize]| {
            let t = &self.tensors[&format!("init.{name}")];
            assert_eq!(t.dims(), shape, "{name}");
            Ok::<_, candle_core::Error>(t.clone())
        };
        let network = Transformer::build(self.sizes, get).unwrap();
        let stored = self.tensors.keys().filter(|k| k.starts_with("init.")).count();
        assert_eq!(network.parameters().len(), stored, "every parameter of the reference is one of ours");
        network
    }

    fn check(&self, name: &str, ours: &Tensor) {
        let theirs = &self.tensors[name];
        assert_eq!(ours.dims(), theirs.dims(), "{name}");
        let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (ours, theirs) = (flat(ours), flat(theirs));
        let scale = theirs.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let error = ours.iter().zip(&theirs).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(scale > 0.0, "{name} is all zeros in the fixture");
        assert!(f64::from(error / scale) < TOLERANCE, "{name}: relative error {:e}", error / scale);
    }
}

/// Attention weights of every block, row by row.
fn patterns(fixture: &Fixture, network: &Transformer) {
    let points = || (0..fixture.sizes.layers).map(|i| HookPoint::Block(i, BlockPoint::Pattern));
    let mut kept = Capture::new(points(), Tokens::all());
    fixture.check("predictions", &network.forward(&fixture.tensors["tokens"], Some(&mut kept)).unwrap());
    for (i, point) in points().enumerate() {
        fixture.check(&format!("pattern.{i}"), &Tensor::stack(kept.visits(point), 0).unwrap());
    }
}

fn agrees(name: &str) {
    let fixture = Fixture::open(name);
    let network = fixture.network().trainable().unwrap();
    let (tokens, targets) = (&fixture.tensors["tokens"], &fixture.tensors["targets"]);

    let mut seen = BTreeMap::new();
    let mut hook = |point: HookPoint, x: &Tensor| {
        seen.insert(point, x.clone());
        Ok(None)
    };
    fixture.check("predictions", &network.forward(tokens, Some(&mut hook)).unwrap());
    for layer in 0..=fixture.sizes.layers {
        fixture.check(&format!("hidden.{layer}"), &seen[&HookPoint::hidden(layer)]);
    }

    patterns(&fixture, &network);

    let mut spec = common::train(3);
    spec.optimizer.betas = serde_json::from_value(fixture.about["betas"].clone()).unwrap();
    spec.optimizer.epsilon = fixture.about["epsilon"].as_f64().unwrap();
    spec.clip_norm = fixture.about["clip_norm"].as_f64();
    let optimizer = Optimizer::new(&spec.optimizer, spec.clip_norm, network.parameters()).unwrap();
    for step in 1..=3 {
        let predictions = network.forward(tokens, None).unwrap();
        let loss = mse_at(&predictions, targets).unwrap();
        let gradients = loss.backward().unwrap();
        if step == 1 {
            fixture.check("predictions", &predictions);
            fixture.check("loss", &loss);
            for (name, parameter) in network.parameters() {
                fixture.check(&format!("grad.{name}"), gradients.get(parameter).expect(name));
            }
        }
        let rate = fixture.about["learning_rate"].as_f64().unwrap();
        optimizer.update(network.parameters(), &gradients, rate, step).unwrap();
    }
    for (name, parameter) in network.parameters() {
        fixture.check(&format!("adam.{name}"), parameter);
    }
}

#[test]
fn three_layers_without_clipping() {
    agrees("gpt2_shared.safetensors");
}

#[test]
fn two_layers_with_clipping() {
    agrees("gpt2_own.safetensors");
}

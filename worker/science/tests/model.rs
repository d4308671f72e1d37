//! Initialisation and hooks of the model.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use candle_core::{Device, Tensor};
use taskvec_model::spec::DataSpec;
use taskvec_science::{
    data::{Bases, generate},
    hook::{BlockPoint, Hook, HookPoint},
    model::{Transformer, language::Rows},
    rng::{Purpose, Stream},
};

fn init(layers: u32, seed: u64) -> Transformer {
    let mut spec = common::model();
    (spec.layers, spec.width) = (layers, 64);
    Transformer::init(&spec, &common::data(), seed, &Device::Cpu).unwrap()
}

fn values(network: &Transformer, name: &str) -> Vec<f32> {
    let (_, t) = network.parameters().iter().find(|(n, _)| n == name).expect(name);
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn tokens() -> Tensor {
    let DataSpec::SparseLinear(data) = common::data();
    let stream = Stream { seed: 1, purpose: Purpose::Train, step: 1 };
    generate(&data, stream, 0..5, Bases::Drawn).tokens(&Device::Cpu).unwrap()
}

fn rows(t: &Tensor) -> Vec<Vec<f32>> {
    t.to_vec2().unwrap()
}

#[test]
fn deviations_are_those_of_the_specification() {
    let network = init(3, 0);
    let residual = 0.2 / 6.0f64.sqrt();
    for (name, want) in [
        ("read_in.weight", 0.3),
        ("wpe.weight", 0.1),
        ("read_out.weight", 0.2),
        ("h.0.attn.c_attn.weight", 0.2),
        ("h.2.mlp.c_fc.weight", 0.2),
        ("h.1.attn.c_proj.weight", residual),
        ("h.2.mlp.c_proj.weight", residual),
    ] {
        let v = values(&network, name);
        let n = v.len() as f64;
        let deviation = (v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / n).sqrt();
        assert!((deviation / want - 1.0).abs() < 5.0 / (2.0 * n).sqrt(), "{name}: {deviation}, wanted {want}");
    }
    for (name, tensor) in network.parameters() {
        let constant = match name {
            n if n.ends_with(".bias") => 0.0,
            n if n.contains("ln_") => 1.0,
            _ => continue,
        };
        assert!(values(&network, name).iter().all(|v| *v == constant), "{name} {tensor}");
    }
}

#[test]
fn a_parameter_depends_on_its_name_and_the_seed_alone() {
    let (three, four, other) = (init(3, 0), init(4, 0), init(3, 1));
    let name = "h.2.mlp.c_fc.weight";
    assert_eq!(values(&three, name), values(&four, name));
    assert_ne!(values(&three, name), values(&other, name));
    assert_ne!(values(&three, name), values(&three, "h.1.mlp.c_fc.weight"));
}

#[test]
fn a_hook_sees_every_point_in_order_and_changes_nothing_by_looking() {
    let (network, tokens) = (init(2, 0), tokens());
    let mut seen = Vec::new();
    let mut look = |point: HookPoint, x: &Tensor| {
        assert_eq!(x.dims(), [5, 8, 64], "{point}");
        seen.push(point);
        Ok(None)
    };
    let hooked = rows(&network.forward(&tokens, Some(&mut look)).unwrap());
    let block = |i| BlockPoint::RESIDUAL.map(|p| HookPoint::Block(i, p));
    assert_eq!(seen, [vec![HookPoint::Embed], block(0).to_vec(), block(1).to_vec()].concat());
    for (a, b) in rows(&network.forward(&tokens, None).unwrap()).concat().iter().zip(hooked.concat()) {
        assert!((a - b).abs() < 1e-5 * a.abs().max(1.0), "{a} without a hook, {b} with");
    }
}

/// A hook that wants every point of a transformer, and halves what it sees at one.
struct Everywhere {
    seen: Vec<HookPoint>,
    halves: Option<HookPoint>,
}

impl Hook for Everywhere {
    fn visit(&mut self, point: HookPoint, x: &Tensor, _: &Rows) -> candle_core::Result<Option<Tensor>> {
        self.seen.push(point);
        (self.halves == Some(point)).then(|| x * 0.5).transpose()
    }
}

#[test]
fn within_attention_too_a_hook_sees_every_point_and_may_replace_it() {
    let (network, tokens) = (init(2, 0), tokens());
    let plain = rows(&network.forward(&tokens, None).unwrap()).concat();
    let passed = |halves| {
        let mut hook = Everywhere { seen: Vec::new(), halves };
        let predicted = rows(&network.forward(&tokens, Some(&mut hook)).unwrap()).concat();
        (predicted, hook.seen)
    };
    let (looked_at, mut seen) = passed(None);
    for (a, b) in plain.iter().zip(&looked_at) {
        assert!((a - b).abs() < 1e-5 * a.abs().max(1.0), "{a} without a hook, {b} with");
    }
    // Patterns come once per row.
    seen.dedup();
    let block = |i| BlockPoint::TRANSFORMER.map(|p| HookPoint::Block(i, p));
    assert_eq!(seen, [vec![HookPoint::Embed], block(0).to_vec(), block(1).to_vec()].concat());
    for at in seen.iter().copied().filter(|p| !p.is_residual()) {
        let halved = passed(Some(at)).0;
        assert!(plain.iter().zip(&halved).any(|(a, b)| (a - b).abs() > 1e-4), "{at}");
    }
}

#[test]
fn what_a_hook_returns_takes_the_activations_place() {
    let (network, tokens) = (init(2, 0), tokens());
    let patched = |at: HookPoint| {
        let mut patch = |point: HookPoint, x: &Tensor| if point == at { (x * 0.5).map(Some) } else { Ok(None) };
        rows(&network.forward(&tokens, Some(&mut patch)).unwrap())
    };
    let plain = rows(&network.forward(&tokens, None).unwrap());
    let mut results = vec![plain];
    for at in (0..2).flat_map(|i| BlockPoint::RESIDUAL.map(|p| HookPoint::Block(i, p))).chain([HookPoint::Embed]) {
        results.push(patched(at));
    }
    // The same place under two names gives the same; every other pair differs.
    let same = |a: usize, b: usize| results[a] == results[b];
    assert!(same(5, 6) && same(1, 11), "leaving block 0 is entering block 1; the embedding enters block 0");
    for a in 0..results.len() {
        for b in 0..a {
            assert!(same(a, b) == matches!((b, a), (5, 6) | (1, 11)), "patches {b} and {a}");
        }
    }
}

#[test]
fn attention_is_causal() {
    let network = init(2, 0);
    let mut changed = tokens().to_vec3::<f32>().unwrap();
    let before = rows(&network.forward(&tokens(), None).unwrap());
    changed.iter_mut().for_each(|s| s[5][0] += 1.0);
    let flat: Vec<f32> = changed.into_iter().flatten().flatten().collect();
    let changed = Tensor::from_vec(flat, (5, 8, 4), &Device::Cpu).unwrap();
    let after = rows(&network.forward(&changed, None).unwrap());
    for (a, b) in before.iter().zip(&after) {
        assert_eq!(a[..3], b[..3], "y_3 at position 5 comes after x_3 at position 4");
        assert_ne!(a[3], b[3]);
    }
}

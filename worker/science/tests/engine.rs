//! Training in memory of its own is what the plain path computes, on any number of threads.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use candle_core::{Device, Tensor};
use taskvec_kernels::mse_at;
use taskvec_model::spec::{DataSpec, ModelSpec, OptimizerSpec, Precision, SparseLinear, YChannel};
use taskvec_science::{
    data::{Bases, Sequences, generate},
    engine::Engine,
    model::Transformer,
    optim::{self, Optimizer},
    rng::{Purpose, Stream},
};

/// One model and its batches.
struct Case {
    model: ModelSpec,
    data: DataSpec,
    optimizer: OptimizerSpec,
    clip_norm: Option<f64>,
    batch: u64,
}

impl Case {
    fn new(layers: u32, width: u32, heads: u32, examples: u32, batch: u64, clip_norm: Option<f64>) -> Self {
        let mut model = common::model();
        (model.layers, model.width, model.heads) = (layers, width, heads);
        // Large, so that every gradient is far from rounding noise.
        (model.init.std, model.init.read_in_std, model.init.position_std) = (0.3, 0.5, 0.3);
        let mut data = common::data();
        let DataSpec::SparseLinear(inner) = &mut data;
        inner.examples = examples;
        inner.y_channel = if batch.is_multiple_of(2) { YChannel::Shared } else { YChannel::Own };
        let mut optimizer = common::train(3).optimizer;
        // Some gradients are zero in exact arithmetic (the bias of keys); with a small one their updates would be noise.
        (optimizer.epsilon, optimizer.learning_rate) = (1e-2, 1e-2);
        optimizer.weight_decay = 0.1;
        Self { model, data, optimizer, clip_norm, batch }
    }

    fn sparse(&self) -> &SparseLinear {
        let DataSpec::SparseLinear(data) = &self.data;
        data
    }

    fn stream(step: u64) -> Stream {
        Stream { seed: 5, purpose: Purpose::Train, step }
    }

    fn sequences(&self, step: u64) -> Sequences {
        generate(self.sparse(), Self::stream(step), 0..self.batch, Bases::Drawn)
    }

    fn network(&self) -> Transformer {
        Transformer::init(&self.model, &self.data, 11, &Device::Cpu).unwrap()
    }

    fn engine(&self) -> Engine {
        self.engine_in(Precision::F32)
    }

    fn engine_in(&self, precision: Precision) -> Engine {
        let optimizer = (optim::adam(&self.optimizer), self.clip_norm);
        Engine::new(&self.network(), None, optimizer, self.batch as usize, precision).unwrap()
    }
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn assert_close(what: &str, a: &[f32], b: &[f32], tolerance: f32) {
    let scale = b.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let error = a.iter().zip(b).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(
        a.len() == b.len() && scale > 0.0 && error / scale < tolerance,
        "{what}: relative error {:e}",
        error / scale
    );
}

const CASES: [(u32, u32, u32, u32, u64, Option<f64>); 5] = [
    (1, 16, 2, 3, 5, None),
    (2, 24, 3, 8, 64, Some(0.5)),
    (3, 64, 4, 8, 37, None),
    (2, 40, 1, 1, 1, Some(1e9)),
    (4, 32, 8, 20, 130, Some(0.1)),
];

#[test]
fn three_updates_are_those_of_the_plain_path() {
    for (layers, width, heads, examples, batch, clip_norm) in CASES {
        let case = Case::new(layers, width, heads, examples, batch, clip_norm);
        let name = format!("{layers} layers of {width}, batch {batch}");
        let (mut engine, plain) = (case.engine(), case.network().trainable().unwrap());
        let optimizer = Optimizer::new(&case.optimizer, clip_norm, plain.parameters()).unwrap();
        for step in 1..=3 {
            let sequences = case.sequences(step);
            let predicted = plain.forward(&sequences.tokens(&Device::Cpu).unwrap(), None).unwrap();
            let loss = mse_at(&predicted, &sequences.targets(&Device::Cpu).unwrap()).unwrap();
            let norm = optimizer.update(plain.parameters(), &loss.backward().unwrap(), 1e-2, step).unwrap();

            let ours = engine.gradients(case.sparse(), Case::stream(step));
            let theirs = f64::from(loss.to_scalar::<f32>().unwrap());
            assert!((ours.loss / theirs - 1.0).abs() < 1e-5, "{name}: loss {} and {theirs}", ours.loss);
            let of_zero = sequences.y.iter().map(|y| f64::from(*y).powi(2)).sum::<f64>() / sequences.y.len() as f64;
            assert!((ours.of_zero / of_zero - 1.0).abs() < 1e-12, "{name}");
            let ours = engine.update(step, 1e-2);
            assert!((ours / norm - 1.0).abs() < 1e-4, "{name}: norm {ours} and {norm}");
        }
        let (network, moments) = (engine.network().unwrap(), engine.moments().unwrap());
        for (i, (parameter, theirs)) in plain.parameters().iter().enumerate() {
            assert_eq!(network.parameters()[i].0, *parameter);
            assert_close(&format!("{name}: {parameter}"), &values(&network.parameters()[i].1), &values(theirs), 1e-4);
            let expected = &optimizer.moments()[i].v;
            assert_close(&format!("{name}: v of {parameter}"), &values(&moments[i].v), &values(expected), 1e-3);
        }
    }
}

/// What rounding does to one step: in every gradient a multiple of what it does to one number, 2⁻¹¹ and 2⁻⁸ of it at most.
#[test]
fn fewer_bits_move_every_gradient_a_little() {
    for (layers, width, heads, examples, batch, clip_norm) in CASES {
        let case = Case::new(layers, width, heads, examples, batch, clip_norm);
        let after = |precision| {
            let mut engine = case.engine_in(precision);
            let loss = engine.gradients(case.sparse(), Case::stream(1));
            engine.update(1, 1e-2);
            (loss, engine.moments().unwrap())
        };
        let (loss, exact) = after(Precision::F32);
        let norm = |x: &[f32]| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let moved = |precision, unit: f64| -> Vec<f64> {
            let (rounded_loss, rounded) = after(precision);
            assert_eq!(rounded_loss.of_zero, loss.of_zero);
            assert!((rounded_loss.loss / loss.loss - 1.0).abs() < 40.0 * unit, "{rounded_loss:?}, not {loss:?}");
            let moved = rounded.iter().zip(&exact).map(|(rounded, exact)| {
                let (rounded, exact) = (values(&rounded.m), values(&exact.m));
                let difference: Vec<f32> = rounded.iter().zip(&exact).map(|(a, b)| a - b).collect();
                norm(&difference) / norm(&exact) / unit
            });
            moved.collect()
        };
        let (tf32, bf16) = (moved(Precision::Tf32, 2f64.powi(-11)), moved(Precision::Bf16, 2f64.powi(-8)));
        for ((name, _), units) in case.network().parameters().iter().zip(tf32.iter().zip(&bf16)) {
            let (tf32, bf16) = units;
            assert!(
                [tf32, bf16].into_iter().all(|units| *units > 0.0 && *units < 40.0),
                "{layers} layers: {name} {units:?}"
            );
        }
    }
}

#[test]
fn nothing_depends_on_the_number_of_threads() {
    let (layers, width, heads, examples, batch, clip_norm) = CASES[4];
    let case = Case::new(layers, width, heads, examples, batch, clip_norm);
    let trained = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut engine = case.engine();
            let losses = [1, 2].map(|step| {
                let loss = engine.gradients(case.sparse(), Case::stream(step)).loss;
                (loss.to_bits(), engine.update(step, 1e-2).to_bits())
            });
            let bits = |t: &Tensor| values(t).into_iter().map(f32::to_bits).collect::<Vec<_>>();
            (losses, engine.network().unwrap().parameters().iter().map(|(_, t)| bits(t)).collect::<Vec<_>>())
        })
    };
    let one = trained(1);
    assert_eq!(one, trained(2));
    assert_eq!(one, trained(5));
}

#[test]
fn a_gradient_that_is_not_finite_changes_nothing() {
    let (layers, width, heads, examples, batch, clip_norm) = CASES[1];
    let case = Case::new(layers, width, heads, examples, batch, clip_norm);
    let mut engine = case.engine();
    // Beyond f32: weights are infinite, and y is no number.
    let beyond = SparseLinear { weight_mean: 1e60, ..case.sparse().clone() };
    assert!(!engine.gradients(&beyond, Case::stream(1)).loss.is_finite());
    assert!(!engine.update(1, 1e-2).is_finite());
    for ((name, before), (_, after)) in case.network().parameters().iter().zip(engine.network().unwrap().parameters()) {
        assert_eq!(values(before), values(after), "{name}");
    }
}

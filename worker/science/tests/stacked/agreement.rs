//! Runs side by side compute what the engine on the CPU computes.

use crate::{
    configurations::{Configuration, QUICKSTART},
    emulator::{self, machine::Emulated},
    on_machines,
    runs::{EPSILON, Own, SHAPES, Shape, adam, bits, runs, state, values},
};
use candle_core::Device;
use taskvec_kernels::{Precision, cuda::program::Machine};
use taskvec_model::spec::{self, DataSpec};
use taskvec_science::{
    data::{Bases, generate},
    engine::{
        Engine,
        stacked::{Row, Run, StackedEngine, Together},
    },
    model::Transformer,
    optim,
    rng::{Purpose, Stream},
};

on_machines!(
    a_few_steps_are_those_of_the_cpu,
    the_quickstart_begins_as_on_the_cpu,
    sequences_are_those_of_the_cpu,
    lower_precision_stays_near,
);

const STEPS: usize = 3;

/// How far two orders of summing may lead apart, relative to the largest number. A sum of k terms errs by about √k half
/// units in the last place, and each value passes one sum after the other: in a block the four products, the two of
/// attention and two norms, and as many on the way back, over `rows` tokens at most. Errors are independent: squares add up.
fn rounding(shape: Shape) -> f64 {
    let rows = shape.batch * 2 * shape.examples as usize;
    let longest = rows.max(4 * shape.width as usize) as f64;
    let sums = 2.0 * (8.0 * f64::from(shape.layers) + 3.0);
    (longest * sums).sqrt() * f64::from(f32::EPSILON) / 2.0
}

fn error(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let largest = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let apart = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
    f64::from(apart) / f64::from(largest).max(1e-30)
}

/// A run on the CPU: what each step gave, and the engine after them.
fn on_the_cpu(shape: Shape, own: &Own) -> (Vec<Row>, Engine) {
    let mut engine =
        Engine::new(&shape.network(own), None, (adam(), own.clip_norm), shape.batch, spec::Precision::F32).unwrap();
    let step = |step: u64| {
        let batch = engine.gradients(&own.data, own.stream(step));
        Row { loss: batch.loss, of_zero: batch.of_zero, norm: engine.update(step, own.rate) }
    };
    let rows = (own.step + 1..=own.step + STEPS as u64).map(step).collect();
    (rows, engine)
}

fn a_few_steps_are_those_of_the_cpu(machine: &impl Machine) {
    for (shape, count) in SHAPES.into_iter().flat_map(|shape| [(shape, 1), (shape, 3)]) {
        let (runs, rounding) = (runs(shape), rounding(shape));
        let runs = &runs[..count];
        let mut engine = shape.engine(machine, runs, STEPS);
        let advanced = engine.advance(STEPS, |run, _| runs[run].rate).unwrap();
        for (i, (own, advanced)) in runs.iter().zip(&advanced).enumerate() {
            let what = format!("run {i} of {count}, {shape:?}");
            let (rows, cpu) = on_the_cpu(shape, own);
            assert_eq!((advanced.rows.len(), advanced.diverged), (STEPS, None), "{what}");
            let mut worst = [0.0f64; 4];
            for (ours, theirs) in advanced.rows.iter().zip(&rows) {
                assert!((ours.of_zero / theirs.of_zero - 1.0).abs() < 1e-13, "{what}: {ours:?}, not {theirs:?}");
                let errors = [ours.loss / theirs.loss - 1.0, ours.norm / theirs.norm - 1.0].map(f64::abs);
                (0..2).for_each(|i| worst[i] = worst[i].max(errors[i]));
            }
            let (network, moments) = (engine.network(i).unwrap(), engine.moments(i).unwrap());
            let (theirs, their_moments) = (cpu.network().unwrap(), cpu.moments().unwrap());
            // Against the largest of all parameters, for some are zero in exact arithmetic.
            let all =
                |network: &Transformer| network.parameters().iter().flat_map(|(_, t)| values(t)).collect::<Vec<_>>();
            worst[2] = error(&all(&network), &all(&theirs));
            for (ours, theirs) in moments.iter().zip(&their_moments) {
                worst[3] = worst[3].max(error(&values(&ours.v), &values(&theirs.v)));
            }
            let shown = worst.map(|error| format!("{error:.1e}"));
            println!("{what}: {shown:?} where rounding is {rounding:.1e}");
            // An update carries rate / epsilon times the gradient's error into a parameter; squares have twice the error.
            let updates = 1.0 + STEPS as f64 * own.rate / EPSILON;
            let allowed = [updates, updates, updates, 2.0 * updates].map(|times| times * rounding);
            assert!(worst.iter().zip(&allowed).all(|(error, allowed)| error <= allowed), "{what}: {shown:?}");
        }
    }
}

fn sequences_are_those_of_the_cpu(machine: &impl Machine) {
    for shape in SHAPES {
        let runs = runs(shape);
        let mut engine = shape.engine(machine, &runs, 2);
        engine.advance(2, |run, _| runs[run].rate).unwrap();
        for (i, own) in runs.iter().enumerate() {
            let sequences = generate(&own.data, own.stream(own.step + 2), 0..shape.batch as u64, Bases::Drawn);
            let mut tokens = vec![0.0; sequences.y.len() * 2 * own.data.channels() as usize];
            sequences.write_tokens(&mut tokens);
            assert_eq!(engine.batch(i).unwrap().map(|x| bits(&x)), [bits(&tokens), bits(&sequences.y)], "run {i}");
        }
    }
}

/// Factors with fewer bits: 10 of TF32, 7 of bf16.
fn lower_precision_stays_near(machine: &impl Machine) {
    let shape = SHAPES[3];
    let own = &runs(shape)[..1];
    let network = shape.network(&own[0]);
    let trained = |precision| {
        let together = Together { precision, ..shape.together(STEPS) };
        let mut engine = StackedEngine::new(machine, &[own[0].run(&network, None) as Run<'_>], together).unwrap();
        engine.advance(STEPS, |_, _| own[0].rate).unwrap().remove(0).rows
    };
    let exact = trained(Precision::F32);
    for (precision, unit) in [(Precision::Tf32, 2f64.powi(-11)), (Precision::Bf16, 2f64.powi(-8))] {
        // Both factors are rounded, each value passes one product after the other, and each step starts from the last: their
        // errors are independent.
        let products = STEPS as f64 * 2.0 * (4.0 * f64::from(shape.layers) + 2.0);
        let allowed = unit * (2.0 * products).sqrt();
        for (row, exact) in trained(precision).iter().zip(&exact) {
            let error = (row.loss / exact.loss - 1.0).abs();
            println!("{precision:?}: loss is off by {error:.1e} where {allowed:.1e} are allowed");
            assert!(error > 0.0 && error < allowed, "{precision:?}: {row:?}, not {exact:?}");
        }
    }
}

/// The first step of the quickstart as its sweep file says it.
fn the_quickstart_begins_as_on_the_cpu(machine: &impl Machine) {
    let Configuration { model, data, train, .. } = Configuration::parse(QUICKSTART).unwrap();
    let DataSpec::SparseLinear(sparse) = &data;
    let network = Transformer::init(&model, &data, 3, &Device::Cpu).unwrap();
    let (adam, batch) = (optim::adam(&train.optimizer), train.batch as usize);
    let run = Run { network: &network, moments: None, data: sparse, seed: 3, step: 0, clip_norm: None };
    let together = Together { adam, batch, precision: Precision::F32, slots: 1 };
    let row = StackedEngine::new(machine, &[run], together).unwrap().advance(1, |_, _| 1e-3).unwrap().remove(0).rows[0];
    let mut cpu = Engine::new(&network, None, (adam, None), batch, spec::Precision::F32).unwrap();
    let theirs = cpu.gradients(sparse, Stream { seed: 3, purpose: Purpose::Train, step: 1 });
    let theirs = [theirs.loss, theirs.of_zero, cpu.update(1, 1e-3)];
    println!("{row:?}, on the CPU {theirs:?}");
    let allowed = (1024.0 * 2.0 * 27.0f64).sqrt() * f64::from(f32::EPSILON) / 2.0;
    for (ours, theirs) in [row.loss, row.of_zero, row.norm].iter().zip(theirs) {
        assert!((ours / theirs - 1.0).abs() < allowed, "{row:?}, not {theirs:?}");
    }
}

#[test]
fn the_order_of_threads_changes_nothing() {
    if !emulator::available() {
        return;
    }
    let shape = SHAPES[0];
    let runs = runs(shape);
    let trained = |machine: Emulated| {
        let mut engine = shape.engine(&machine, &runs, 2);
        let rows = engine.advance(2, |run, _| runs[run].rate).unwrap();
        let states = (0..runs.len()).map(|i| state(&engine.network(i).unwrap(), &engine.moments(i).unwrap()));
        (rows, states.collect::<Vec<_>>())
    };
    let [ascending, others @ ..] = Emulated::all().map(trained);
    assert!(others.iter().all(|other| *other == ascending));
}

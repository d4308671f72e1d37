//! Activation patching of synthetic models, against a naive recomputation.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use candle_core::{DType, Device, Tensor};
use common::Memory;
use taskvec_model::spec::{
    Arch, At, DataSpec, InitSpec, InterventionSpec, ModelSpec, Overlap, PatchLayers, PatchMode, PatchPairs,
    PatchPositions, Site, SparseLinear, YChannel,
};
use taskvec_science::{
    ScienceError,
    analysis::intervene,
    data::{Bases, Sequences, generate},
    hook::HookPoint,
    model::Transformer,
    rng::{Purpose, Stream},
};

const N: u32 = 5;
const SEED: u64 = 3;

fn data() -> SparseLinear {
    SparseLinear {
        dim: 4,
        bases: 2,
        rank: 2,
        overlap: Overlap::Disjoint,
        examples: 3,
        noise_variance: 0.01,
        weight_mean: 2.0,
        y_channel: YChannel::Shared,
    }
}

fn network() -> Transformer {
    // Large initial weights, so that states and predictions differ.
    let init = InitSpec { std: 0.5, read_in_std: 0.5, position_std: 0.5 };
    let model = ModelSpec { arch: Arch::Gpt2, layers: 2, width: 8, heads: 2, init };
    Transformer::init(&model, &DataSpec::SparseLinear(data()), 1, &Device::Cpu).unwrap()
}

fn spec(site: Site, positions: PatchPositions, mode: PatchMode) -> InterventionSpec {
    InterventionSpec {
        at: At::All,
        layers: PatchLayers::List(vec![1]),
        site,
        positions,
        mode,
        pairs: PatchPairs::Matrix,
        shots: Vec::new(),
        samples_per_task: N,
        replicates: 2,
    }
}

/// One sequence of a basis: odd draws are for means, even ones for effects.
fn sequence(basis: u32, draw: u64, i: u64) -> Sequences {
    let stream = Stream { seed: SEED, purpose: Purpose::Intervene, step: draw };
    let at = u64::from(basis * N) + i;
    generate(&data(), stream, at..at + 1, Bases::Fixed(basis))
}

/// The state of a sequence after block 1: 6 tokens of 8 values.
fn states(network: &Transformer, sequence: &Sequences) -> Vec<Vec<f64>> {
    let mut found = Vec::new();
    let mut read = |point: HookPoint, x: &Tensor| {
        if point == HookPoint::hidden(1) {
            found = x.squeeze(0)?.to_dtype(DType::F64)?.to_vec2()?;
        }
        Ok(None)
    };
    network.forward(&sequence.tokens(&Device::Cpu).unwrap(), Some(&mut read)).unwrap();
    found
}

/// Squared errors of a sequence by position, its states after block 1 being `states`.
fn errors(network: &Transformer, sequence: &Sequences, states: &[Vec<f64>]) -> Vec<f64> {
    let mut put = |point: HookPoint, x: &Tensor| {
        let new = Tensor::new(states.to_vec(), x.device())?.to_dtype(x.dtype())?.unsqueeze(0)?;
        Ok((point == HookPoint::hidden(1)).then_some(new))
    };
    let predicted = network.forward(&sequence.tokens(&Device::Cpu).unwrap(), Some(&mut put)).unwrap();
    let predicted = predicted.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    predicted.iter().zip(&sequence.y).map(|(p, y)| f64::from(p - y).powi(2)).collect()
}

#[test]
fn every_mode_site_and_choice_of_positions_does_what_it_says() {
    let network = network();
    for (site, all) in [(Site::X, vec![0, 2, 4]), (Site::Y, vec![1, 3])] {
        for positions in [PatchPositions::Last, PatchPositions::All] {
            for mode in [PatchMode::Replace, PatchMode::AddMeanDifference] {
                let tokens = if positions == PatchPositions::All { all.clone() } else { vec![all[all.len() - 1]] };
                check(&network, &spec(site, positions, mode), &tokens);
            }
        }
    }
}

fn check(network: &Transformer, spec: &InterventionSpec, tokens: &[usize]) {
    let found = intervene::run(network, SEED, &DataSpec::SparseLinear(data()), spec, &mut Memory::default()).unwrap();
    assert_eq!(found.interventions.len(), 2 * 4, "two replicates of two by two");
    for row in &found.interventions {
        let place = |name: &str| u32::from(name == "B2");
        let (source, target) = (place(&row.source_task), place(&row.target_task));
        let mean = |basis: u32, token: usize, i: usize| {
            let of = |n| states(network, &sequence(basis, u64::from(2 * row.replicate - 1), n))[token][i];
            (0..u64::from(N)).map(of).sum::<f64>() / f64::from(N)
        };
        let (mut baseline, mut patched) = (0.0, 0.0);
        for n in 0..u64::from(N) {
            let sequence = sequence(source, u64::from(2 * row.replicate), n);
            let plain = states(network, &sequence);
            let mut moved = plain.clone();
            for &token in tokens {
                for (i, value) in moved[token].iter_mut().enumerate() {
                    let goal = mean(target, token, i);
                    *value = match spec.mode {
                        PatchMode::Replace => goal,
                        PatchMode::AddMeanDifference => *value + goal - (mean(0, token, i) + mean(1, token, i)) / 2.0,
                    };
                }
            }
            let metric = |errors: Vec<f64>| match spec.positions {
                PatchPositions::All => errors.iter().sum::<f64>() / errors.len() as f64,
                PatchPositions::Last => errors[errors.len() - 1],
            };
            baseline += metric(errors(network, &sequence, &plain)) / f64::from(N);
            patched += metric(errors(network, &sequence, &moved)) / f64::from(N);
        }
        let close = |got: f64, want: f64| assert!((got / want - 1.0).abs() < 1e-4, "{got} and {want}: {row:?}");
        close(row.baseline, baseline);
        close(row.patched, patched);
        assert!((row.patched / row.baseline - 1.0).abs() > 2e-4, "the intervention has an effect: {row:?}");
    }
}

#[test]
fn a_site_that_a_sequence_does_not_have_is_refused() {
    let spec = spec(Site::S, PatchPositions::All, PatchMode::Replace);
    let refused = intervene::run(&network(), SEED, &DataSpec::SparseLinear(data()), &spec, &mut Memory::default());
    assert!(matches!(refused, Err(ScienceError::NoSite { .. })));
}

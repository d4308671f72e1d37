//! Activation patching with the model on a machine, against that of the CPU.

use crate::{
    common::Memory,
    on_machines,
    runs::{Own, SHAPES, Shape, runs},
};
use taskvec_kernels::cuda::program::Machine;
use taskvec_model::{
    metric::Intervention,
    spec::{At, DataSpec, InterventionSpec, PatchLayers, PatchMode, PatchPairs, PatchPositions, Site},
};
use taskvec_science::{
    ScienceError,
    analysis::intervene,
    data::{Bases, generate},
    engine::stacked::patching::{Patched, Patching, cost, least_memory},
    rng::{Purpose, Stream},
};

on_machines!(
    every_mode_site_and_choice_of_positions_is_that_of_the_cpu,
    only_the_pairs_that_are_asked_for_are_patched,
    what_is_predicted_does_not_depend_on_what_is_patched_beside_it,
    what_is_not_finite_is_refused_and_a_wish_to_stop_is_heard,
);

const N: u32 = 7;

fn spec(layers: PatchLayers, site: Site, positions: PatchPositions, mode: PatchMode) -> InterventionSpec {
    let (pairs, shots) = (PatchPairs::Matrix, Vec::new());
    InterventionSpec { at: At::All, layers, site, positions, mode, pairs, shots, samples_per_task: N, replicates: 2 }
}

fn both(machine: &impl Machine, shape: Shape, own: &Own, spec: &InterventionSpec) -> [Vec<Intervention>; 2] {
    let (network, data) = (shape.network(own), DataSpec::SparseLinear(own.data.clone()));
    [
        intervene::run_on(machine, &network, own.seed, &data, spec, &mut Memory::default()).unwrap(),
        intervene::run(&network, own.seed, &data, spec, &mut Memory::default()).unwrap(),
    ]
    .map(|metrics| metrics.interventions)
}

/// The largest y of all sequences that are predicted.
fn largest_y(own: &Own) -> f64 {
    let stream = |replicate: u64| Stream { seed: own.seed, purpose: Purpose::Intervene, step: 2 * replicate };
    let of = |basis: u32, replicate| {
        let from = u64::from(basis * N);
        generate(&own.data, stream(replicate), from..from + u64::from(N), Bases::Fixed(basis)).y
    };
    let all = (0..own.data.bases).flat_map(|basis| [of(basis, 1), of(basis, 2)].concat());
    all.fold(0.0, |m, y| m.max(f64::from(y).abs()))
}

/// Roots of mean squared errors differ by no more than predictions do: by rounding, relative to the largest of them, which is
/// that of y and of the error at most. States pass the sums of a block, of means and again of a block, one after the other.
fn agree([ours, theirs]: &[Vec<Intervention>; 2], shape: Shape, own: &Own) -> f64 {
    let longest = (4 * shape.width).max(2 * shape.examples).max(N * own.data.bases);
    let sums = 2 * 8 * shape.layers + 6;
    let rounding = f64::from(longest * sums).sqrt() * f64::from(f32::EPSILON) / 2.0;
    let (y, mut worst) = (largest_y(own), 0.0f64);
    assert_eq!(ours.len(), theirs.len());
    for (ours, theirs) in ours.iter().zip(theirs) {
        for (mine, cpu) in [(ours.baseline, theirs.baseline), (ours.patched, theirs.patched)] {
            let error = (f64::from(N * shape.examples) * cpu).sqrt();
            let (apart, allowed) = ((mine.sqrt() - cpu.sqrt()).abs(), rounding * (y + error));
            assert!(apart <= allowed, "{shape:?}: {ours:?}, not {theirs:?}: {apart:e} of {allowed:e}");
            worst = worst.max(apart / allowed);
        }
        assert_eq!(&Intervention { baseline: theirs.baseline, patched: theirs.patched, ..ours.clone() }, theirs);
    }
    worst
}

/// How many rows patching changes by far more than rounding does.
fn moved(rows: &[Intervention]) -> usize {
    rows.iter().filter(|row| (row.patched / row.baseline - 1.0).abs() > 1e-3).count()
}

fn every_mode_site_and_choice_of_positions_is_that_of_the_cpu(machine: &impl Machine) {
    let (mut worst, mut all, mut changed) = (0.0f64, 0, 0);
    for shape in [SHAPES[0], SHAPES[1], SHAPES[3]] {
        // Two bases, and four that overlap.
        for own in [&runs(shape)[0], &runs(shape)[2]] {
            for (site, positions, mode) in [
                (Site::X, PatchPositions::All, PatchMode::Replace),
                (Site::X, PatchPositions::Last, PatchMode::AddMeanDifference),
                (Site::Y, PatchPositions::All, PatchMode::AddMeanDifference),
                (Site::Y, PatchPositions::Last, PatchMode::Replace),
            ] {
                let rows = both(machine, shape, own, &spec(PatchLayers::All, site, positions, mode));
                let bases = own.data.bases * own.data.bases;
                assert_eq!(rows[0].len(), (2 * shape.layers * bases) as usize);
                worst = worst.max(agree(&rows, shape, own));
                (all, changed) = (all + rows[1].len(), changed + moved(&rows[1]));
            }
        }
    }
    println!("at worst {worst:.2} of what is allowed; patching changes {changed} of {all} rows");
    assert!(2 * changed > all, "the test says little: patching changes {changed} of {all} rows");
}

fn only_the_pairs_that_are_asked_for_are_patched(machine: &impl Machine) {
    let shape = SHAPES[3];
    let own = &runs(shape)[2];
    // From the embedding and after the last block; a source twice and one that is no target.
    let layers = PatchLayers::List(vec![3, 0]);
    let of = |[source, target]: [&str; 2]| [source.to_owned(), target.to_owned()];
    let pairs = [["B3", "B1"], ["B1", "B4"], ["B3", "B3"], ["B1", "B1"]].map(of).to_vec();
    let spec = spec(layers, Site::X, PatchPositions::All, PatchMode::AddMeanDifference);
    let spec = InterventionSpec { pairs: PatchPairs::List(pairs), replicates: 1, ..spec };
    let rows = both(machine, shape, own, &spec);
    agree(&rows, shape, own);
    let whole = InterventionSpec { pairs: PatchPairs::Matrix, ..spec };
    let [all, _] = both(machine, shape, own, &whole);
    for row in &rows[0] {
        let same = |other: &&Intervention| {
            (other.layer, &other.source_task, &other.target_task) == (row.layer, &row.source_task, &row.target_task)
        };
        let other = all.iter().find(same).unwrap();
        assert_eq!((row.baseline, row.patched), (other.baseline, other.patched), "{row:?}, among others");
    }
}

/// Tokens of sequences of a basis.
fn sequences(own: &Own, basis: usize, step: u64) -> Vec<f32> {
    let from = basis as u64 * u64::from(N);
    let batch = generate(&own.data, own.stream(step), from..from + u64::from(N), Bases::Fixed(basis as u32));
    let mut tokens = vec![0.0; batch.y.len() * 2 * own.data.channels() as usize];
    batch.write_tokens(&mut tokens);
    tokens
}

/// All pairs at once, in parts of any size, and each by itself.
fn what_is_predicted_does_not_depend_on_what_is_patched_beside_it(machine: &impl Machine) {
    for shape in [SHAPES[0], SHAPES[3]] {
        let own = &runs(shape)[2];
        let (network, tasks) = (shape.network(own), own.data.bases as usize);
        let means: Vec<f32> = (0..tasks).flat_map(|task| sequences(own, task, 1)).collect();
        let layers: Vec<usize> = (0..=shape.layers as usize).collect();
        let all: Vec<[usize; 2]> = (0..tasks).flat_map(|source| (0..tasks).map(move |to| [source, to])).collect();
        let (n, layers) = (N as usize, layers.as_slice());
        let of = Patching { sequences: n, tasks, layers, tokens: (0, 2), add: true, pairs: &all, memory: 0 };
        let predicted = |pairs: &[[usize; 2]], memory: usize| {
            let of = Patching { pairs, memory, ..of };
            let cost = cost(network.sizes(), of, 232_448);
            let sources = pairs.iter().map(|[source, _]| (*source, sequences(own, *source, 2))).collect();
            (cost, Patched::new(machine, &network, of).unwrap().run(&means, &sources).unwrap())
        };
        let (at_once, whole) = predicted(&all, usize::MAX);
        assert!(whole.patched.concat().concat().iter().all(|value| value.is_finite()));
        let least = least_memory(network.sizes(), &of);
        let each = 25 * n * shape.examples as usize * shape.width as usize * size_of::<f32>();
        // One at a time, three and a little, and five, of which the last part has one pair.
        for memory in [0, least + 5 * each / 2, least + 9 * each / 2] {
            let (in_parts, same) = predicted(&all, memory);
            assert!(in_parts.launches > at_once.launches && in_parts.memory < at_once.memory, "{memory}: {in_parts:?}");
            assert_eq!((in_parts.operations, in_parts.clears), (at_once.operations, 0));
            assert!(same == whole, "{shape:?}: parts of {memory} bytes");
        }
        for (i, pair) in all.iter().enumerate().step_by(3) {
            let (_, single) = predicted(&[*pair], usize::MAX);
            let of_pair: Vec<_> = whole.patched.iter().map(|of_layer| vec![of_layer[i].clone()]).collect();
            assert!(single.patched == of_pair, "{shape:?}: {pair:?} alone");
            assert_eq!(single.baselines[&pair[0]], whole.baselines[&pair[0]]);
        }
    }
}

fn what_is_not_finite_is_refused_and_a_wish_to_stop_is_heard(machine: &impl Machine) {
    let shape = SHAPES[0];
    let own = &runs(shape)[0];
    let (network, data) = (shape.network(own), DataSpec::SparseLinear(own.data.clone()));
    let spec = spec(PatchLayers::All, Site::X, PatchPositions::All, PatchMode::Replace);
    let wild = network.map(|t| t.affine(f64::NAN, 0.0)).unwrap();
    let [ours, theirs] = [
        intervene::run_on(machine, &wild, own.seed, &data, &spec, &mut Memory::default()).unwrap_err(),
        intervene::run(&wild, own.seed, &data, &spec, &mut Memory::default()).unwrap_err(),
    ];
    assert_eq!(ours.to_string(), theirs.to_string());
    let mut impatient = Memory { stop_at: Some(1), ..Memory::default() };
    let stopped = intervene::run_on(machine, &network, own.seed, &data, &spec, &mut impatient);
    assert!(matches!(stopped, Err(ScienceError::Stopped)), "{stopped:?}");
}

//! The CUDA kernels that make the sequences and find neighbours, executed on the CPU, give what ours give, bit for bit.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

#[path = "../../kernels/cuda/emulate/emulator.rs"]
#[allow(dead_code, reason = "each test file uses its part")]
mod emulator;

use emulator::Memory;
use taskvec_kernels::cuda::{
    analysis::Points,
    training::{self, Mixture, MixtureShape, mixture},
};
use taskvec_model::spec::{Overlap, SparseLinear, YChannel};
use taskvec_science::{
    analysis::knn,
    data::{Bases, generate},
    rng::{Purpose, Stream},
};

/// A mixture of `bases` bases of `rank` coordinates.
fn mixture_of(
    overlap: Overlap,
    [dim, bases, rank, examples]: [u32; 4],
    y_channel: YChannel,
    weight_mean: f64,
) -> SparseLinear {
    SparseLinear {
        dim,
        bases,
        rank,
        overlap,
        examples,
        noise_variance: 0.01 + weight_mean.abs() / 7.0,
        weight_mean,
        y_channel,
    }
}

/// What the runs of one launch are: all but the shape may differ.
struct Run {
    data: SparseLinear,
    seed: u64,
    step: u64,
}

fn check(runs: &[Run], sequences: u64, first: u64, (ours, theirs): (Bases, training::Bases)) {
    let data = &runs[0].data;
    let (mut table, mut mixtures) = (Vec::new(), Vec::new());
    for run in runs {
        let of = Mixture {
            seed: run.seed,
            weight_mean: run.data.weight_mean,
            noise: run.data.noise_variance.sqrt(),
            bases: run.data.bases,
            table: table.len() as u32,
        };
        mixtures.extend(of.bytes());
        table.extend((0..run.data.bases).flat_map(|k| run.data.coordinates(k)));
    }
    let channels = data.channels();
    let y_channel = if data.y_channel == YChannel::Own { data.dim } else { 0 };
    let (dim, examples, rank) = (data.dim, data.examples, data.rank);
    let purpose = Purpose::Train as u32;
    let shape = MixtureShape { dim, examples, channels, y_channel, rank, purpose, bases: theirs, first: first as u32 };
    let (s, b) = (runs.len(), sequences as usize);
    let mut memory = Memory::default();
    let steps: Vec<u64> = runs.iter().map(|run| run.step).collect();
    let (mixtures, steps, coordinates) = (memory.bytes(mixtures), memory.longs(&steps), memory.words(&table));
    let tokens = memory.room(s * b * (2 * examples * channels) as usize);
    let (y, basis) = (memory.room(s * b * examples as usize), memory.unwritten(4 * s * b));
    memory.run(&mixture((s, b, table.len()), shape, [mixtures, steps, coordinates, tokens, y, basis]));
    let (mut want_tokens, mut want_y, mut want_basis) = (Vec::new(), Vec::new(), Vec::new());
    for run in runs {
        let stream = Stream { seed: run.seed, purpose: Purpose::Train, step: run.step };
        let sequences = generate(&run.data, stream, first..first + sequences, ours);
        let mut tokens = vec![0.0; sequences.y.len() * 2 * channels as usize];
        sequences.write_tokens(&mut tokens);
        want_tokens.extend(tokens);
        want_y.extend(sequences.y);
        want_basis.extend(sequences.basis);
    }
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert_eq!(memory.read_words(basis), want_basis);
    assert_eq!(bits(&memory.read_floats(y)), bits(&want_y));
    assert_eq!(bits(&memory.read_floats(tokens)), bits(&want_tokens));
}

#[test]
fn sequences_are_those_of_the_cpu_bit_for_bit() {
    if !emulator::available() {
        return;
    }
    let drawn = (Bases::Drawn, training::Bases::Drawn);
    for y_channel in [YChannel::Shared, YChannel::Own] {
        // Four runs that share a shape only, among them the extremes of seed and step.
        let of = |bases, weight_mean| mixture_of(Overlap::Disjoint, [20, bases, 4, 20], y_channel, weight_mean);
        let runs = [
            Run { data: of(4, 0.0), seed: 0, step: 1 },
            Run { data: of(5, 3.5), seed: u64::MAX, step: (1 << 56) - 1 },
            Run { data: of(1, -1.0 / 3.0), seed: 1 << 40, step: 1 << 33 },
            Run { data: of(4, 0.25), seed: 7, step: 79_999 },
        ];
        check(&runs, 130, 0, drawn);
        check(&runs, 3, u64::from(u32::MAX) - 2, drawn);
        check(&runs[..1], 9, 4, (Bases::InTurn, training::Bases::InTurn));
        check(&runs[..1], 9, 4, (Bases::Fixed(2), training::Bases::Fixed(2)));
        // An odd number of normals; one coordinate, one example, one sequence; halves that overlap.
        let odd = mixture_of(Overlap::Disjoint, [5, 1, 4, 3], y_channel, 1.0);
        check(&[Run { data: odd, seed: 3, step: 2 }], 5, 0, drawn);
        let one = mixture_of(Overlap::Disjoint, [1, 1, 1, 1], y_channel, 1.0);
        check(&[Run { data: one, seed: 3, step: 2 }], 1, 0, drawn);
        let grouped = mixture_of(Overlap::Grouped, [10, 4, 2, 7], y_channel, 1.0);
        check(&[Run { data: grouped, seed: 3, step: 2 }], 11, 0, drawn);
    }
}

/// Close points far from the origin, and some that coincide.
#[test]
fn neighbours_are_those_of_the_cpu() {
    if !emulator::available() {
        return;
    }
    for (sets, points, dim, k) in [(3, 40, 64, 20), (1, 7, 1, 6), (2, 100, 9, 99)] {
        let mut draws = Stream { seed: 1, purpose: Purpose::Td, step: 0 }.at(0);
        let mut value = |far: f64| (far + draws.uniform()) as f32;
        let mut values: Vec<f32> = (0..sets * points * dim).map(|i| value(1e3 * (i % dim % 3) as f64)).collect();
        values.copy_within(0..dim, 3 * dim);
        let mut memory = Memory::default();
        let (place, out) = (memory.floats(&values), memory.unwritten(4 * sets * points * k));
        memory.run(&Points { sets, points, dim }.neighbours(k, [place, out]));
        let wide: Vec<f64> = values.iter().map(|&v| v.into()).collect();
        let want: Vec<u32> = wide.chunks(points * dim).flat_map(|set| knn::neighbours(set, dim, k).concat()).collect();
        assert_eq!(memory.read_words(out), want, "{sets} × {points} × {dim}, {k} nearest");
    }
}

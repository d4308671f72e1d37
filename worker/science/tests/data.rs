//! The sequences have the distribution that the paper states, and each is a function of its address alone.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use candle_core::Device;
use proptest::prelude::*;
use taskvec_model::spec::{DataSpec, Overlap, SparseLinear, YChannel};
use taskvec_science::{
    data::{Bases, Sequences, generate},
    rng::{Purpose, Stream},
};

const STREAM: Stream = Stream { seed: 11, purpose: Purpose::Train, step: 4 };

fn small() -> SparseLinear {
    let DataSpec::SparseLinear(data) = common::data();
    data
}

fn specs() -> impl Strategy<Value = SparseLinear> {
    let own = prop_oneof![Just(YChannel::Shared), Just(YChannel::Own)];
    (1..4u32, 1..4u32, 1..6u32, any::<bool>(), own, 0.0..2.0f64).prop_map(
        |(bases, rank, examples, grouped, y_channel, weight_mean)| {
            let (overlap, bases, dim) = match grouped {
                true => (Overlap::Grouped, 2 * bases, 2 * (rank + bases)),
                false => (Overlap::Disjoint, bases, bases * rank + 1),
            };
            SparseLinear { dim, bases, rank, overlap, examples, noise_variance: 0.01, weight_mean, y_channel }
        },
    )
}

/// The part `range` of sequences.
fn part(all: &Sequences, range: std::ops::Range<usize>) -> Sequences {
    let (dim, examples) = (all.data.dim as usize, all.data.examples as usize);
    let cut = |v: &[f32], each: usize| v[range.start * each..range.end * each].to_vec();
    Sequences {
        data: all.data.clone(),
        basis: all.basis[range.clone()].to_vec(),
        weights: cut(&all.weights, dim),
        x: cut(&all.x, examples * dim),
        y: cut(&all.y, examples),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_sequence_does_not_depend_on_who_asks(data in specs(), cut in 0..12u64, threads in 1..4usize) {
        let whole = generate(&data, STREAM, 0..12, Bases::Drawn);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (a, b) = pool.install(|| {
            (generate(&data, STREAM, cut..12, Bases::Drawn), generate(&data, STREAM, 0..cut, Bases::Drawn))
        });
        prop_assert_eq!(a, part(&whole, cut as usize..12));
        prop_assert_eq!(b, part(&whole, 0..cut as usize));
    }

    #[test]
    fn without_the_last_token_of_each_sequence_the_others_are_as_they_were(data in specs(), count in 0..4u64) {
        let sequences = generate(&data, STREAM, 0..count, Bases::Drawn);
        let (tokens, channels) = (2 * data.examples as usize, data.channels() as usize);
        let all: Vec<f32> = sequences.tokens(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let mut fewer = vec![0.0; count as usize * (tokens - 1) * channels];
        sequences.write_tokens(&mut fewer);
        let kept = all.chunks(tokens * channels).flat_map(|sequence| &sequence[..(tokens - 1) * channels]);
        prop_assert_eq!(fewer, kept.copied().collect::<Vec<_>>());
    }

    #[test]
    fn weights_live_on_the_basis_and_explain_y_up_to_noise(data in specs()) {
        let s = generate(&data, STREAM, 0..20, Bases::Drawn);
        let (dim, examples) = (data.dim as usize, data.examples as usize);
        for i in 0..s.len() {
            let w = &s.weights[i * dim..][..dim];
            let active: Vec<u32> = (0..data.dim).filter(|&c| w[c as usize] != 0.0).collect();
            prop_assert_eq!(active, data.coordinates(s.basis[i]));
            for k in 0..examples {
                let x = &s.x[(i * examples + k) * dim..][..dim];
                let mean: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                prop_assert!((f64::from(s.y[i * examples + k]) - mean).abs() < 0.6, "six deviations of the noise");
            }
        }
    }

    #[test]
    fn tokens_interleave_x_and_y(data in specs()) {
        let s = generate(&data, STREAM, 0..3, Bases::Drawn);
        let tokens = s.tokens(&Device::Cpu).unwrap().to_vec3::<f32>().unwrap();
        let (dim, examples) = (data.dim as usize, data.examples as usize);
        let channel = if data.y_channel == YChannel::Own { dim } else { 0 };
        for (i, rows) in tokens.iter().enumerate() {
            prop_assert_eq!(rows.len(), 2 * examples);
            for k in 0..examples {
                let (x, y) = (&rows[2 * k], &rows[2 * k + 1]);
                prop_assert_eq!(&x[..dim], &s.x[(i * examples + k) * dim..][..dim]);
                prop_assert!(x[dim..].iter().all(|v| *v == 0.0));
                for (c, v) in y.iter().enumerate() {
                    prop_assert_eq!(*v, if c == channel { s.y[i * examples + k] } else { 0.0 });
                }
            }
        }
        let targets = s.targets(&Device::Cpu).unwrap();
        prop_assert_eq!(targets.dims(), &[3, examples]);
        prop_assert_eq!(targets.flatten_all().unwrap().to_vec1::<f32>().unwrap(), s.y);
    }
}

fn mean(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (mut n, mut sum) = (0.0, 0.0);
    values.for_each(|v| (n, sum) = (n + 1.0, sum + v));
    (sum / n, n)
}

#[test]
fn empirical_moments_are_those_of_the_paper() {
    let mut data = small();
    (data.weight_mean, data.noise_variance) = (0.7, 0.25);
    let s = generate(&data, STREAM, 0..20_000, Bases::Drawn);
    let (dim, examples) = (4, 4);
    let near = |what: &str, (got, n): (f64, f64), want: f64, variance: f64| {
        let error = (got - want).abs();
        assert!(error < 5.0 * (variance / n).sqrt(), "{what}: {got}, wanted {want}");
    };
    near("basis", mean(s.basis.iter().map(|b| f64::from(*b))), 0.5, 0.25);
    let active = || s.weights.iter().filter(|w| **w != 0.0).map(|w| f64::from(*w) - 0.7);
    near("mean of W", mean(active()), 0.0, 1.0);
    near("variance of W", mean(active().map(|w| w * w)), 1.0, 2.0);
    let x = || s.x.iter().map(|x| f64::from(*x));
    near("mean of x", mean(x()), 0.0, 1.0);
    near("variance of x", mean(x().map(|x| x * x)), 1.0, 2.0);
    let noise = || {
        s.y.iter().enumerate().map(|(i, y)| {
            let (x, w) = (&s.x[i * dim..][..dim], &s.weights[i / examples * dim..][..dim]);
            f64::from(*y) - x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>()
        })
    };
    near("mean of the noise", mean(noise()), 0.0, 0.25);
    near("variance of the noise", mean(noise().map(|e| e * e)), 0.25, 2.0 * 0.25 * 0.25);
}

#[test]
fn bases_are_drawn_fixed_or_taken_in_turn_without_changing_x() {
    let mut data = small();
    (data.bases, data.rank, data.dim) = (4, 1, 4);
    let get = |bases| generate(&data, STREAM, 6..14, bases);
    assert_eq!(get(Bases::InTurn).basis, [2, 3, 0, 1, 2, 3, 0, 1]);
    assert_eq!(get(Bases::Fixed(3)).basis, [3; 8]);
    assert_eq!(get(Bases::Fixed(3)).x, get(Bases::Drawn).x);
    assert_eq!(get(Bases::InTurn).x, get(Bases::Drawn).x);
    let many = generate(&data, STREAM, 0..4000, Bases::Drawn).basis;
    for k in 0..4 {
        let count = many.iter().filter(|b| **b == k).count() as f64;
        assert!((count - 1000.0).abs() < 5.0 * 750.0f64.sqrt(), "basis {k}: {count} of 4000");
    }
}

#[test]
fn seed_purpose_and_step_each_give_other_sequences() {
    let x = |stream| generate(&small(), stream, 0..1, Bases::Drawn).x;
    let others =
        [Stream { seed: 12, ..STREAM }, Stream { step: 5, ..STREAM }, Stream { purpose: Purpose::Td, ..STREAM }];
    for other in others {
        assert_ne!(x(STREAM), x(other), "{other:?}");
    }
}

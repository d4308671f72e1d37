//! ICL performance and task decodability of a model, against slow and obvious computations of the same.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use candle_core::{Device, Tensor};
use common::Memory;
use taskvec_model::{
    metric::{Icl, IclMetric, Metrics, Td},
    spec::{At, DataSpec, Layers, Site, SparseLinear, TdSpec},
};
use taskvec_science::{
    ScienceError,
    analysis::{decode::Decoder, icl, td},
    data::{Bases, Sequences, generate},
    hook::HookPoint,
    model::Transformer,
    rng::{Purpose, Stream},
};

const SEED: u64 = 11;
const SAMPLES: u32 = 60;
const K: usize = 5;

fn network() -> Transformer {
    Transformer::init(&common::model(), &common::data(), SEED, &Device::Cpu).unwrap()
}

fn mixture() -> SparseLinear {
    let DataSpec::SparseLinear(data) = common::data();
    data
}

fn spec(layers: Layers, sites: &[Site]) -> TdSpec {
    TdSpec { layers, sites: sites.to_vec(), k: K as u32, samples_per_task: SAMPLES, at: At::All }
}

fn run_td(spec: &TdSpec) -> Vec<Td> {
    let metrics = td::run(&network(), SEED, &common::data(), spec, &mut Memory::default()).unwrap();
    assert_eq!(metrics.rows(), metrics.td.len());
    metrics.td
}

fn run_icl(sequences: u32) -> Metrics {
    icl::run(&network(), SEED, &common::data(), sequences, &mut Memory::default()).unwrap()
}

fn sequences(purpose: Purpose, index: u64, bases: Bases) -> Sequences {
    generate(&mixture(), Stream { seed: SEED, purpose, step: 0 }, index..index + 1, bases)
}

/// Accuracy per task by brute force: all distances sorted, votes counted.
fn accuracy(points: &[Vec<f32>], tasks: usize) -> Vec<f64> {
    let label = |i: usize| i % tasks;
    let mut right = vec![0.0; tasks];
    for (i, a) in points.iter().enumerate() {
        let distance = |b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
        let mut others: Vec<(f64, usize)> =
            (0..points.len()).filter(|&j| j != i).map(|j| (distance(&points[j]), j)).collect();
        others.sort_by(|a, b| a.partial_cmp(b).unwrap());
        let votes = |t| others[..K].iter().filter(|(_, j)| label(*j) == t).count();
        // Two tasks and five voters: no ties.
        if (0..tasks).all(|t| votes(label(i)) >= votes(t)) {
            right[label(i)] += 1.0 / f64::from(SAMPLES);
        }
    }
    right
}

#[test]
fn states_are_read_at_the_layer_and_token_that_the_site_means() {
    let (network, data) = (network(), mixture());
    let mut query = vec![0.0; data.dim as usize];
    Stream { seed: SEED, purpose: Purpose::Query, step: 0 }.at(0).normals(&mut query);
    let rows = run_td(&spec(Layers::All, &Site::ALL));
    assert_eq!(rows.len(), 3 * 3 * 2);
    let last_x = 2 * data.examples as usize - 2;
    for layer in 0..=2u32 {
        for (site, token) in [(Site::X, last_x), (Site::Y, last_x - 1), (Site::S, last_x)] {
            let mut points = Vec::new();
            for index in 0..u64::from(2 * SAMPLES) {
                let mut one = sequences(Purpose::Td, index, Bases::Fixed(index as u32 % 2));
                if site == Site::S {
                    let from = one.x.len() - query.len();
                    one.x[from..].iter_mut().zip(&query).for_each(|(x, q)| *x = *q as f32);
                }
                let mut hook = |point: HookPoint, x: &Tensor| {
                    if point == HookPoint::hidden(layer as usize) {
                        points.push(x.get(0)?.get(token)?.to_vec1::<f32>()?);
                    }
                    Ok(None)
                };
                network.forward(&one.tokens(&Device::Cpu).unwrap(), Some(&mut hook)).unwrap();
            }
            let got: Vec<&Td> = rows.iter().filter(|r| r.layer == layer && r.site == site).collect();
            assert_eq!(got.iter().map(|r| r.latent_task.as_str()).collect::<Vec<_>>(), ["B1", "B2"]);
            for (row, want) in got.iter().zip(accuracy(&points, 2)) {
                assert_eq!((row.shots, row.k, row.n), (data.examples - 1, K as u32, SAMPLES));
                // The embedding of a shared query is the same for all: there, all distances tie.
                if (layer, site) != (0, Site::S) {
                    assert!((row.value - want).abs() < 1e-9, "layer {layer}, {site}: {row:?}, {want} by brute force");
                }
            }
        }
    }
}

#[test]
fn where_all_states_are_equal_td_is_chance_on_average() {
    let rows = run_td(&spec(Layers::List(vec![0]), &[Site::S]));
    let mean = rows.iter().map(|r| r.value).sum::<f64>() / 2.0;
    assert!((mean - 0.5).abs() < 0.06, "{rows:?}");
}

#[test]
fn only_the_layers_and_sites_asked_for_are_reported_and_with_the_same_numbers() {
    let all = run_td(&spec(Layers::All, &Site::ALL));
    let some = run_td(&spec(Layers::List(vec![2]), &[Site::Y]));
    let wanted: Vec<Td> = all.into_iter().filter(|r| r.layer == 2 && r.site == Site::Y).collect();
    assert_eq!(some, wanted);
}

#[test]
fn icl_is_the_squared_error_of_one_sequence_at_a_time() {
    let (network, data, n) = (network(), mixture(), 130);
    let rows = run_icl(n).icl;
    let mut errors: Vec<Vec<Vec<f64>>> = vec![Vec::new(); 2];
    for index in 0..u64::from(n) {
        let one = sequences(Purpose::Evaluate, index, Bases::Drawn);
        let predicted = network.forward(&one.tokens(&Device::Cpu).unwrap(), None).unwrap().get(0).unwrap();
        let predicted = predicted.to_vec1::<f32>().unwrap();
        let squares = predicted.iter().zip(&one.y).map(|(p, y)| f64::from(p - y).powi(2));
        errors[one.basis[0] as usize].push(squares.collect());
    }
    assert_eq!(rows.len(), 2 * (data.examples as usize + 1));
    for (row, i) in rows.iter().zip(0..) {
        let (task, position) = (i / 5, i % 5);
        let values: Vec<f64> = (errors[task].iter())
            .map(|e| if position < 4 { e[position] } else { e.iter().sum::<f64>() / 4.0 })
            .collect();
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (count - 1.0);
        assert!((row.value / mean - 1.0).abs() < 1e-4, "{row:?}: {mean}");
        assert!((row.stderr / (variance / count).sqrt() - 1.0).abs() < 1e-4, "{row:?}");
        let want = Icl {
            latent_task: format!("B{}", task + 1),
            shots: 3,
            position: (position < 4).then_some(position as u32 + 1),
            metric: IclMetric::Mse,
            n: values.len() as u32,
            ..row.clone()
        };
        assert_eq!(*row, want);
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| (run_icl(150), run_td(&spec(Layers::All, &Site::ALL))))
    };
    assert_eq!(with(1), with(3));
}

#[test]
fn a_stop_ends_it_between_batches() {
    let mut sink = Memory { stop_at: Some(100), ..Memory::default() };
    let stopped = td::run(&network(), SEED, &common::data(), &spec(Layers::All, &[Site::X]), &mut sink);
    assert!(matches!(stopped, Err(ScienceError::Stopped)));
    let mut sink = Memory { stop_at: Some(100), ..Memory::default() };
    assert!(matches!(icl::run(&network(), SEED, &common::data(), 101, &mut sink), Err(ScienceError::Stopped)));
}

#[test]
fn states_that_are_not_finite_are_an_error() {
    let broken = network().map(|t| t * f64::MAX).unwrap();
    let td = td::run(&broken, SEED, &common::data(), &spec(Layers::All, &[Site::X]), &mut Memory::default());
    assert!(td.unwrap_err().to_string().contains("hidden states are not finite"));
    let icl = icl::run(&broken, SEED, &common::data(), 5, &mut Memory::default());
    assert!(icl.unwrap_err().to_string().contains("predictions are not finite"));
}

const HALVES: Stream = Stream { seed: SEED, purpose: Purpose::Td, step: 1 };

/// `per_task` points of each of `tasks` Gaussian clusters in `dim` dimensions; cluster t is `apart` along axis t.
fn clusters(tasks: usize, per_task: usize, dim: usize, apart: f64, sample: u64) -> (Vec<f64>, Vec<u32>) {
    let labels: Vec<u32> = (0..tasks * per_task).map(|i| (i % tasks) as u32).collect();
    let mut points = vec![0.0; labels.len() * dim];
    Stream { seed: 1, purpose: Purpose::Evaluate, step: sample }.at(0).normals(&mut points);
    points.chunks_mut(dim).zip(&labels).for_each(|(p, &l)| p[l as usize] += apart);
    (points, labels)
}

#[test]
fn separate_clusters_are_decoded_and_identical_ones_are_not() {
    let (points, labels) = clusters(4, 50, 6, 30.0, 0);
    for decoded in Decoder::new(&labels, 4, 10, HALVES).decode(&points, 6) {
        assert_eq!((decoded.value, decoded.stderr), (1.0, 0.0));
    }
    let (points, labels) = clusters(4, 200, 6, 0.0, 0);
    let decoded = Decoder::new(&labels, 4, 10, HALVES).decode(&points, 6);
    let mean = decoded.iter().map(|d| d.value).sum::<f64>() / 4.0;
    assert!((mean - 0.25).abs() < 0.06, "{decoded:?}");
}

/// Pairs of opposite labels, far from other pairs: one's own label is what a point's nearest other point does not have.
/// Whoever counted the point itself would score 1.
#[test]
fn a_point_has_no_say_in_its_own_classification() {
    let points: Vec<f64> = (0..40).flat_map(|i| [10.0 * f64::from(i), 10.0 * f64::from(i) + 1.0]).collect();
    let labels: Vec<u32> = (0..80).map(|i| i % 2).collect();
    for decoded in Decoder::new(&labels, 2, 1, HALVES).decode(&points, 1) {
        assert_eq!(decoded.value, 0.0);
    }
}

/// The standard error is what it says: close to the deviation over fresh samples, where the binomial is far too small.
#[test]
fn the_standard_error_is_the_deviation_over_fresh_samples() {
    for (dim, apart) in [(2, 1.2), (32, 1.5), (32, 0.0)] {
        let fresh: Vec<_> = (0..150)
            .map(|sample| {
                let (points, labels) = clusters(2, 60, dim, apart, sample);
                Decoder::new(&labels, 2, 10, HALVES).decode(&points, dim)[0]
            })
            .collect();
        let n = fresh.len() as f64;
        let mean = fresh.iter().map(|d| d.value).sum::<f64>() / n;
        let deviation = (fresh.iter().map(|d| (d.value - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt();
        let stated = fresh.iter().map(|d| d.stderr).sum::<f64>() / n;
        assert!((0.8..1.4).contains(&(stated / deviation)), "dim {dim}: {stated} stated, {deviation} seen");
    }
}

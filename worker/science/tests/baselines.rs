//! The bounds on what the data allow: against a study that nobody here wrote, and against closed forms.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::Memory;
use taskvec_model::{
    metric::{Estimator, Metrics},
    spec::{DataSpec, Overlap, SparseLinear, YChannel},
};
use taskvec_science::{ScienceError, analysis::baselines};

/// The quickstart's mixture.
fn mixture(weight_mean: f64) -> SparseLinear {
    SparseLinear {
        dim: 4,
        bases: 2,
        rank: 2,
        overlap: Overlap::Disjoint,
        examples: 8,
        noise_variance: 0.01,
        weight_mean,
        y_channel: YChannel::Shared,
    }
}

fn run(data: &SparseLinear, sequences: u32, td: Option<u32>) -> Metrics {
    baselines::run(1, &DataSpec::SparseLinear(data.clone()), sequences, td, &mut Memory::default()).unwrap()
}

fn of_task(metrics: &Metrics, estimator: Estimator, task: &str, position: Option<u32>) -> f64 {
    let mut rows = (metrics.baselines.iter())
        .filter(|b| b.estimator == estimator && b.latent_task == task && b.position == position);
    let row = rows.next().unwrap();
    assert!(rows.next().is_none());
    row.mse
}

/// Mean over two tasks.
fn of_both(metrics: &Metrics, estimator: Estimator, position: Option<u32>) -> f64 {
    (of_task(metrics, estimator, "B1", position) + of_task(metrics, estimator, "B2", position)) / 2.0
}

/// A study of small configurations in PyTorch found these errors, over all positions and at the last one (its sample, of
/// unstated size, had 4.01 and 3.85 where 4.01 is exact, hence the tolerance). Its LASSO penalties are not stated; at the
/// last position, where the best penalty over all positions is not the best, they make a difference.
#[test]
fn errors_are_those_of_the_study() {
    let study = [
        (1.0, Estimator::Zero, 4.01, 3.85),
        (1.0, Estimator::Ridge, 1.35, 0.029),
        (1.0, Estimator::Lasso, 1.45, 0.030),
        (1.0, Estimator::Oracle, 0.408, 0.015),
        (1.0, Estimator::BayesMixture, 0.692, 0.015),
        (0.0, Estimator::Zero, 1.95, 1.92),
        (0.0, Estimator::Ridge, 0.671, 0.029),
        (0.0, Estimator::Lasso, 0.697, 0.025),
        (0.0, Estimator::Oracle, 0.408, 0.015),
        (0.0, Estimator::BayesMixture, 0.511, 0.015),
    ];
    for weight_mean in [1.0, 0.0] {
        let metrics = run(&mixture(weight_mean), 20_000, None);
        for (_, estimator, overall, last) in study.into_iter().filter(|row| row.0 == weight_mean) {
            let got = (of_both(&metrics, estimator, None), of_both(&metrics, estimator, Some(8)));
            let at_last = if estimator == Estimator::Lasso { 0.2 } else { 0.06 };
            let close = |got: f64, want: f64, tolerance: f64| (got / want - 1.0).abs() < tolerance;
            assert!(close(got.0, overall, 0.045), "{estimator:?}, mean {weight_mean}: {} for {overall}", got.0);
            assert!(close(got.1, last, at_last), "{estimator:?}, mean {weight_mean}, last: {} for {last}", got.1);
        }
    }
}

/// Before any pair the estimators predict their prior means: E y² = r (1 + m²) + σ² for 0 (and for ridge and LASSO), and
/// E (y − m·x)² = r + σ² for the oracle. The first holds at every position.
#[test]
fn errors_without_evidence_have_closed_forms() {
    let data = SparseLinear { rank: 1, bases: 3, noise_variance: 0.25, weight_mean: 1.5, ..mixture(0.0) };
    let metrics = run(&data, 30_000, None);
    let (prior, mean) = (1.0 + 1.5f64.powi(2) + 0.25, 1.0 + 0.25);
    for task in data.latent_tasks() {
        let close = |estimator, position, want: f64| {
            let got = of_task(&metrics, estimator, &task, position);
            // Squares of products of normals: deviations of about twice the mean, 10 000 sequences.
            assert!((got / want - 1.0).abs() < 0.1, "{estimator:?} {task} {position:?}: {got} for {want}");
        };
        for position in [Some(1), Some(8), None] {
            close(Estimator::Zero, position, prior);
        }
        close(Estimator::Ridge, Some(1), prior);
        close(Estimator::Lasso, Some(1), prior);
        close(Estimator::Oracle, Some(1), mean);
    }
}

/// Knowing more never hurts on average, and nobody predicts the noise.
#[test]
fn estimators_that_know_more_do_better() {
    let grouped = SparseLinear { dim: 8, bases: 6, rank: 3, overlap: Overlap::Grouped, ..mixture(0.0) };
    for data in [mixture(0.0), mixture(1.0), grouped] {
        let metrics = run(&data, 4_000, None);
        for task in data.latent_tasks() {
            let error = |estimator, position| of_task(&metrics, estimator, &task, position);
            for position in (1..=data.examples).map(Some).chain([None]) {
                let oracle = error(Estimator::Oracle, position);
                assert!(oracle > 0.9 * data.noise_variance, "{task} {position:?}: {oracle}");
            }
            let order = [Estimator::Oracle, Estimator::BayesMixture, Estimator::Ridge, Estimator::Zero];
            for pair in order.windows(2) {
                assert!(error(pair[0], None) < error(pair[1], None), "{task}: {pair:?}");
            }
            assert!(error(Estimator::BayesMixture, None) < error(Estimator::Lasso, None), "{task}");
        }
    }
}

#[test]
fn every_estimator_has_every_task_and_position() {
    let metrics = run(&mixture(1.0), 150, Some(10));
    assert_eq!(metrics.baselines.len(), 5 * 2 * (8 + 1));
    for row in &metrics.baselines {
        let position = row.position.filter(|p| (1..=8).contains(p));
        assert!(row.position == position && row.mse.is_finite());
    }
    // The mean over positions is their mean.
    for estimator in Estimator::ALL {
        let mean = (1..=8).map(|p| of_task(&metrics, estimator, "B2", Some(p))).sum::<f64>() / 8.0;
        assert!((of_task(&metrics, estimator, "B2", None) / mean - 1.0).abs() < 1e-12);
    }
    assert_eq!(metrics.rows(), metrics.baselines.len() + 2);
}

#[test]
fn the_ideal_observer_names_the_basis_as_often_as_in_the_study() {
    for weight_mean in [0.0, 1.0] {
        let metrics = run(&mixture(weight_mean), 1, Some(2_000));
        for (row, task) in metrics.td_bound.iter().zip(["B1", "B2"]) {
            assert_eq!((row.latent_task.as_str(), row.shots), (task, 7));
            assert!(row.value >= 0.996, "{row:?}: 0.998 to 1.00 in the study");
        }
    }
}

/// A single pair leaves the bases ambiguous. With no pair at all they are equally probable and the first is named.
#[test]
fn the_ideal_observer_is_limited_by_the_evidence() {
    let values = |examples| {
        let bound = run(&SparseLinear { examples, ..mixture(0.0) }, 1, Some(2_000)).td_bound;
        bound.iter().map(|b| b.value).collect::<Vec<_>>()
    };
    assert_eq!(values(1), [1.0, 0.0]);
    // One pair decides by |x| on each basis and y: better than chance, far from certain.
    assert!(values(2).iter().all(|&v| (0.55..0.8).contains(&v)), "{:?}", values(2));
    let (two, four) = (values(3), values(5));
    assert!(two.iter().zip(&four).all(|(two, four)| two < four), "{two:?} {four:?}");
    assert_eq!(run(&SparseLinear { bases: 1, ..mixture(0.0) }, 1, Some(50)).td_bound[0].value, 1.0);
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| run(&mixture(1.0), 250, Some(60)))
    };
    assert_eq!(with(1), with(3));
}

#[test]
fn a_stop_ends_it_between_batches() {
    let mut sink = Memory { stop_at: Some(200), ..Memory::default() };
    let data = DataSpec::SparseLinear(mixture(1.0));
    assert!(matches!(baselines::run(1, &data, 250, None, &mut sink), Err(ScienceError::Stopped)));
    assert_eq!(sink.progress.iter().map(|p| (p.done, p.total)).collect::<Vec<_>>(), [(100, 250), (200, 250)]);
    // Everything done is a result, not a stop.
    assert!(baselines::run(1, &data, 200, None, &mut Memory { stop_at: Some(200), ..Memory::default() }).is_ok());
}

//! The estimators and the classifier against numpy, scipy and scikit-learn (fixtures/analysis.py).

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use serde::Deserialize;
use taskvec_model::spec::{Overlap, SparseLinear, YChannel};
use taskvec_science::{
    analysis::{
        estimators::{
            bayes::{IdealObserver, mix},
            lasso::{Lasso, PENALTIES},
            ridge,
        },
        knn,
    },
    rng::{Purpose, Stream},
};

#[derive(Deserialize)]
struct Fixture {
    knn: Vec<Knn>,
    regression: Vec<Regression>,
}

#[derive(Deserialize)]
struct Knn {
    dim: usize,
    k: usize,
    points: Vec<f64>,
    labels: Vec<u32>,
    neighbours: Vec<Vec<u32>>,
    /// None where the vote is tied.
    predicted: Vec<Option<u32>>,
}

/// One sequence, and what is predicted at each position.
#[derive(Deserialize)]
struct Regression {
    overlap: Overlap,
    dim: u32,
    rank: u32,
    bases: u32,
    noise_variance: f64,
    weight_mean: f64,
    penalties: Vec<f64>,
    x: Vec<f64>,
    y: Vec<f64>,
    ridge: Vec<f64>,
    /// By penalty, then position.
    lasso: Vec<Vec<f64>>,
    /// By position, then basis.
    log_evidence: Vec<Vec<f64>>,
    by_basis: Vec<Vec<f64>>,
    mixture: Vec<f64>,
}

impl Regression {
    fn data(&self) -> SparseLinear {
        SparseLinear {
            dim: self.dim,
            bases: self.bases,
            rank: self.rank,
            overlap: self.overlap,
            examples: self.y.len() as u32,
            noise_variance: self.noise_variance,
            weight_mean: self.weight_mean,
            y_channel: YChannel::Shared,
        }
    }

    fn pairs(&self) -> impl Iterator<Item = (&[f64], f64)> {
        self.x.chunks_exact(self.dim as usize).zip(self.y.iter().copied())
    }
}

fn fixture() -> Fixture {
    serde_json::from_slice(&std::fs::read(common::fixture("analysis.json")).unwrap()).unwrap()
}

#[track_caller]
fn assert_close(got: f64, want: f64, tolerance: f64) {
    assert!((got - want).abs() <= tolerance * want.abs().max(1.0), "{got} instead of {want}");
}

#[test]
fn neighbours_and_votes_are_those_of_scikit_learn() {
    for case in fixture().knn {
        let neighbours = knn::neighbours(&case.points, case.dim, case.k);
        assert_eq!(neighbours, case.neighbours);
        let decided = case.predicted.iter().flatten().count();
        assert!(decided * 10 > case.labels.len() * 7, "only {decided} votes are not tied");
        for (near, want) in neighbours.iter().zip(&case.predicted) {
            let named = knn::vote(near.iter().map(|&j| case.labels[j as usize]));
            assert!(want.is_none() || named == *want, "{named:?} instead of {want:?}");
        }
    }
}

#[test]
fn ridge_is_that_of_scikit_learn() {
    for case in fixture().regression {
        let mut posterior = ridge::start(&case.data());
        for ((x, y), &want) in case.pairs().zip(&case.ridge) {
            assert_close(posterior.predict(x), want, 1e-10);
            posterior.observe(x, y);
        }
    }
}

#[test]
fn lasso_is_that_of_scikit_learn() {
    for case in fixture().regression {
        let mut lasso = Lasso::new(case.dim as usize);
        for (p, (x, y)) in case.pairs().enumerate() {
            for (weights, want) in lasso.path(&case.penalties).iter().zip(&case.lasso) {
                assert_close(dot(weights, x), want[p], 1e-8);
            }
            lasso.observe(x, y);
        }
    }
}

#[test]
fn evidence_and_posterior_means_are_the_dense_formulas() {
    for case in fixture().regression {
        let mut observer = IdealObserver::new(&case.data());
        for (p, (x, y)) in case.pairs().enumerate() {
            let by_basis = observer.predict_by_basis(x);
            for (got, want) in by_basis.iter().zip(&case.by_basis[p]) {
                assert_close(*got, *want, 1e-10);
            }
            for (got, want) in observer.log_evidence().iter().zip(&case.log_evidence[p]) {
                assert_close(*got, *want, 1e-10);
            }
            assert_close(mix(&observer.posterior(), &by_basis), case.mixture[p], 1e-10);
            observer.observe(x, y);
        }
    }
}

fn normals(count: usize, index: u64) -> Vec<f64> {
    let mut out = vec![0.0; count];
    Stream { seed: 5, purpose: Purpose::Evaluate, step: 9 }.at(index).normals(&mut out);
    out
}

/// The minimum is where every slope |Xᵀ(y − X w)| is n·penalty on the support, with the sign of the weight, and no more
/// elsewhere. Fewer pairs than weights are where other methods are slow.
#[test]
fn lasso_meets_the_optimality_conditions_with_more_weights_than_pairs() {
    let dim = 16;
    for sequence in 0..20 {
        let x = normals(24 * dim, 2 * sequence);
        let y: Vec<f64> =
            x.chunks(dim).zip(normals(24, 2 * sequence + 1)).map(|(x, e)| 2.0 * x[3] - x[7] + 0.1 * e).collect();
        let mut lasso = Lasso::new(dim);
        for (p, pair) in x.chunks(dim).enumerate() {
            lasso.observe(pair, y[p]);
            let n = p + 1;
            for (weights, penalty) in lasso.path(&PENALTIES).iter().zip(PENALTIES) {
                let residual = |(x, y): (&[f64], &f64)| y - dot(x, weights);
                let residuals: Vec<f64> = x.chunks(dim).zip(&y).take(n).map(residual).collect();
                for (j, &w) in weights.iter().enumerate() {
                    let slope: f64 = x.chunks(dim).zip(&residuals).map(|(x, r)| x[j] * r).sum();
                    let limit = n as f64 * penalty;
                    let off = if w == 0.0 { slope.abs() - limit } else { (slope - limit * w.signum()).abs() };
                    assert!(off < 1e-8 * (1.0 + limit), "n = {n}, penalty {penalty}, weight {j} = {w}: off by {off}");
                }
            }
        }
    }
}

/// Without noise, r pairs fix the weights and rule out all other bases; rounding must not undo that.
#[test]
fn the_ideal_observer_copes_without_noise() {
    let data = SparseLinear {
        dim: 8,
        bases: 4,
        rank: 2,
        overlap: Overlap::Disjoint,
        examples: 12,
        noise_variance: 0.0,
        weight_mean: 0.0,
        y_channel: YChannel::Shared,
    };
    let mut observer = IdealObserver::new(&data);
    for (p, x) in normals(12 * 8, 0).chunks(8).enumerate() {
        let y = 0.7 * x[4] - 1.3 * x[5];
        if p >= 3 {
            assert_eq!(observer.most_probable(), 2);
            assert_close(mix(&observer.posterior(), &observer.predict_by_basis(x)), y, 1e-6);
        }
        observer.observe(x, f64::from(y as f32));
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

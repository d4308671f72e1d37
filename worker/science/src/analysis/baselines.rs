//! What the data allow: the error of reference estimators on the held-out sequences, and how often an ideal observer
//! names the latent task of the sequences that task decodability is measured on.
//!
//! The prediction at position p uses the pairs 1 … p − 1 and x_p, as a model does, and is compared with the noisy y_p,
//! so that no estimator gets below the noise variance.

use super::{
    decoded,
    estimators::{
        bayes::{IdealObserver, mix},
        lasso::{Lasso, PENALTIES},
        ridge,
    },
    held_out, in_batches, stats, widen,
};
use crate::{ScienceError, Sink, data::Sequences};
use rayon::prelude::*;
use taskvec_model::{
    metric::{Baseline, Estimator, Metrics, TdBound},
    spec::{DataSpec, SparseLinear},
};

/// Baselines on `sequences` held-out sequences, by latent task and position and averaged over positions; where
/// `td_samples_per_task` is given, the bound on task decodability too.
///
/// # Errors
/// [`ScienceError::Stopped`] when the sink asks for it.
pub fn run(
    seed: u64,
    data: &DataSpec,
    sequences: u32,
    td_samples_per_task: Option<u32>,
    sink: &mut dyn Sink,
) -> Result<Metrics, ScienceError> {
    let DataSpec::SparseLinear(data) = data;
    let mut errors = Errors::default();
    in_batches(u64::from(sequences), sink, |indices| {
        errors.add(&held_out(seed, data, indices));
        Ok(())
    })?;
    let td_bound = match td_samples_per_task {
        None => Vec::new(),
        Some(samples) => td_bound(seed, data, samples, sink)?,
    };
    Ok(Metrics { baselines: errors.rows(data), td_bound, ..Metrics::default() })
}

/// Squared errors, K per sequence, of every estimator.
#[derive(Default)]
struct Errors {
    basis: Vec<u32>,
    zero: Vec<f64>,
    ridge: Vec<f64>,
    oracle: Vec<f64>,
    mixture: Vec<f64>,
    /// One for each of [`PENALTIES`].
    lasso: [Vec<f64>; PENALTIES.len()],
}

impl Errors {
    fn add(&mut self, sequences: &Sequences) {
        let predictions: Vec<Predictions> = each(sequences, predict);
        let targets = sequences.y.chunks_exact(sequences.data.examples as usize);
        for (prediction, y) in predictions.iter().zip(targets) {
            let append = |errors: &mut Vec<f64>, predicted: &[f64]| {
                errors.extend(predicted.iter().zip(y).map(|(p, &y)| (p - f64::from(y)).powi(2)));
            };
            append(&mut self.zero, &vec![0.0; y.len()]);
            append(&mut self.ridge, &prediction.ridge);
            append(&mut self.oracle, &prediction.oracle);
            append(&mut self.mixture, &prediction.mixture);
            for (errors, predicted) in self.lasso.iter_mut().zip(&prediction.lasso) {
                append(errors, predicted);
            }
        }
        self.basis.extend(&sequences.basis);
    }

    fn rows(&self, data: &SparseLinear) -> Vec<Baseline> {
        let names = data.latent_tasks();
        let rows_of = |(estimator, errors): (Estimator, &Vec<f64>)| {
            let cells = stats::by_task_and_position(data.bases, data.examples as usize, &self.basis, errors);
            let row = |c: stats::Cell| Baseline {
                latent_task: names[c.task].clone(),
                position: c.position,
                estimator,
                mse: c.error.mean,
            };
            cells.into_iter().map(row).collect::<Vec<_>>()
        };
        let estimators = [
            (Estimator::Zero, &self.zero),
            (Estimator::Ridge, &self.ridge),
            (Estimator::Lasso, self.best_lasso()),
            (Estimator::Oracle, &self.oracle),
            (Estimator::BayesMixture, &self.mixture),
        ];
        estimators.into_iter().flat_map(rows_of).collect()
    }

    /// The errors at the penalty with the least mean over all sequences and positions; of equal ones the largest.
    fn best_lasso(&self) -> &Vec<f64> {
        let total = |errors: &Vec<f64>| errors.iter().sum::<f64>();
        let (first, others) = self.lasso.split_first().expect("there are penalties");
        others.iter().fold(first, |best, next| if total(next) < total(best) { next } else { best })
    }
}

/// Predictions of y_1 … y_K for one sequence.
struct Predictions {
    ridge: Vec<f64>,
    oracle: Vec<f64>,
    mixture: Vec<f64>,
    /// By penalty, then position.
    lasso: Vec<Vec<f64>>,
}

fn predict(data: &SparseLinear, sequence: &Sequence) -> Predictions {
    let mut ridge = ridge::start(data);
    let mut observer = IdealObserver::new(data);
    let mut lasso = Lasso::new(data.dim as usize);
    let mut out = Predictions {
        ridge: Vec::new(),
        oracle: Vec::new(),
        mixture: Vec::new(),
        lasso: vec![Vec::new(); PENALTIES.len()],
    };
    for (x, y) in sequence.pairs() {
        out.ridge.push(ridge.predict(x));
        let by_basis = observer.predict_by_basis(x);
        out.oracle.push(by_basis[sequence.basis as usize]);
        out.mixture.push(mix(&observer.posterior(), &by_basis));
        for (predictions, weights) in out.lasso.iter_mut().zip(lasso.path(&PENALTIES)) {
            predictions.push(weights.iter().zip(x).map(|(w, x)| w * x).sum());
        }
        ridge.observe(x, y);
        observer.observe(x, y);
        lasso.observe(x, y);
    }
    out
}

/// How often the exact posterior over bases, given the K − 1 complete pairs before the last query, is highest at the
/// true basis, on the very sequences that [`super::td`] uses. (The query itself says nothing about the basis.) Of equally
/// probable bases the first is named.
fn td_bound(
    seed: u64,
    data: &SparseLinear,
    samples_per_task: u32,
    sink: &mut dyn Sink,
) -> Result<Vec<TdBound>, ScienceError> {
    let shots = data.examples - 1;
    let mut right = vec![0u32; data.bases as usize];
    in_batches(u64::from(samples_per_task) * u64::from(data.bases), sink, |indices| {
        let sequences = decoded(seed, data, indices);
        let named = each(&sequences, |data, sequence| {
            let mut observer = IdealObserver::new(data);
            sequence.pairs().take(shots as usize).for_each(|(x, y)| observer.observe(x, y));
            observer.most_probable()
        });
        for (&basis, named) in sequences.basis.iter().zip(named) {
            right[basis as usize] += u32::from(basis as usize == named);
        }
        Ok(())
    })?;
    let row =
        |(latent_task, right)| TdBound { latent_task, shots, value: f64::from(right) / f64::from(samples_per_task) };
    Ok(data.latent_tasks().into_iter().zip(right).map(row).collect())
}

/// One sequence in f64.
struct Sequence {
    basis: u32,
    dim: usize,
    x: Vec<f64>,
    y: Vec<f64>,
}

impl Sequence {
    fn pairs(&self) -> impl Iterator<Item = (&[f64], f64)> {
        self.x.chunks_exact(self.dim).zip(self.y.iter().copied())
    }
}

/// Applies `f` to every sequence, in parallel; answers in their order.
fn each<T: Send>(sequences: &Sequences, f: impl Fn(&SparseLinear, &Sequence) -> T + Sync) -> Vec<T> {
    let data = &sequences.data;
    let (dim, examples) = (data.dim as usize, data.examples as usize);
    (sequences.basis.par_iter())
        .zip(sequences.x.par_chunks_exact(examples * dim))
        .zip(sequences.y.par_chunks_exact(examples))
        .map(|((&basis, x), y)| f(data, &Sequence { basis, dim, x: widen(x), y: widen(y) }))
        .collect()
}

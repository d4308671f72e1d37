//! The ideal observer of a mixture of bases: the exact posterior over them, and what each of them predicts.

use super::posterior::Posterior;
use taskvec_model::spec::SparseLinear;

/// Knows how sequences are made (bases, prior, noise) and sees one sequence, pair by pair.
///
/// Bases are equally likely before the first pair; given basis k the weights on its coordinates are
/// N(weight_mean, 1), independently, and zero elsewhere.
#[derive(Clone, Debug)]
pub struct IdealObserver {
    hypotheses: Vec<Hypothesis>,
}

/// One basis: the posterior over its weights, and the log of its marginal likelihood so far.
#[derive(Clone, Debug)]
struct Hypothesis {
    coordinates: Vec<usize>,
    weights: Posterior,
    log_evidence: f64,
    /// Scratch: x on the coordinates of this basis.
    x: Vec<f64>,
}

impl Hypothesis {
    fn select(&mut self, x: &[f64]) {
        for (s, &c) in self.x.iter_mut().zip(&self.coordinates) {
            *s = x[c];
        }
    }
}

impl IdealObserver {
    /// Before the first pair.
    pub fn new(data: &SparseLinear) -> Self {
        let hypothesis = |k| {
            let coordinates: Vec<usize> = data.coordinates(k).into_iter().map(|c| c as usize).collect();
            let rank = coordinates.len();
            let weights = Posterior::prior(rank, data.weight_mean, 1.0, data.noise_variance);
            Hypothesis { coordinates, weights, log_evidence: 0.0, x: vec![0.0; rank] }
        };
        Self { hypotheses: (0..data.bases).map(hypothesis).collect() }
    }

    /// What each basis, taken as the true one, predicts for y at `x` (D values): posterior means, in order of bases.
    pub fn predict_by_basis(&mut self, x: &[f64]) -> Vec<f64> {
        let one = |h: &mut Hypothesis| {
            h.select(x);
            h.weights.predict(&h.x)
        };
        self.hypotheses.iter_mut().map(one).collect()
    }

    /// Takes in the pair (x, y).
    pub fn observe(&mut self, x: &[f64], y: f64) {
        for h in &mut self.hypotheses {
            h.select(x);
            h.log_evidence += h.weights.observe(&h.x, y).log_density(y);
        }
    }

    /// Log marginal likelihood of the pairs seen so far, for each basis.
    pub fn log_evidence(&self) -> Vec<f64> {
        self.hypotheses.iter().map(|h| h.log_evidence).collect()
    }

    /// Probability of each basis given the pairs seen so far.
    pub fn posterior(&self) -> Vec<f64> {
        let top = self.hypotheses.iter().map(|h| h.log_evidence).fold(f64::NEG_INFINITY, f64::max);
        let mut weights: Vec<f64> = self.hypotheses.iter().map(|h| (h.log_evidence - top).exp()).collect();
        let total: f64 = weights.iter().sum();
        weights.iter_mut().for_each(|w| *w /= total);
        weights
    }

    /// The most probable basis (from 0); of equally probable ones the first.
    pub fn most_probable(&self) -> usize {
        let mut best = 0;
        for (k, h) in self.hypotheses.iter().enumerate() {
            if h.log_evidence > self.hypotheses[best].log_evidence {
                best = k;
            }
        }
        best
    }
}

/// The posterior mean of y over all bases: their predictions weighted by their probabilities.
pub fn mix(posterior: &[f64], predictions: &[f64]) -> f64 {
    posterior.iter().zip(predictions).map(|(p, y)| p * y).sum()
}

//! Bayesian linear regression with known noise: the conjugate Gaussian posterior over the weights, one pair at a time.

/// Noise variances below this are raised to it: with none at all the predictive variance vanishes once the weights are
/// determined, and rounding (targets are f32) would decide between hypotheses. A deviation of 1e-5 is far below any
/// error worth reporting and far above that rounding.
pub const LEAST_NOISE_VARIANCE: f64 = 1e-10;

/// The posterior N(mean, covariance) of w in y = w·x + e, e ~ N(0, noise variance).
///
/// Updated by one pair at a time (the measurement update of a Kalman filter with a constant state), which costs O(d²)
/// and yields on the way what every estimator here needs: the prediction of the next y from the pairs before it, and
/// its density, whose product over the pairs is the exact marginal likelihood.
#[derive(Clone, Debug)]
pub struct Posterior {
    mean: Vec<f64>,
    /// d × d, symmetric.
    covariance: Vec<f64>,
    noise_variance: f64,
    /// Scratch: covariance · x.
    gain: Vec<f64>,
}

/// The predictive distribution N(mean, variance) of a y, noise included.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Predictive {
    pub mean: f64,
    pub variance: f64,
}

impl Predictive {
    /// Natural logarithm of the density at `y`.
    pub fn log_density(self, y: f64) -> f64 {
        let error = y - self.mean;
        -0.5 * (error * error / self.variance + self.variance.ln() + (2.0 * std::f64::consts::PI).ln())
    }
}

impl Posterior {
    /// The prior N(mean·1, variance·I) over `dim` weights.
    pub fn prior(dim: usize, mean: f64, variance: f64, noise_variance: f64) -> Self {
        let mut covariance = vec![0.0; dim * dim];
        for i in 0..dim {
            covariance[i * dim + i] = variance;
        }
        let noise_variance = noise_variance.max(LEAST_NOISE_VARIANCE);
        Self { mean: vec![mean; dim], covariance, noise_variance, gain: vec![0.0; dim] }
    }

    /// Posterior mean of y at `x`.
    pub fn predict(&self, x: &[f64]) -> f64 {
        dot(&self.mean, x)
    }

    /// Takes in the pair (x, y); returns what was predicted for y before it was seen.
    pub fn observe(&mut self, x: &[f64], y: f64) -> Predictive {
        let dim = self.mean.len();
        for (g, row) in self.gain.iter_mut().zip(self.covariance.chunks_exact(dim)) {
            *g = dot(row, x);
        }
        // Rounding may leave a direction that is all but determined with a tiny negative variance.
        let variance = dot(&self.gain, x).max(0.0) + self.noise_variance;
        let predicted = Predictive { mean: self.predict(x), variance };
        let step = (y - predicted.mean) / variance;
        for (m, g) in self.mean.iter_mut().zip(&self.gain) {
            *m += g * step;
        }
        for (row, gi) in self.covariance.chunks_exact_mut(dim).zip(&self.gain) {
            for (c, gj) in row.iter_mut().zip(&self.gain) {
                *c -= gi * gj / variance;
            }
        }
        predicted
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

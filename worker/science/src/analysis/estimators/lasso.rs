//! LASSO on all D coordinates, solved exactly by an active-set method.

use crate::analysis::linalg::solve_positive_definite;

/// Penalties tried: half decades over the range of Garg et al. 2022, largest first.
pub const PENALTIES: [f64; 9] = [1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 3e-4, 1e-4];

/// A coordinate outside the support enters when its slope exceeds the threshold by more than this fraction.
const SLACK: f64 = 1e-9;

/// The LASSO of the pairs seen so far, without intercept and in scikit-learn's scale:
/// argmin over w of |y − X w|² / (2 n) + penalty · |w|₁, for n pairs.
///
/// Keeps only XᵀX and Xᵀy, however many pairs there are.
#[derive(Clone, Debug)]
pub struct Lasso {
    dim: usize,
    pairs: usize,
    /// XᵀX, D × D.
    gram: Vec<f64>,
    /// Xᵀy.
    moment: Vec<f64>,
}

impl Lasso {
    pub fn new(dim: usize) -> Self {
        Self { dim, pairs: 0, gram: vec![0.0; dim * dim], moment: vec![0.0; dim] }
    }

    /// Takes in the pair (x, y).
    pub fn observe(&mut self, x: &[f64], y: f64) {
        self.pairs += 1;
        for (row, xi) in self.gram.chunks_exact_mut(self.dim).zip(x) {
            for (g, xj) in row.iter_mut().zip(x) {
                *g += xi * xj;
            }
        }
        for (m, xi) in self.moment.iter_mut().zip(x) {
            *m += xi * y;
        }
    }

    /// The weights at each of `penalties`, which must fall: each solution starts from the one before.
    pub fn path(&self, penalties: &[f64]) -> Vec<Vec<f64>> {
        let mut weights = vec![0.0; self.dim];
        let at = |&penalty| {
            self.solve(penalty, &mut weights);
            weights.clone()
        };
        penalties.iter().map(at).collect()
    }

    /// Moves `weights` from the solution at a larger penalty (or from 0) to the one at `penalty`.
    ///
    /// The feature-sign search of Lee et al. 2006: with the signs of the support held the problem is quadratic and
    /// solved exactly; coordinates leave when they reach 0 and enter, one at a time, when their slope is too steep.
    /// Every step lowers the objective, so it ends, at the exact minimum. (Coordinate descent, the usual method, needs
    /// thousands of sweeps where pairs are fewer than weights: 15 s instead of 1 s for 1000 sequences at D = 16, K = 20.)
    fn solve(&self, penalty: f64, weights: &mut [f64]) {
        let threshold = penalty * self.pairs as f64;
        // Far above what is needed; only a problem that rounding makes degenerate could get here.
        let most_steps = 100 * self.dim;
        for _ in 0..most_steps {
            self.minimise_on_support(threshold, weights);
            let Some(j) = self.steepest_outside(threshold, weights) else { return };
            self.enter(j, threshold, weights);
        }
    }

    fn support(&self, weights: &[f64]) -> Vec<usize> {
        (0..self.dim).filter(|&j| weights[j] != 0.0).collect()
    }

    /// Component `j` of Xᵀ(y − X w).
    fn slope(&self, j: usize, weights: &[f64]) -> f64 {
        let row = &self.gram[j * self.dim..(j + 1) * self.dim];
        self.moment[j] - row.iter().zip(weights).map(|(g, w)| g * w).sum::<f64>()
    }

    /// The coordinate that most violates the optimality condition |slope| ≤ threshold where w is 0.
    fn steepest_outside(&self, threshold: f64, weights: &[f64]) -> Option<usize> {
        let outside = (0..self.dim).filter(|&j| weights[j] == 0.0).map(|j| (j, self.slope(j, weights).abs()));
        let (j, slope) = outside.reduce(|best, next| if next.1 > best.1 { next } else { best })?;
        (slope > threshold * (1.0 + SLACK)).then_some(j)
    }

    /// Minimises over the support with its signs held, up to the first weight that would change its sign; that one
    /// becomes 0, and the rest go on.
    fn minimise_on_support(&self, threshold: f64, weights: &mut [f64]) {
        loop {
            let support = self.support(weights);
            let right = support.iter().map(|&j| self.moment[j] - threshold * weights[j].signum()).collect();
            let Some(target) = self.solve_on(&support, right) else { return };
            let direction: Vec<f64> = support.iter().zip(target).map(|(&j, to)| to - weights[j]).collect();
            if !advance(&support, &direction, 1.0, weights) {
                return;
            }
        }
    }

    /// Lets coordinate `j` in, from the minimum over the support: as far as the objective falls, or until another weight
    /// reaches 0. With as many weights as pairs the fit stays the same on the way and only |w|₁ falls.
    fn enter(&self, j: usize, threshold: f64, weights: &mut [f64]) {
        let mut support = self.support(weights);
        let slope = self.slope(j, weights);
        let shared: Vec<f64> = support.iter().map(|&i| self.gram[i * self.dim + j]).collect();
        let Some(response) = self.solve_on(&support, shared.clone()) else { return };
        let own = self.gram[j * self.dim + j];
        let curvature = own - shared.iter().zip(&response).map(|(s, r)| s * r).sum::<f64>();
        let longest = if curvature > 1e-10 * own { (slope.abs() - threshold) / curvature } else { f64::INFINITY };
        let mut direction: Vec<f64> = response.iter().map(|r| -slope.signum() * r).collect();
        support.push(j);
        direction.push(slope.signum());
        advance(&support, &direction, longest, weights);
    }

    /// Solves (XᵀX restricted to `support`)·v = `right`.
    fn solve_on(&self, support: &[usize], mut right: Vec<f64>) -> Option<Vec<f64>> {
        let entry = |i: usize| support.iter().map(move |&j| self.gram[i * self.dim + j]);
        let mut gram: Vec<f64> = support.iter().flat_map(|&i| entry(i)).collect();
        solve_positive_definite(&mut gram, &mut right).then_some(right)
    }
}

/// Moves the weights of `support` along `direction`, at most `longest` times its length and no farther than to the first
/// weight that reaches 0, which is then exactly 0. True where there was one.
fn advance(support: &[usize], direction: &[f64], longest: f64, weights: &mut [f64]) -> bool {
    let reaches_zero = |(&j, &d): (&usize, &f64)| (weights[j] * d < 0.0).then(|| (-weights[j] / d, j));
    let first = support.iter().zip(direction).filter_map(reaches_zero).min_by(|a, b| a.0.total_cmp(&b.0));
    let stop = first.filter(|&(length, _)| length <= longest);
    let length = stop.map_or(longest, |(length, _)| length);
    if length.is_finite() {
        for (&j, d) in support.iter().zip(direction) {
            weights[j] += length * d;
        }
    }
    if let Some((_, j)) = stop {
        weights[j] = 0.0;
    }
    stop.is_some()
}

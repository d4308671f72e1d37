//! Reference estimators for sparse linear regression: what can be predicted of y_p from the pairs before it and x_p.
//!
//! Pure mathematics on f64 slices; `super::baselines` feeds them sequences.

pub mod bayes;
pub mod lasso;
mod posterior;
pub mod ridge;

pub use posterior::{LEAST_NOISE_VARIANCE, Posterior, Predictive};

//! Adam with global-norm clipping, as `torch.optim.Adam` (with weight decay, `AdamW`) and
//! `torch.nn.utils.clip_grad_norm_`.

use candle_core::{Result, Tensor, backprop::GradStore};
use taskvec_kernels::{Adam, sum_of_squares};
use taskvec_model::spec::{OptimizerKind, OptimizerSpec};

/// Added to the norm that gradients are divided by when they are clipped, as in PyTorch.
pub(crate) const CLIP_EPSILON: f64 = 1e-6;

/// First and second moments of one parameter, of its shape.
pub struct Moments {
    pub m: Tensor,
    pub v: Tensor,
}

/// The update that is asked for.
pub fn adam(spec: &OptimizerSpec) -> Adam {
    let OptimizerKind::Adam = spec.kind;
    let [beta1, beta2] = spec.betas;
    Adam { beta1, beta2, epsilon: spec.epsilon, weight_decay: spec.weight_decay }
}

pub struct Optimizer {
    adam: Adam,
    clip_norm: Option<f64>,
    /// One per parameter, in the model's order.
    moments: Vec<Moments>,
}

impl Optimizer {
    /// At the start of training: all moments 0. Gradients whose global norm is above `clip_norm` are scaled down to it.
    pub fn new(spec: &OptimizerSpec, clip_norm: Option<f64>, parameters: &[(String, Tensor)]) -> Result<Self> {
        let zero = |(_, p): &(String, Tensor)| Ok(Moments { m: p.zeros_like()?, v: p.zeros_like()? });
        Ok(Self::with_moments(spec, clip_norm, parameters.iter().map(zero).collect::<Result<_>>()?))
    }

    /// With the moments of an earlier state, in the order of the parameters.
    pub fn with_moments(spec: &OptimizerSpec, clip_norm: Option<f64>, moments: Vec<Moments>) -> Self {
        Self { adam: adam(spec), clip_norm, moments }
    }

    pub fn moments(&self) -> &[Moments] {
        &self.moments
    }

    /// Applies update `step` (from 1) to all parameters in place and returns the gradients' norm before clipping.
    /// Where that is not finite, nothing is changed.
    pub fn update(
        &self,
        parameters: &[(String, Tensor)],
        gradients: &GradStore,
        learning_rate: f64,
        step: u64,
    ) -> Result<f64> {
        let gradient = |name: &str, parameter: &Tensor| match gradients.get(parameter) {
            Some(g) => Ok(g),
            None => candle_core::bail!("no gradient reached parameter {name}"),
        };
        let mut squares = 0.0;
        for (name, parameter) in parameters {
            squares += sum_of_squares(gradient(name, parameter)?)?;
        }
        let norm = squares.sqrt();
        if !norm.is_finite() {
            return Ok(norm);
        }
        let scale = self.clip_norm.map_or(1.0, |limit| (limit / (norm + CLIP_EPSILON)).min(1.0));
        for ((name, parameter), Moments { m, v }) in parameters.iter().zip(&self.moments) {
            self.adam.update(parameter, gradient(name, parameter)?, m, v, learning_rate, step, scale)?;
        }
        Ok(norm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    /// A parameter (3, 4) whose gradient is itself times `factor`, after one update: the norm, the parameter, the moment.
    fn updated(clip_norm: Option<f64>, factor: f64, weight_decay: f64) -> (f64, Vec<f32>, Vec<f32>) {
        let var = Var::new(&[3.0f32, 4.0], &Device::Cpu).unwrap();
        let parameters = [("w".to_owned(), var.as_tensor().clone())];
        let kind = OptimizerKind::Adam;
        let spec = OptimizerSpec { kind, learning_rate: 0.1, betas: [0.9, 0.999], epsilon: 1e-8, weight_decay };
        let optimizer = Optimizer::new(&spec, clip_norm, &parameters).unwrap();
        let loss = (var.sqr().unwrap().sum_all().unwrap() * (factor / 2.0)).unwrap();
        let norm = optimizer.update(&parameters, &loss.backward().unwrap(), 0.1, 1).unwrap();
        (norm, var.to_vec1().unwrap(), optimizer.moments()[0].m.to_vec1().unwrap())
    }

    #[test]
    fn gradients_are_scaled_down_to_the_norm_and_never_up() {
        for (clip, scale) in [(None, 1.0), (Some(10.0), 1.0), (Some(1.0), 0.2)] {
            let (norm, _, m) = updated(clip, 1.0, 0.0);
            assert!((norm - 5.0).abs() < 1e-6, "the norm before clipping: {norm}");
            for (m, gradient) in m.iter().zip([3.0, 4.0]) {
                assert!((f64::from(*m) - 0.1 * scale * gradient).abs() < 1e-6, "{clip:?}: {m}");
            }
        }
    }

    #[test]
    fn weights_decay_apart_from_the_gradient() {
        let ((norm, with, m), (same_norm, without, same_m)) = (updated(None, 1.0, 0.3), updated(None, 1.0, 0.0));
        assert_eq!((norm, m), (same_norm, same_m));
        for ((with, without), before) in with.into_iter().zip(without).zip([3.0, 4.0]) {
            assert!((without - with - 0.1 * 0.3 * before).abs() < 1e-6, "{with} and {without}");
        }
    }

    #[test]
    fn a_gradient_that_is_not_finite_changes_nothing() {
        for factor in [f64::INFINITY, f64::NAN] {
            let (norm, values, m) = updated(None, factor, 0.3);
            assert!(!norm.is_finite());
            assert_eq!((values, m), (vec![3.0, 4.0], vec![0.0, 0.0]));
        }
    }
}

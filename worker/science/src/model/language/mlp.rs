//! What a block does to each token on its own.

use super::linear::{Linear, Projection};
use candle_core::{Result, Tensor};
use taskvec_kernels::{Activation, gated, gated_linear};

#[derive(Clone)]
pub(crate) struct Mlp {
    pub(crate) kind: Kind,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
}

#[derive(Clone)]
pub(crate) enum Kind {
    /// `down(activation(gate(x)) · up(x))`.
    Gated { gate: Linear, activation: Activation },
    /// `down(gelu(up(x)))`, GELU in its tanh form.
    Gelu,
}

impl Mlp {
    /// Would `x` be rounded to bf16 by all that reads it?
    pub(crate) fn rounds(&self, x: &Tensor) -> bool {
        let gate = if let Kind::Gated { gate, .. } = &self.kind { gate.rounds(x) } else { true };
        gate && self.up.rounds(x)
    }

    /// What `down` is given: (N, d) to (N, inner width).
    pub(crate) fn before_down(&self, x: &Tensor) -> Result<Tensor> {
        match &self.kind {
            Kind::Gated { gate, activation } if self.joins(gate, x) => {
                gated_linear(x, [gate.weight(), self.up.weight()], *activation)
            }
            Kind::Gated { gate, activation } => gated(&gate.forward(x)?, &self.up.forward(x)?, *activation),
            Kind::Gelu => self.up.forward(x)?.gelu(),
        }
    }

    /// Can gate and up be one operation, that no gradient goes through?
    fn joins(&self, gate: &Linear, x: &Tensor) -> bool {
        let both = [gate, &self.up];
        let wide = both.iter().all(|linear| linear.is_plain_f32(x));
        both.iter().all(|linear| linear.bias().is_none()) && (wide || self.rounds(x) && self.down.rounds(x))
    }

    pub(crate) fn linear_mut(&mut self, projection: Projection) -> Option<&mut Linear> {
        match (projection, &mut self.kind) {
            (Projection::Gate, Kind::Gated { gate, .. }) => Some(gate),
            (Projection::Up, _) => Some(&mut self.up),
            (Projection::Down, _) => Some(&mut self.down),
            _ => None,
        }
    }
}

//! Launches of what language models have beside the other layers.

use super::{Bytes, Call};
use crate::Activation;

/// `tokens` of some heads, of which 2·`pairs` elements turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turned {
    pub tokens: usize,
    pub heads: usize,
    /// Of a head.
    pub dim: usize,
    pub pairs: usize,
}

/// Rotary positions as [`rotate`](crate::rotate()): `x` and `out` (N, H, D), cosine and sine (N, R). `back` turns by the
/// negative angle, which is the backward.
pub fn rotate<B: Bytes>(of: Turned, back: bool, [x, cos, sin, out]: [B; 4]) -> Call<B> {
    assert!(2 * of.pairs <= of.dim, "{of:?} turns more than it has");
    let len = of.tokens * of.heads * of.dim;
    Call::each("rotate", len, 1)
        .floats(x, len)
        .floats(cos, of.tokens * of.pairs)
        .floats(sin, of.tokens * of.pairs)
        .float(if back { -1.0 } else { 1.0 })
        .int(of.tokens)
        .int(of.heads)
        .int(of.dim)
        .int(of.pairs)
        .floats(out, len)
}

/// Rows of gate and up, which may lie apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gates {
    pub activation: Activation,
    pub rows: usize,
    pub width: usize,
    /// From row to row, of gate and of up.
    pub strides: [usize; 2],
}

impl Gates {
    fn reach(self, stride: usize) -> usize {
        assert!(stride >= self.width, "rows of {} overlap at a distance of {stride}", self.width);
        (self.rows - 1) * stride + self.width
    }

    fn inputs<B: Bytes>(self, kernel: &'static str, [gate, up]: [B; 2]) -> Call<B> {
        let [of_gate, of_up] = self.strides;
        Call::each(kernel, self.rows * self.width, 1)
            .floats(gate, self.reach(of_gate))
            .long(of_gate)
            .floats(up, self.reach(of_up))
            .long(of_up)
    }

    fn sizes<B: Bytes>(self, call: Call<B>) -> Call<B> {
        let which = match self.activation {
            Activation::Silu => 0,
            Activation::GeluTanh => 1,
        };
        call.int(which).int(self.rows).int(self.width)
    }

    /// `activation(gate) · up`, dense.
    pub fn forward<B: Bytes>(self, [gate, up, out]: [B; 3]) -> Call<B> {
        self.sizes(self.inputs("gated_forward", [gate, up])).floats(out, self.rows * self.width)
    }

    /// The gradients of gate and up, dense, where wanted.
    pub fn backward<B: Bytes>(self, [gate, up, grad]: [B; 3], [dgate, dup]: [Option<B>; 2]) -> Call<B> {
        let len = self.rows * self.width;
        self.sizes(self.inputs("gated_backward", [gate, up]).floats(grad, len))
            .maybe_floats(dgate, len)
            .maybe_floats(dup, len)
    }
}

/// Some rows of `logits` (rows, classes) and what should have been predicted there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Targets {
    pub rows: usize,
    pub classes: usize,
    /// Of all runs.
    pub targets: usize,
}

/// Bytes that the backward needs of each target.
pub const NORM: usize = 2 * size_of::<f64>();

impl Targets {
    fn inputs<B: Bytes>(self, kernel: &'static str, [logits, positions, targets]: [B; 3]) -> Call<B> {
        Call::new(kernel, [self.targets, 1, 1])
            .floats(logits, self.rows * self.classes)
            .buffer::<u32>(positions, self.targets)
            .buffer::<u32>(targets, self.targets)
            .int(self.classes)
    }

    /// `−log softmax` at each target (f64) to `losses`, and what the backward needs to `norms` (targets × [`NORM`] bytes).
    /// `positions` below `rows` and `targets` below `classes`, both u32, are trusted.
    pub fn forward<B: Bytes>(self, inputs: [B; 3], [losses, norms]: [B; 2]) -> Call<B> {
        self.inputs("cross_entropy_forward", inputs)
            .buffer::<f64>(losses, self.targets)
            .buffer::<u8>(norms, self.targets * NORM)
    }

    /// The mean of each run's losses, in f64, where all runs have as many.
    pub fn mean<B: Bytes>(self, runs: usize, [losses, mean]: [B; 2]) -> Call<B> {
        assert_eq!(self.targets % runs, 0, "runs share the targets evenly");
        Call::new("cross_entropy_mean", [1, runs, 1])
            .buffer::<f64>(losses, self.targets)
            .int(self.targets / runs)
            .buffer::<f64>(mean, runs)
    }

    /// `(softmax − [the target]) · factor`, (targets, classes).
    pub fn backward<B: Bytes>(self, inputs: [B; 3], factor: f64, [norms, slopes]: [B; 2]) -> Call<B> {
        self.inputs("cross_entropy_backward", inputs)
            .buffer::<u8>(norms, self.targets * NORM)
            .double(factor)
            .floats(slopes, self.targets * self.classes)
    }
}

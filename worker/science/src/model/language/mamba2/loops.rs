//! What stands around the scan, as loops on the processor: the causal convolution before it, the gated norm after it.

use super::real::{Real, dot};
use rayon::prelude::*;
use std::ops::Range;

/// Some neighbouring columns of a matrix of rows of `width` elements.
#[derive(Clone, Copy, Debug)]
pub struct Columns<'a, T> {
    pub data: &'a [T],
    pub width: usize,
    pub first: usize,
    pub count: usize,
}

impl<'a, T> Columns<'a, T> {
    fn row(&self, i: usize) -> &'a [T] {
        &self.data[i * self.width + self.first..][..self.count]
    }
}

/// A convolution over the last K tokens, for each channel by itself.
#[derive(Clone, Copy, Debug)]
pub struct Convolution<'a, T> {
    /// (K, C); the last is for the token itself.
    pub weight: &'a [T],
    /// (C).
    pub bias: Option<&'a [T]>,
}

/// `silu(Σₖ wₖ·inputₜ₋ₖ + b)`, (N, C), for `rows` that follow one after the other. `states` (rows, K − 1, C) are the
/// last inputs before each row, oldest first, and become those before its next token.
pub fn convolve<T: Real>(
    rows: &[Range<usize>],
    input: Columns<'_, T>,
    convolution: Convolution<'_, T>,
    states: &mut [T],
) -> Vec<T> {
    let channels = input.count;
    let before = convolution.weight.len() / channels - 1;
    let mut out = vec![T::zero(); rows.iter().map(Range::len).sum::<usize>() * channels];
    let mut rest = out.as_mut_slice();
    for (i, row) in rows.iter().enumerate() {
        let state = &mut states[i * before * channels..][..before * channels];
        let (here, later) = rest.split_at_mut(row.len() * channels);
        rest = later;
        let inputs = Inputs { state, before, tokens: input, first: row.start };
        here.par_chunks_mut(channels).enumerate().for_each(|(t, out)| {
            mix((t..=t + before).map(|t| inputs.get(t)), convolution, out);
        });
        let last: Vec<T> = (row.len()..row.len() + before).flat_map(|t| inputs.get(t).iter().copied()).collect();
        state.copy_from_slice(&last);
    }
    out
}

/// What one row's convolution reads: the inputs that its state holds, then those of its tokens.
#[derive(Clone, Copy)]
struct Inputs<'a, T> {
    state: &'a [T],
    before: usize,
    tokens: Columns<'a, T>,
    first: usize,
}

impl<'a, T> Inputs<'a, T> {
    fn get(&self, t: usize) -> &'a [T] {
        match t.checked_sub(self.before) {
            None => &self.state[t * self.tokens.count..][..self.tokens.count],
            Some(t) => self.tokens.row(self.first + t),
        }
    }
}

/// One token: `inputs` are its last K, oldest first.
fn mix<'a, T: Real>(inputs: impl Iterator<Item = &'a [T]>, convolution: Convolution<'_, T>, out: &mut [T]) {
    if let Some(bias) = convolution.bias {
        out.copy_from_slice(bias);
    }
    for (input, weight) in inputs.zip(convolution.weight.chunks(out.len())) {
        for ((out, x), w) in out.iter_mut().zip(input).zip(weight) {
            *out += *x * *w;
        }
    }
    out.iter_mut().for_each(|x| *x = x.silu());
}

/// `Δ = clamp(softplus(raw + bias), limits)`, (N, H), for `bias` (H).
pub fn steps<T: Real>(raw: Columns<'_, T>, bias: &[T], limits: (T, T)) -> Vec<T> {
    let tokens = raw.data.len() / raw.width;
    let step = |(raw, bias): (&T, &T)| {
        let step = (*raw + *bias).softplus();
        if step < limits.0 {
            limits.0
        } else if step > limits.1 {
            limits.1
        } else {
            step
        }
    };
    (0..tokens).flat_map(|i| raw.row(i).iter().zip(bias).map(step)).collect()
}

/// A norm of `groups` equal parts, each by itself.
#[derive(Clone, Copy, Debug)]
pub struct GroupNorm<'a, T> {
    /// (C).
    pub weight: &'a [T],
    pub groups: usize,
    pub eps: T,
}

/// `norm(y·silu(z))` of `y` (N, C) and the columns `z`, in place of `y`.
pub fn gate<T: Real>(y: &mut [T], z: Columns<'_, T>, norm: GroupNorm<'_, T>) {
    let part = z.count / norm.groups;
    y.par_chunks_mut(z.count).enumerate().for_each(|(i, y)| {
        y.iter_mut().zip(z.row(i)).for_each(|(y, z)| *y *= z.silu());
        for (y, weight) in y.chunks_mut(part).zip(norm.weight.chunks(part)) {
            let scale = T::one() / (dot(y, y) / T::of(part as f64) + norm.eps).square_root();
            y.iter_mut().zip(weight).for_each(|(y, w)| *y *= scale * *w);
        }
    });
}

//! One piece of a batch on its way through the model and back.

use super::{
    pool::{self, Pool},
    views_mut,
};
use crate::{
    data::Sequences,
    model::{Affine, Block, LAYER_NORM_EPSILON as EPSILON, Parameters, Sizes},
};
use std::{ops::Range, sync::Arc};
use taskvec_kernels::{
    Precision,
    slices::{self, Products, Sequences as Shape},
};

/// Some sequences of a batch, and the gradients that they gave.
pub(super) struct Piece {
    sizes: Sizes,
    /// Which sequences of the batch.
    range: Range<usize>,
    how: How,
    /// Where passes take their memory from.
    pool: Arc<Pool>,
    gradients: Vec<f32>,
}

/// What a pass works in: space for n tokens of some sequences, which are all but the last of each, which nothing follows that could
/// read it; or for the r of them at x positions, where y is predicted.
#[derive(Default)]
pub(super) struct Memory {
    /// (n, C).
    tokens: Vec<f32>,
    blocks: Vec<Space>,
    /// What leaves the last block at x, and its norm: (r, d).
    last: Vec<f32>,
    normed: Vec<f32>,
    /// (r), then their errors.
    predicted: Vec<f32>,
    back: Back,
}

/// How the layers are computed.
#[derive(Clone, Copy)]
struct How {
    shape: Shape,
    products: Products,
}

/// What a block keeps for its way back. The last block needs r rows after its attention, all others n.
#[derive(Default)]
struct Space {
    x: Vec<f32>,
    normed: Vec<f32>,
    qkv: Vec<f32>,
    read: Vec<f32>,
    mid: Vec<f32>,
    normed_mid: Vec<f32>,
    hidden: Vec<f32>,
    slope: Vec<f32>,
}

/// Gradients on the way back, used again by every block.
#[derive(Default)]
struct Back {
    /// By the residual stream, (n, d).
    stream: Vec<f32>,
    /// (n, d).
    narrow: Vec<f32>,
    /// (n, 3d).
    qkv: Vec<f32>,
    /// (n, 4d).
    wide: Vec<f32>,
}

impl Piece {
    /// Sequences `range` of a batch, for a model of `parameters` parameters.
    pub fn new(sizes: Sizes, range: Range<usize>, parameters: usize, precision: Precision) -> Self {
        let shape = Shape { tokens: sizes.positions - 1, width: sizes.width, heads: sizes.heads };
        let (how, pool) = (How { shape, products: Products { precision } }, pool::of(sizes));
        Self { sizes, range, how, pool, gradients: vec![0.0; parameters] }
    }

    /// Its sequences' places in the batch.
    pub fn indices(&self) -> Range<u64> {
        self.range.start as u64..self.range.end as u64
    }

    /// Predictions it makes, r.
    pub fn targets(&self) -> usize {
        self.range.len() * self.sizes.positions / 2
    }

    /// Those of the last pass.
    pub fn gradients(&self) -> &[f32] {
        &self.gradients
    }

    /// Sums of squared errors, of the predictions and of predicting 0. Leaves the gradients of their mean over `targets`
    /// predictions.
    pub fn pass(&mut self, parameters: &Parameters<&[f32]>, batch: &Sequences, targets: usize) -> [f64; 2] {
        let mut memory = self.pool.take();
        memory.fit(self.sizes, self.range.len());
        batch.write_tokens(&mut memory.tokens);
        memory.forward(parameters, self.how);
        let mut sums = [0.0; 2];
        for (predicted, y) in memory.predicted.iter_mut().zip(&batch.y) {
            let error = f64::from(*predicted) - f64::from(*y);
            sums[0] += error * error;
            sums[1] += f64::from(*y).powi(2);
            *predicted = (2.0 * error / targets as f64) as f32;
        }
        memory.backward(parameters, self.how, views_mut(self.sizes, &mut self.gradients));
        self.pool.give_back(memory);
        sums
    }
}

impl Memory {
    /// Makes room for so many sequences, whatever it was for before.
    pub fn fit(&mut self, sizes: Sizes, sequences: usize) {
        let (d, n, r) = (sizes.width, sequences * (sizes.positions - 1), sequences * sizes.positions / 2);
        self.blocks.resize_with(sizes.layers, Space::default);
        for (i, space) in self.blocks.iter_mut().enumerate() {
            let after = if i + 1 == sizes.layers { r } else { n };
            let Space { x, normed, qkv, read, mid, normed_mid, hidden, slope } = space;
            [x, normed, read].into_iter().for_each(|to| resize(to, n * d));
            resize(qkv, 3 * n * d);
            [mid, normed_mid].into_iter().for_each(|to| resize(to, after * d));
            [hidden, slope].into_iter().for_each(|to| resize(to, 4 * after * d));
        }
        let Back { stream, narrow, qkv, wide } = &mut self.back;
        for (to, times) in [(stream, 1), (narrow, 1), (qkv, 3), (wide, 4)] {
            resize(to, times * n * d);
        }
        resize(&mut self.tokens, n * sizes.channels);
        [&mut self.last, &mut self.normed].into_iter().for_each(|to| resize(to, r * d));
        resize(&mut self.predicted, r);
    }

    fn forward(&mut self, p: &Parameters<&[f32]>, how: How) {
        let first = &mut self.blocks[0].x;
        how.products.linear_t(&self.tokens, p.read_in.weight, p.read_in.bias, first);
        let positions = &p.positions[..how.shape.tokens * how.shape.width];
        first.chunks_exact_mut(positions.len()).for_each(|sequence| slices::add(sequence, positions));
        let mut blocks = self.blocks.as_mut_slice();
        for block in &p.blocks {
            let Some((space, rest)) = blocks.split_first_mut() else { break };
            match rest.first_mut() {
                Some(next) => space.forward(block, how, &mut next.x),
                None => space.forward_at_x(block, how, &mut self.back.wide, &mut self.last),
            }
            blocks = rest;
        }
        slices::layer_norm(&self.last, p.ln_f.weight, p.ln_f.bias, EPSILON, &mut self.normed);
        how.products.linear_t(&self.normed, p.read_out.weight, p.read_out.bias, &mut self.predicted);
    }

    fn backward(&mut self, p: &Parameters<&[f32]>, how: How, mut by: Parameters<&mut [f32]>) {
        let (d, r) = (how.shape.width, self.predicted.len());
        let errors = self.predicted.as_slice();
        how.products.gradient_of_linear_t(&self.normed, errors, by.read_out.weight, by.read_out.bias);
        let (narrow, stream) = (&mut self.back.narrow[..r * d], &mut self.back.stream[..r * d]);
        how.products.gradient_of_input_t(errors, p.read_out.weight, 1, narrow);
        stream.fill(0.0);
        norm_backward(&self.last, &p.ln_f, narrow, stream, &mut by.ln_f);
        for (i, space) in self.blocks.iter_mut().enumerate().rev() {
            space.backward(&p.blocks[i], how, &mut self.back, &mut by.blocks[i]);
        }
        let stream = self.back.stream.as_slice();
        how.products.gradient_of_linear_t(&self.tokens, stream, by.read_in.weight, by.read_in.bias);
        by.positions.fill(0.0);
        let positions = &mut by.positions[..how.shape.tokens * d];
        stream.chunks_exact(positions.len()).for_each(|sequence| slices::add(positions, sequence));
    }
}

impl Space {
    /// From the block's input to what its heads read.
    fn attend(&mut self, p: &Block<&[f32]>, how: How) {
        slices::layer_norm(&self.x, p.ln_1.weight, p.ln_1.bias, EPSILON, &mut self.normed);
        how.products.linear(&self.normed, p.c_attn.weight, p.c_attn.bias, &mut self.qkv);
        slices::causal_attention(&self.qkv, how.shape, &mut self.read);
    }

    /// From what the heads read, and the stream beside it, to the block's output.
    fn finish(&mut self, p: &Block<&[f32]>, how: How, [read, x]: [&[f32]; 2], out: &mut [f32]) {
        how.products.linear_residual(read, p.attn_proj.weight, p.attn_proj.bias, x, &mut self.mid);
        slices::layer_norm(&self.mid, p.ln_2.weight, p.ln_2.bias, EPSILON, &mut self.normed_mid);
        how.products.linear_gelu(&self.normed_mid, p.c_fc.weight, p.c_fc.bias, &mut self.hidden, &mut self.slope);
        how.products.linear_residual(&self.hidden, p.mlp_proj.weight, p.mlp_proj.bias, &self.mid, out);
    }

    fn forward(&mut self, p: &Block<&[f32]>, how: How, out: &mut [f32]) {
        self.attend(p, how);
        let (read, x) = (std::mem::take(&mut self.read), std::mem::take(&mut self.x));
        self.finish(p, how, [&read, &x], out);
        (self.read, self.x) = (read, x);
    }

    /// The same for the x positions alone; `scratch`, of 2r rows, is used.
    fn forward_at_x(&mut self, p: &Block<&[f32]>, how: How, scratch: &mut [f32], out: &mut [f32]) {
        self.attend(p, how);
        let (read, x) = scratch[..2 * out.len()].split_at_mut(out.len());
        gather(&self.read, how.shape, read);
        gather(&self.x, how.shape, x);
        self.finish(p, how, [read, x], out);
    }

    /// From the gradient by the block's output, in `back.stream`, to that by its input, in the same place.
    fn backward(&mut self, p: &Block<&[f32]>, how: How, back: &mut Back, by: &mut Block<&mut [f32]>) {
        let (d, after) = (how.shape.width, self.mid.len());
        let (stream, narrow, wide) =
            (&mut back.stream[..after], &mut back.narrow[..after], &mut back.wide[..4 * after]);
        how.products.gradient_of_linear(&self.hidden, stream, by.mlp_proj.weight, by.mlp_proj.bias);
        how.products.gradient_before_gelu(stream, p.mlp_proj.weight, d, &self.slope, wide);
        how.products.gradient_of_linear(&self.normed_mid, wide, by.c_fc.weight, by.c_fc.bias);
        how.products.gradient_of_input(wide, p.c_fc.weight, 4 * d, narrow);
        norm_backward(&self.mid, &p.ln_2, narrow, stream, &mut by.ln_2);
        how.products.gradient_of_input(stream, p.attn_proj.weight, d, narrow);
        if after == self.read.len() {
            how.products.gradient_of_linear(&self.read, stream, by.attn_proj.weight, by.attn_proj.bias);
        } else {
            let read = &mut back.wide[..after];
            gather(&self.read, how.shape, read);
            how.products.gradient_of_linear(read, stream, by.attn_proj.weight, by.attn_proj.bias);
            scatter(&mut back.stream, how.shape);
            scatter(&mut back.narrow, how.shape);
        }
        slices::causal_attention_backward(&self.qkv, &back.narrow, how.shape, &mut back.qkv);
        how.products.gradient_of_linear(&self.normed, &back.qkv, by.c_attn.weight, by.c_attn.bias);
        how.products.gradient_of_input(&back.qkv, p.c_attn.weight, 3 * d, &mut back.narrow);
        norm_backward(&self.x, &p.ln_1, &back.narrow, &mut back.stream, &mut by.ln_1);
    }
}

/// Without room for more. What was there is written anew by each pass.
fn resize(to: &mut Vec<f32>, len: usize) {
    to.reserve_exact(len.saturating_sub(to.len()));
    to.resize(len, 0.0);
}

fn norm_backward(x: &[f32], p: &Affine<&[f32]>, grad: &[f32], dx: &mut [f32], by: &mut Affine<&mut [f32]>) {
    slices::layer_norm_backward(x, p.weight, grad, EPSILON, dx, [&mut *by.weight, &mut *by.bias]);
}

/// The rows of x positions, which are the even ones of each sequence: (n, d) to (r, d).
fn gather(from: &[f32], of: Shape, to: &mut [f32]) {
    let d = of.width;
    let rows = from.chunks_exact(of.tokens * d).flat_map(|sequence| sequence.chunks(2 * d));
    to.chunks_exact_mut(d).zip(rows).for_each(|(to, from)| to.copy_from_slice(&from[..d]));
}

/// The opposite in place, (r, d) to (n, d), with zeros at the odd rows.
fn scatter(rows: &mut [f32], of: Shape) {
    let (d, at_x) = (of.width, of.tokens.div_ceil(2));
    for row in (0..rows.len() / (of.tokens * d) * at_x).rev() {
        // No row goes to where one is that is still to go.
        let to = row / at_x * of.tokens + row % at_x * 2;
        rows.copy_within(row * d..(row + 1) * d, to * d);
        if row % at_x + 1 < at_x {
            rows[(to + 1) * d..(to + 2) * d].fill(0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_x_positions_are_taken_and_put_back() {
        for (sequences, tokens) in [(1, 1), (3, 1), (2, 3), (3, 7)] {
            let of = Shape { tokens, width: 2, heads: 1 };
            let from: Vec<f32> = (0..sequences * tokens * 2).map(|i| 1.0 + i as f32).collect();
            let mut rows = vec![0.0; from.len()];
            let r = sequences * tokens.div_ceil(2) * 2;
            gather(&from, of, &mut rows[..r]);
            scatter(&mut rows, of);
            let even = |i: usize| ((i / 2) % tokens).is_multiple_of(2);
            let want: Vec<f32> = from.iter().enumerate().map(|(i, &x)| if even(i) { x } else { 0.0 }).collect();
            assert_eq!(rows, want, "{sequences} of {tokens}");
        }
    }
}

//! A batch's way through the model and back.

use super::{
    block::{Space, embed, read_in},
    layout::Slot,
    step::Shape,
    writer::{Map, Weights, Writer},
};
use crate::model::{Block, Parameters, Sizes};
use taskvec_kernels::cuda::{attention::Attention, layers, program::Region};

/// Activations of n tokens of each run, or of the r = n / 2 of them at x positions, where y is predicted.
pub(super) struct Pass<'a> {
    pub writer: &'a mut Writer,
    sizes: Sizes,
    slots: &'a Parameters<Slot>,
    attention: Attention,
    n: usize,
    r: usize,
    /// What each block keeps for its way back, with the slope of its activation. The last block needs r rows after its
    /// attention, all others n.
    blocks: Vec<(Space, Region)>,
    /// What leaves the last block at x, and its norm: (r, d).
    last: Region,
    normed: Region,
    /// (r), then their errors.
    predicted: Region,
    at_x: AtX,
    back: Back,
}

/// Of the last block, the rows of x positions: (r, d).
struct AtX {
    read: Region,
    /// Gradients.
    stream: Region,
    narrow: Region,
}

/// Gradients on the way back, used again by every block: by the residual stream (n, d), and (n, d) and (n, 4d).
struct Back {
    stream: Region,
    narrow: Region,
    wide: Region,
}

impl<'a> Pass<'a> {
    pub fn new(shape: &Shape, slots: &'a Parameters<Slot>, writer: &'a mut Writer) -> Self {
        let ([n, r], sizes) = (shape.rows(), shape.sizes);
        let (d, w) = (sizes.width, &mut *writer);
        let space = |i: usize| {
            let after = if i + 1 == sizes.layers { r } else { n };
            let [x, normed, qkv, read] = [d, d, 3 * d, d].map(|width| w.room(n, width));
            let [mid, normed_mid, hidden, slope] = [d, d, 4 * d, 4 * d].map(|width| w.room(after, width));
            (Space { rows: [n, after], x, normed, qkv, read, mid, normed_mid, hidden, at_x: None }, slope)
        };
        let mut blocks: Vec<_> = (0..sizes.layers).map(space).collect();
        let [last, normed, x, read, stream_x, narrow_x] = [(); 6].map(|()| writer.room(r, d));
        if let Some((last, _)) = blocks.last_mut() {
            last.at_x = Some([read, x]);
        }
        let at_x = AtX { read, stream: stream_x, narrow: narrow_x };
        let [stream, narrow, wide] = [d, d, 4 * d].map(|width| writer.room(n, width));
        let (back, predicted) = (Back { stream, narrow, wide }, writer.room(r, 1));
        let (sequences, tokens) = (shape.runs * shape.batch, sizes.positions);
        let attention = Attention { sequences, tokens, width: d, heads: sizes.heads, shared: shape.shared };
        Self { writer, sizes, slots, attention, n, r, blocks, last, normed, predicted, at_x, back }
    }

    /// From (n, C) to predictions (r).
    pub fn forward(&mut self, tokens: Region) -> Region {
        let (d, p) = (self.sizes.width, self.slots);
        let first = self.blocks[0].0;
        embed(self.writer, p, (self.sizes, self.n), [tokens, first.x]);
        self.writer.norm(self.n, d, &p.blocks[0].ln_1, first.x, first.normed);
        for (i, (block, (space, slope))) in p.blocks.iter().zip(&self.blocks).enumerate() {
            let (out, norm, normed) = match (p.blocks.get(i + 1), self.blocks.get(i + 1)) {
                (Some(block), Some((next, _))) => (next.x, &block.ln_1, next.normed),
                _ => (self.last, &p.ln_f, self.normed),
            };
            space.forward_normed(self.writer, block, self.attention, Some(*slope), (out, Some((norm, normed))));
        }
        self.writer.linear(self.read_out(), (p.read_out.weight, Weights::OutIn), self.normed, self.predicted);
        self.writer.add([self.r, 1], p.read_out.bias, self.predicted, None);
        self.predicted
    }

    fn read_out(&self) -> Map {
        Map { rows: self.r, inputs: self.sizes.width, outputs: 1 }
    }

    /// From the errors, where the predictions were, to all gradients.
    pub fn backward(&mut self, tokens: Region) {
        let (d, r, p, errors) = (self.sizes.width, self.r, self.slots, self.predicted);
        let AtX { stream, narrow, .. } = self.at_x;
        let (map, w) = (self.read_out(), &mut *self.writer);
        w.by_weight(map, (p.read_out.weight, Weights::OutIn), self.normed, errors);
        w.by_bias(r, 1, p.read_out.bias, errors);
        w.by_input(map, (p.read_out.weight, Weights::OutIn), errors, narrow);
        w.builder.clear(stream);
        let last = p.blocks.len() - 1;
        w.norm_backward([r, d], &p.ln_f, [self.last, narrow, stream], p.blocks[last].mlp_proj.bias);
        for (i, block) in p.blocks.iter().enumerate().rev() {
            let before = i.checked_sub(1).map_or(&p.read_in, |i| &p.blocks[i].mlp_proj);
            self.block_backward(i, block, before.bias);
        }
        let (map, stream) = (read_in(self.sizes, self.n), self.back.stream);
        self.writer.by_weight(map, (p.read_in.weight, Weights::OutIn), tokens, stream);
        let positions = self.sizes.positions;
        self.writer.by_bias(self.n / positions, positions * d, p.positions, stream);
        self.writer.sum();
    }

    /// From the gradient by a block's output to that by its input, in `back.stream`, and by the bias `before` that was added last
    /// to that.
    fn block_backward(&mut self, i: usize, p: &Block<Slot>, before: Slot) {
        let (d, n, w, (of, slope)) = (self.sizes.width, self.n, &mut *self.writer, &self.blocks[i]);
        let Back { stream: whole, narrow: whole_narrow, wide } = self.back;
        let (after, last) = (of.rows[1], of.at_x.is_some());
        let (stream, narrow) = if last { (self.at_x.stream, self.at_x.narrow) } else { (whole, whole_narrow) };
        let read = if last { self.at_x.read } else { of.read };
        let lies = Weights::InOut;
        let proj = Map { rows: after, inputs: 4 * d, outputs: d };
        w.by_weight(proj, (p.mlp_proj.weight, lies), of.hidden, stream);
        w.by_input(proj, (p.mlp_proj.weight, lies), stream, wide);
        w.gelu_backward([after, 4 * d], *slope, wide, p.c_fc.bias);
        let fc = Map { rows: after, inputs: d, outputs: 4 * d };
        w.by_weight(fc, (p.c_fc.weight, lies), of.normed_mid, wide);
        w.by_input(fc, (p.c_fc.weight, lies), wide, narrow);
        w.norm_backward([after, d], &p.ln_2, [of.mid, narrow, stream], p.attn_proj.bias);
        let square = Map { rows: after, inputs: d, outputs: d };
        w.by_weight(square, (p.attn_proj.weight, lies), read, stream);
        w.by_input(square, (p.attn_proj.weight, lies), stream, narrow);
        if last {
            let rows = w.activations(after, d).runs * after;
            w.launch(layers::scatter_even(rows, d, [stream, whole]));
            w.launch(layers::scatter_even(rows, d, [narrow, whole_narrow]));
        }
        w.launch(self.attention.backward([of.qkv, whole_narrow, wide]));
        let mixed = Map { rows: n, inputs: d, outputs: 3 * d };
        w.by_weight(mixed, (p.c_attn.weight, lies), of.normed, wide);
        w.by_bias(n, 3 * d, p.c_attn.bias, wide);
        w.by_input(mixed, (p.c_attn.weight, lies), wide, whole_narrow);
        w.norm_backward([n, d], &p.ln_1, [of.x, whole_narrow, whole], before);
    }
}

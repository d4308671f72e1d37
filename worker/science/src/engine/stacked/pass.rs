//! A batch's way through the model and back.

use super::{
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
    blocks: Vec<Space>,
    /// What leaves the last block at x, and its norm: (r, d).
    last: Region,
    normed: Region,
    /// (r), then their errors.
    predicted: Region,
    at_x: AtX,
    back: Back,
}

/// What a block keeps for its way back. The last block needs r rows after its attention, all others n.
struct Space {
    /// Rows after its attention.
    after: usize,
    x: Region,
    normed: Region,
    qkv: Region,
    read: Region,
    mid: Region,
    normed_mid: Region,
    hidden: Region,
    slope: Region,
}

/// Of the last block, the rows of x positions: (r, d).
struct AtX {
    x: Region,
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
            Space { after, x, normed, qkv, read, mid, normed_mid, hidden, slope }
        };
        let blocks = (0..sizes.layers).map(space).collect();
        let [last, normed, x, read, stream_x, narrow_x] = [(); 6].map(|()| writer.room(r, d));
        let at_x = AtX { x, read, stream: stream_x, narrow: narrow_x };
        let [stream, narrow, wide] = [d, d, 4 * d].map(|width| writer.room(n, width));
        let (back, predicted) = (Back { stream, narrow, wide }, writer.room(r, 1));
        let (sequences, tokens) = (shape.runs * shape.batch, sizes.positions);
        let attention = Attention { sequences, tokens, width: d, heads: sizes.heads, shared: shape.shared };
        Self { writer, sizes, slots, attention, n, r, blocks, last, normed, predicted, at_x, back }
    }

    /// From (n, C) to predictions (r).
    pub fn forward(&mut self, tokens: Region) -> Region {
        let (d, p, first) = (self.sizes.width, self.slots, self.blocks[0].x);
        self.writer.linear(self.read_in(), (p.read_in.weight, Weights::OutIn), tokens, first);
        let [bias, positions] = [p.read_in.bias, p.positions].map(|slot| self.writer.parameter(slot));
        let of = self.writer.activations(self.n, d);
        self.writer.launch(layers::bias_positions(of, self.sizes.positions, [first, bias, positions, first]));
        for (i, block) in p.blocks.iter().enumerate() {
            let out = self.blocks.get(i + 1).map_or(self.last, |next| next.x);
            self.block(i, block, out);
        }
        self.writer.norm(self.r, d, &p.ln_f, self.last, self.normed);
        self.writer.linear(self.read_out(), (p.read_out.weight, Weights::OutIn), self.normed, self.predicted);
        self.writer.add([self.r, 1], p.read_out.bias, self.predicted, None);
        self.predicted
    }

    fn read_in(&self) -> Map {
        Map { rows: self.n, inputs: self.sizes.channels, outputs: self.sizes.width }
    }

    fn read_out(&self) -> Map {
        Map { rows: self.r, inputs: self.sizes.width, outputs: 1 }
    }

    /// From a block's input to its output, at the x positions alone where it is the last.
    fn block(&mut self, i: usize, p: &Block<Slot>, out: Region) {
        let (d, n, w, of) = (self.sizes.width, self.n, &mut *self.writer, &self.blocks[i]);
        let after = of.after;
        w.norm(n, d, &p.ln_1, of.x, of.normed);
        w.linear(Map { rows: n, inputs: d, outputs: 3 * d }, (p.c_attn.weight, Weights::InOut), of.normed, of.qkv);
        w.add([n, 3 * d], p.c_attn.bias, of.qkv, None);
        w.launch(self.attention.forward([of.qkv, of.read]));
        let (read, x) = if after == n { (of.read, of.x) } else { (self.at_x.read, self.at_x.x) };
        if after != n {
            let rows = w.activations(after, d).runs * after;
            w.launch(layers::gather_even(rows, d, [of.read, read]));
            w.launch(layers::gather_even(rows, d, [of.x, x]));
        }
        w.linear(Map { rows: after, inputs: d, outputs: d }, (p.attn_proj.weight, Weights::InOut), read, of.mid);
        w.add([after, d], p.attn_proj.bias, of.mid, Some(x));
        w.norm(after, d, &p.ln_2, of.mid, of.normed_mid);
        let fc = Map { rows: after, inputs: d, outputs: 4 * d };
        w.linear(fc, (p.c_fc.weight, Weights::InOut), of.normed_mid, of.hidden);
        let bias = w.parameter(p.c_fc.bias);
        w.launch(layers::bias_gelu(w.activations(after, 4 * d), [of.hidden, bias, of.hidden], Some(of.slope)));
        let proj = Map { rows: after, inputs: 4 * d, outputs: d };
        w.linear(proj, (p.mlp_proj.weight, Weights::InOut), of.hidden, out);
        w.add([after, d], p.mlp_proj.bias, out, Some(of.mid));
    }

    /// From the errors, where the predictions were, to all gradients.
    pub fn backward(&mut self, tokens: Region) {
        let (d, r, p, errors) = (self.sizes.width, self.r, self.slots, self.predicted);
        let AtX { stream, narrow, .. } = self.at_x;
        let (map, w) = (self.read_out(), &mut *self.writer);
        w.by_weight(map, (&p.read_out, Weights::OutIn), self.normed, errors);
        w.by_input(map, (p.read_out.weight, Weights::OutIn), errors, narrow);
        w.builder.clear(stream);
        w.norm_backward([r, d], &p.ln_f, [self.last, narrow, stream]);
        for (i, block) in p.blocks.iter().enumerate().rev() {
            self.block_backward(i, block);
        }
        let (map, stream) = (self.read_in(), self.back.stream);
        self.writer.by_weight(map, (&p.read_in, Weights::OutIn), tokens, stream);
        let positions = self.sizes.positions;
        self.writer.by_bias(self.n / positions, positions * d, p.positions, stream);
    }

    /// From the gradient by a block's output to that by its input, in `back.stream`.
    fn block_backward(&mut self, i: usize, p: &Block<Slot>) {
        let (d, n, w, of) = (self.sizes.width, self.n, &mut *self.writer, &self.blocks[i]);
        let Back { stream: whole, narrow: whole_narrow, wide } = self.back;
        let (after, last) = (of.after, of.after != n);
        let (stream, narrow) = if last { (self.at_x.stream, self.at_x.narrow) } else { (whole, whole_narrow) };
        let read = if last { self.at_x.read } else { of.read };
        let lies = Weights::InOut;
        let proj = Map { rows: after, inputs: 4 * d, outputs: d };
        w.by_weight(proj, (&p.mlp_proj, lies), of.hidden, stream);
        w.by_input(proj, (p.mlp_proj.weight, lies), stream, wide);
        w.launch(layers::gelu_backward(w.activations(after, 4 * d), [wide, of.slope, wide]));
        let fc = Map { rows: after, inputs: d, outputs: 4 * d };
        w.by_weight(fc, (&p.c_fc, lies), of.normed_mid, wide);
        w.by_input(fc, (p.c_fc.weight, lies), wide, narrow);
        w.norm_backward([after, d], &p.ln_2, [of.mid, narrow, stream]);
        let square = Map { rows: after, inputs: d, outputs: d };
        w.by_weight(square, (&p.attn_proj, lies), read, stream);
        w.by_input(square, (p.attn_proj.weight, lies), stream, narrow);
        if last {
            let rows = w.activations(after, d).runs * after;
            w.launch(layers::scatter_even(rows, d, [stream, whole]));
            w.launch(layers::scatter_even(rows, d, [narrow, whole_narrow]));
        }
        w.launch(self.attention.backward([of.qkv, whole_narrow, wide]));
        let mixed = Map { rows: n, inputs: d, outputs: 3 * d };
        w.by_weight(mixed, (&p.c_attn, lies), of.normed, wide);
        w.by_input(mixed, (p.c_attn.weight, lies), wide, whole_narrow);
        w.norm_backward([n, d], &p.ln_1, [of.x, whole_narrow, whole]);
    }
}

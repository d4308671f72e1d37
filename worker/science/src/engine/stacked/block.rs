//! The way forward through the model's parts, in training and in analyses.

use super::{
    layout::Slot,
    writer::{Map, Weights, Writer},
};
use crate::model::{Affine, Block, Parameters, Sizes};
use taskvec_kernels::cuda::{attention::Attention, layers, program::Region};

/// What a block computes of n tokens of each run, or of fewer from its attention on.
#[derive(Clone, Copy)]
pub(super) struct Space {
    /// Rows, n, and those after its attention: all of them, or the n / 2 at x positions.
    pub rows: [usize; 2],
    pub x: Region,
    pub normed: Region,
    pub qkv: Region,
    pub read: Region,
    pub mid: Region,
    pub normed_mid: Region,
    pub hidden: Region,
    /// Of `read` and `x`, the rows of x positions, where no others are wanted.
    pub at_x: Option<[Region; 2]>,
}

impl Space {
    /// From the block's input to its output, and where there is room for it the slope of its activation. `out` may be `x`.
    pub fn forward(&self, w: &mut Writer, p: &Block<Slot>, attention: Attention, slope: Option<Region>, out: Region) {
        w.norm(self.rows[0], attention.width, &p.ln_1, self.x, self.normed);
        self.forward_normed(w, p, attention, slope, (out, None));
    }

    /// The same where `normed` is there already; and where something follows, the norm of that, of the block's output.
    pub fn forward_normed(
        &self,
        w: &mut Writer,
        p: &Block<Slot>,
        attention: Attention,
        slope: Option<Region>,
        (out, next): (Region, Option<(&Affine<Slot>, Region)>),
    ) {
        let ([n, after], d) = (self.rows, attention.width);
        w.linear(Map { rows: n, inputs: d, outputs: 3 * d }, (p.c_attn.weight, Weights::InOut), self.normed, self.qkv);
        w.add([n, 3 * d], p.c_attn.bias, self.qkv, None);
        w.launch(attention.forward([self.qkv, self.read]));
        let [read, x] = self.at_x.unwrap_or([self.read, self.x]);
        if self.at_x.is_some() {
            let rows = w.activations(after, d).runs * after;
            w.launch(layers::gather_even(rows, d, [self.read, read]));
            w.launch(layers::gather_even(rows, d, [self.x, x]));
        }
        w.linear(Map { rows: after, inputs: d, outputs: d }, (p.attn_proj.weight, Weights::InOut), read, self.mid);
        w.add_and_norm([after, d], (p.attn_proj.bias, x), self.mid, (&p.ln_2, self.normed_mid));
        let fc = Map { rows: after, inputs: d, outputs: 4 * d };
        w.linear(fc, (p.c_fc.weight, Weights::InOut), self.normed_mid, self.hidden);
        let bias = w.parameter(p.c_fc.bias);
        w.launch(layers::bias_gelu(w.activations(after, 4 * d), [self.hidden, bias, self.hidden], slope));
        let proj = Map { rows: after, inputs: 4 * d, outputs: d };
        w.linear(proj, (p.mlp_proj.weight, Weights::InOut), self.hidden, out);
        match next {
            Some(next) => w.add_and_norm([after, d], (p.mlp_proj.bias, self.mid), out, next),
            None => w.add([after, d], p.mlp_proj.bias, out, Some(self.mid)),
        }
    }
}

/// How `rows` tokens of each run are read.
pub(super) fn read_in(sizes: Sizes, rows: usize) -> Map {
    Map { rows, inputs: sizes.channels, outputs: sizes.width }
}

/// From tokens (rows, C) to what enters the first block, (rows, d).
pub(super) fn embed(w: &mut Writer, p: &Parameters<Slot>, (sizes, rows): (Sizes, usize), [tokens, out]: [Region; 2]) {
    w.linear(read_in(sizes, rows), (p.read_in.weight, Weights::OutIn), tokens, out);
    let [bias, positions] = [p.read_in.bias, p.positions].map(|slot| w.parameter(slot));
    let of = w.activations(rows, sizes.width);
    w.launch(layers::bias_positions(of, sizes.positions, [out, bias, positions, out]));
}

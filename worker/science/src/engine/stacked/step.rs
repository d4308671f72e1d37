//! One step of training of S runs as a program: data, forward, loss, backward and update, in the order and with the
//! mathematics of the engine on the CPU.

use super::{
    Together,
    layout::{Layout, Slot},
    pass::Pass,
    writer::Writer,
};
use crate::{
    model::{Parameters, Sizes},
    rng::Purpose,
};
use taskvec_kernels::{
    Adam, Precision,
    cuda::{
        layers::Stacked,
        program::{Program, Region, Source},
        training::{self, Bases, MixtureShape, RATES, Rings},
    },
};
use taskvec_model::spec::{SparseLinear, YChannel};

/// What the runs of a program have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub sizes: Sizes,
    /// Sequences of a step of each run.
    pub batch: usize,
    /// S.
    pub runs: usize,
    pub adam: Adam,
    pub precision: Precision,
    /// Steps that rings remember.
    pub slots: usize,
    /// Bytes of shared memory that a block may have.
    pub shared: usize,
}

impl Shape {
    pub fn new(sizes: Sizes, runs: usize, together: Together, shared: usize) -> Self {
        let Together { adam, batch, precision, slots } = together;
        Self { sizes, batch, runs, adam, precision, slots, shared }
    }

    /// Tokens of a run's step, and those at x positions.
    pub fn rows(&self) -> [usize; 2] {
        let n = self.batch * self.sizes.positions;
        [n, n / 2]
    }

    /// Partial sums of a run, those of all gradients by what is added to or multiplied with every row.
    fn partials(&self) -> usize {
        let ([n, r], Sizes { width: d, positions, layers, .. }) = (self.rows(), self.sizes);
        let sums = |rows: usize, width: usize| Stacked { runs: 1, rows, width, stride: 0 }.parts() * width;
        // Biases of queries, keys and values and of the hidden layer; two norms, each with the bias that was added before it.
        let block = |after: usize| sums(n, 3 * d + 3 * d) + sums(after, 4 * d + 3 * d);
        let blocks = layers.saturating_sub(1) * block(n) + block(r);
        blocks + sums(self.batch, positions * d) + sums(r, 1 + 3 * d)
    }
}

/// What the host writes and reads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    /// (S, stride) of f32.
    pub parameters: Region,
    pub gradients: Region,
    /// First and second.
    pub moments: [Region; 2],
    /// The next update, from 1: (S) of u64.
    pub step: Region,
    /// (S, slots) of f64.
    pub rates: Region,
    /// What norms are clipped to, infinite where they are not: (S) of f64.
    pub limits: Region,
    /// Losses and those of predicting 0: (S, slots, 2) of f64.
    pub losses: Region,
    /// (S, slots) of f64.
    pub norms: Region,
    /// The last batch: (S, B, T, C) and (S, B, K) of f32.
    pub tokens: Region,
    pub y: Region,
}

/// The mixtures' common shape.
fn mixture_shape(data: &SparseLinear) -> MixtureShape {
    let y_channel = match data.y_channel {
        YChannel::Shared => 0,
        YChannel::Own => data.dim,
    };
    MixtureShape {
        dim: data.dim,
        examples: data.examples,
        channels: data.channels(),
        y_channel,
        rank: data.rank,
        purpose: Purpose::Train as u32,
        bases: Bases::Drawn,
        first: 0,
    }
}

/// What a run's sequences are drawn from.
pub(super) fn source(data: &SparseLinear, seed: u64) -> Source {
    let bases = (0..data.bases).map(|k| data.coordinates(k)).collect();
    Source { seed, weight_mean: data.weight_mean, noise: data.noise_variance.sqrt(), bases }
}

/// The program of a step. `data` is that of any run: they may differ in what a [`Source`] has.
pub(super) fn program(
    shape: &Shape,
    (layout, slots): (&Layout, &Parameters<Slot>),
    data: &SparseLinear,
    sources: &[Source],
) -> (Program, Places) {
    let mut writer = Writer::new(shape.runs, layout, shape.precision, shape.partials());
    let places = places(shape, layout, &mut writer);
    let basis = writer.builder.bytes(shape.runs * shape.batch * size_of::<u32>());
    let batch = [places.step, places.tokens, places.y, basis];
    writer.builder.mixture(shape.batch, mixture_shape(data), sources, batch);
    let mut pass = Pass::new(shape, slots, &mut writer);
    let predicted = pass.forward(places.tokens);
    let rings = Rings { runs: shape.runs, slots: shape.slots };
    let loss = rings.mse(shape.rows()[1], [predicted, places.y, places.step, predicted, places.losses]);
    pass.writer.launch(loss);
    pass.backward(places.tokens);
    update(shape, layout, &places, &mut writer);
    (writer.builder.finish(), places)
}

fn places(shape: &Shape, layout: &Layout, writer: &mut Writer) -> Places {
    let ([n, r], runs) = (shape.rows(), shape.runs);
    let moments = [(); 2].map(|()| writer.builder.floats(runs * layout.stride));
    let mut words = |each: usize| writer.builder.bytes(runs * each * size_of::<u64>());
    let (step, limits) = (words(1), words(1));
    let (rates, norms, losses) = (words(shape.slots), words(shape.slots), words(2 * shape.slots));
    let (tokens, y) = (writer.room(n, shape.sizes.channels), writer.room(r, 1));
    let (parameters, gradients) = (writer.parameters, writer.gradients);
    Places { parameters, gradients, moments, step, rates, limits, losses, norms, tokens, y }
}

/// From all gradients to the next step.
fn update(shape: &Shape, layout: &Layout, of: &Places, writer: &mut Writer) {
    let (runs, count) = (shape.runs, layout.stride);
    let partials = writer.builder.bytes(runs * training::parts(count) * size_of::<f64>());
    let factors = writer.builder.bytes(runs * RATES);
    writer.launch(training::squares(runs, count, [of.gradients, partials]));
    let rings = Rings { runs, slots: shape.slots };
    let reads = [partials, of.rates, of.limits, of.step, of.norms, factors];
    writer.launch(rings.adam_rates(shape.adam, count, reads));
    let [m, v] = of.moments;
    writer.launch(training::adam(runs, count, [of.gradients, factors, of.parameters, m, v]));
}

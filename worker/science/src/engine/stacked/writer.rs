//! The operations of a step as the model speaks of them: for all runs, with their parameters and gradients.

use super::layout::{Layout, Slot};
use crate::model::{Affine, LAYER_NORM_EPSILON as EPSILON};
use taskvec_kernels::{
    Precision,
    cuda::{
        Call, Extent, Operand, Product,
        layers::{self, Stacked, Sum},
        program::{Builder, Region},
    },
};

/// A program in the making, and where the parameters of all runs and their gradients are, (S, stride).
pub(super) struct Writer {
    pub builder: Builder,
    pub parameters: Region,
    pub gradients: Region,
    runs: usize,
    stride: usize,
    precision: Precision,
    /// Of all gradients of what is added to or multiplied with every row: their partial sums, how many are taken, and what is
    /// to be summed in the end, at once.
    partials: Region,
    taken: usize,
    sums: Vec<Sum>,
}

/// Rows of a run that go into a linear map, their width and that of what comes out.
#[derive(Clone, Copy)]
pub(super) struct Map {
    pub rows: usize,
    pub inputs: usize,
    pub outputs: usize,
}

/// How a linear map's weights lie.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Weights {
    /// (inputs, outputs).
    InOut,
    /// (outputs, inputs).
    OutIn,
}

impl Writer {
    /// `partials` elements of each run are enough for all partial sums.
    pub fn new(runs: usize, layout: &Layout, precision: Precision, partials: usize) -> Self {
        let mut builder = Builder::default();
        let [parameters, gradients, partials] =
            [layout.stride, layout.stride, partials].map(|len| builder.floats(runs * len));
        let stride = layout.stride;
        Self { builder, parameters, gradients, runs, stride, precision, partials, taken: 0, sums: Vec::new() }
    }

    /// For one run, or several [side by side](Self::side_by_side) with the same parameters, which have no gradients: asking
    /// for one, or for a partial sum, panics.
    pub fn forward_only(layout: &Layout, precision: Precision) -> Self {
        let mut builder = Builder::default();
        let parameters = builder.floats(layout.stride);
        let nothing = parameters.first(0);
        let (partials, sums) = (nothing, Vec::new());
        Self { builder, parameters, gradients: nothing, runs: 1, stride: 0, precision, partials, taken: 0, sums }
    }

    /// From now on, operations are of so many runs. Where parameters are not shared, these are the first of those that there
    /// are.
    pub fn side_by_side(&mut self, runs: usize) {
        self.runs = runs;
    }

    /// Room for (S, rows, width).
    pub fn room(&mut self, rows: usize, width: usize) -> Region {
        self.builder.floats(self.runs * rows * width)
    }

    pub fn launch(&mut self, call: Call<Region>) {
        self.builder.launch(call);
    }

    /// Activations of that many rows and columns.
    pub fn activations(&self, rows: usize, width: usize) -> Stacked {
        Stacked { runs: self.runs, rows, width, stride: self.stride }
    }

    pub fn parameter(&self, slot: Slot) -> Region {
        self.parameters.behind(slot.offset)
    }

    fn gradient(&self, slot: Slot) -> Region {
        self.gradients.behind(slot.offset)
    }

    /// Where so many columns of partial sums over the rows go: the place, and where it is among all.
    fn partial(&mut self, of: Stacked, columns: usize) -> (Region, usize) {
        let from = self.taken;
        self.taken += of.runs * of.parts() * columns;
        (self.partials.behind(from), from)
    }

    /// All gradients are there once their partial sums are summed.
    pub fn sum(&mut self) {
        self.builder.sums((self.runs, self.stride), &self.sums, [self.partials, self.gradients]);
    }

    fn multiply(&mut self, [m, n, k]: [usize; 3], factors: [Operand<Region>; 2], out: (Region, usize)) {
        let of = Extent { m, n, k, runs: self.runs, precision: self.precision };
        self.builder.multiply(Product::new(of, factors, out));
    }

    /// `out = x · weight`.
    pub fn linear(&mut self, of: Map, (weight, lie): (Slot, Weights), x: Region, out: Region) {
        let Map { rows, inputs, outputs } = of;
        let weight = Operand { place: self.parameter(weight), stride: self.stride, transposed: lie == Weights::OutIn };
        let factors = [Operand::plain(x, rows * inputs), weight];
        self.multiply([rows, outputs, inputs], factors, (out, rows * outputs));
    }

    /// The gradient by a linear map's input, given that by its output.
    pub fn by_input(&mut self, of: Map, (weight, lie): (Slot, Weights), grad: Region, out: Region) {
        let Map { rows, inputs, outputs } = of;
        let weight = Operand { place: self.parameter(weight), stride: self.stride, transposed: lie == Weights::InOut };
        let factors = [Operand::plain(grad, rows * outputs), weight];
        self.multiply([rows, inputs, outputs], factors, (out, rows * inputs));
    }

    /// The gradient by a linear map's weight.
    pub fn by_weight(&mut self, of: Map, (weight, lie): (Slot, Weights), x: Region, grad: Region) {
        let Map { rows, inputs, outputs } = of;
        let out = (self.gradient(weight), self.stride);
        match lie {
            Weights::InOut => {
                let factors = [Operand::transposed(x, rows * inputs), Operand::plain(grad, rows * outputs)];
                self.multiply([inputs, outputs, rows], factors, out);
            }
            Weights::OutIn => {
                let factors = [Operand::transposed(grad, rows * outputs), Operand::plain(x, rows * inputs)];
                self.multiply([outputs, inputs, rows], factors, out);
            }
        }
    }

    /// The gradient by something that was added to every row.
    pub fn by_bias(&mut self, rows: usize, width: usize, bias: Slot, grad: Region) {
        let of = self.activations(rows, width);
        let (partials, from) = self.partial(of, width);
        self.launch(layers::column_sums(of, [grad, partials]));
        self.sums.push(Sum { width, parts: of.parts(), pitch: width, from, to: bias.offset });
    }

    pub fn norm(&mut self, rows: usize, width: usize, affine: &Affine<Slot>, x: Region, out: Region) {
        let of = self.activations(rows, width);
        let [weight, bias] = [affine.weight, affine.bias].map(|slot| self.parameter(slot));
        self.launch(layers::layer_norm(of, EPSILON, [x, weight, bias, out]));
    }

    /// Adds the gradient by `x` to `dx`, which then is that by the sum of a residual stream and what a linear map with `bias` gives.
    pub fn norm_backward(
        &mut self,
        [rows, width]: [usize; 2],
        affine: &Affine<Slot>,
        [x, grad, dx]: [Region; 3],
        bias: Slot,
    ) {
        let of = self.activations(rows, width);
        let weight = self.parameter(affine.weight);
        let (partials, from) = self.partial(of, 3 * width);
        self.launch(layers::layer_norm_backward_sums(of, EPSILON, [x, weight, grad, dx, partials]));
        for (i, slot) in [affine.weight, affine.bias, bias].into_iter().enumerate() {
            self.sums.push(Sum { width, parts: of.parts(), pitch: 3 * width, from: from + i * width, to: slot.offset });
        }
    }

    /// From the gradient by an activation's output to that by its input, in its place, and by the bias before it.
    pub fn gelu_backward(&mut self, [rows, width]: [usize; 2], slope: Region, grad: Region, bias: Slot) {
        let of = self.activations(rows, width);
        let (partials, from) = self.partial(of, width);
        self.launch(layers::gelu_backward_sums(of, [grad, slope, grad, partials]));
        self.sums.push(Sum { width, parts: of.parts(), pitch: width, from, to: bias.offset });
    }

    /// Adds a bias to `x` and, where there is one, a residual; `out` may be `x`.
    pub fn add(&mut self, [rows, width]: [usize; 2], bias: Slot, x: Region, residual: Option<Region>) {
        let of = self.activations(rows, width);
        self.launch(layers::bias_residual(of, [x, self.parameter(bias), x], residual));
    }

    /// Adds a bias and a residual to `x`, and norms the sum, in one launch.
    pub fn add_and_norm(
        &mut self,
        [rows, width]: [usize; 2],
        (bias, residual): (Slot, Region),
        x: Region,
        (affine, normed): (&Affine<Slot>, Region),
    ) {
        let of = self.activations(rows, width);
        let [bias, weight, shift] = [bias, affine.weight, affine.bias].map(|slot| self.parameter(slot));
        let norm = [weight, shift, normed];
        self.launch(layers::layer_norm_residual(of, EPSILON, [x, residual, x], Some(bias), norm));
    }
}

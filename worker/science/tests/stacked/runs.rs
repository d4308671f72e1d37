//! What the tests train.

use crate::common;
use candle_core::{Device, Tensor};
use taskvec_kernels::{Adam, Precision, cuda::program::Machine};
use taskvec_model::spec::{DataSpec, ModelSpec, OptimizerSpec, Overlap, SparseLinear, YChannel};
use taskvec_science::{
    engine::stacked::{Run, StackedEngine, Together},
    model::Transformer,
    optim::{self, Moments},
    rng::{Purpose, Stream},
};

/// The shape of model and data, and how many sequences a step has.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub layers: u32,
    pub width: u32,
    pub heads: u32,
    pub examples: u32,
    pub batch: usize,
    pub y_channel: YChannel,
}

/// Multiples of nothing; a single example and sequence; more rows than a partial sum has.
pub const SHAPES: [Shape; 4] = [
    Shape { layers: 2, width: 12, heads: 3, examples: 3, batch: 5, y_channel: YChannel::Shared },
    Shape { layers: 2, width: 10, heads: 2, examples: 4, batch: 9, y_channel: YChannel::Own },
    Shape { layers: 1, width: 6, heads: 1, examples: 1, batch: 1, y_channel: YChannel::Own },
    Shape { layers: 3, width: 16, heads: 4, examples: 2, batch: 19, y_channel: YChannel::Shared },
];

/// Large, so that updates of gradients that are zero in exact arithmetic (the bias of keys) are not noise.
pub const EPSILON: f64 = 1e-2;

/// All that is a run's own.
#[derive(Clone)]
pub struct Own {
    pub data: SparseLinear,
    pub seed: u64,
    pub step: u64,
    pub rate: f64,
    pub clip_norm: Option<f64>,
}

/// Three runs that have nothing in common but the shape.
pub fn runs(shape: Shape) -> Vec<Own> {
    let of = |bases, overlap, noise_variance, weight_mean| {
        let DataSpec::SparseLinear(data) = common::data();
        let Shape { examples, y_channel, .. } = shape;
        SparseLinear { bases, overlap, noise_variance, weight_mean, examples, y_channel, ..data }
    };
    vec![
        Own { data: of(2, Overlap::Disjoint, 0.01, 1.0), seed: 5, step: 0, rate: 1e-2, clip_norm: None },
        Own { data: of(1, Overlap::Disjoint, 0.25, 0.0), seed: u64::MAX, step: 7, rate: 3e-3, clip_norm: Some(0.3) },
        Own { data: of(4, Overlap::Grouped, 0.0, -2.0), seed: 1 << 40, step: 40_000, rate: 5e-3, clip_norm: Some(1e9) },
    ]
}

pub fn adam() -> Adam {
    optim::adam(&OptimizerSpec { epsilon: EPSILON, ..common::train(1).optimizer })
}

impl Shape {
    pub fn network(self, own: &Own) -> Transformer {
        let mut model: ModelSpec = common::model();
        (model.layers, model.width, model.heads) = (self.layers, self.width, self.heads);
        // Large, so that every gradient is far from rounding noise.
        (model.init.std, model.init.read_in_std, model.init.position_std) = (0.3, 0.5, 0.3);
        Transformer::init(&model, &DataSpec::SparseLinear(own.data.clone()), own.seed, &Device::Cpu).unwrap()
    }

    pub fn together(self, slots: usize) -> Together {
        Together { adam: adam(), batch: self.batch, precision: Precision::F32, slots }
    }

    pub fn engine<M: Machine>(self, machine: &M, runs: &[Own], slots: usize) -> StackedEngine<M::Loaded> {
        let networks: Vec<Transformer> = runs.iter().map(|own| self.network(own)).collect();
        let runs: Vec<Run<'_>> = runs.iter().zip(&networks).map(|(own, network)| own.run(network, None)).collect();
        StackedEngine::new(machine, &runs, self.together(slots)).unwrap()
    }
}

impl Own {
    pub fn run<'a>(&'a self, network: &'a Transformer, moments: Option<&'a [Moments]>) -> Run<'a> {
        let Self { data, seed, step, clip_norm, .. } = self;
        Run { network, moments, data, seed: *seed, step: *step, clip_norm: *clip_norm }
    }

    pub fn stream(&self, step: u64) -> Stream {
        Stream { seed: self.seed, purpose: Purpose::Train, step }
    }
}

pub fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Every bit of a run's state.
pub fn state(network: &Transformer, moments: &[Moments]) -> Vec<Vec<u32>> {
    let parameters = network.parameters().iter().map(|(_, t)| t);
    let moments = moments.iter().flat_map(|moments| [&moments.m, &moments.v]);
    parameters.chain(moments).map(|t| bits(&values(t))).collect()
}

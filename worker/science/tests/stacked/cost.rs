//! What a step takes: the floor that docs/performance.md speaks of.

#[path = "../../examples/common/mod.rs"]
mod configurations;

use candle_core::Device;
use configurations::{Configuration, PAPER, QUICKSTART};
use taskvec_kernels::cuda::{Precision, program::Cost};
use taskvec_model::spec::DataSpec;
use taskvec_science::{
    engine::stacked::{Run, Together, cost},
    model::Transformer,
    optim,
};

/// Of a step of so many runs, and the bytes of memory that it needs.
fn of(texts: [&str; 3], runs: usize) -> (Cost, usize) {
    let Configuration { model, data, train, .. } = Configuration::parse(texts).unwrap();
    let DataSpec::SparseLinear(sparse) = &data;
    let network = Transformer::init(&model, &data, 0, &Device::Cpu).unwrap();
    let run = |seed| Run { network: &network, moments: None, data: sparse, seed, step: 0, clip_norm: None };
    let runs: Vec<Run<'_>> = (0..runs as u64).map(run).collect();
    let (adam, batch) = (optim::adam(&train.optimizer), train.batch as usize);
    cost(&runs, Together { adam, batch, precision: Precision::F32, slots: 100 }, 232_448).unwrap()
}

/// The products of a step by hand: 3 for each weight, but for that of the read-in, which needs no gradient by its input; the
/// last block, from its attention on, and the read-out are of half the rows.
fn operations([layers, d, channels, rows]: [usize; 4]) -> usize {
    let after = |rows| 6 * rows * 9 * d * d;
    let blocks = layers * 6 * rows * 3 * d * d + (layers - 1) * after(rows) + after(rows / 2);
    blocks + 4 * rows * channels * d + 6 * rows / 2 * d
}

#[test]
fn launches_operations_and_bytes_of_a_step() {
    for (name, texts, sizes, blocks) in
        [("quickstart", QUICKSTART, [3, 64, 4, 64 * 16], 3), ("paper", PAPER, [12, 256, 16, 128 * 40], 12)]
    {
        for runs in [1, 8, 32] {
            let (cost, memory) = of(texts, runs);
            println!(
                "{name} × {runs}: {} launches, {} products of {:.2} GFLOP and {:.3} GB, kernels {:.3} GB, memory {:.2} GB",
                cost.launches + cost.clears,
                cost.products,
                cost.operations as f64 / 1e9,
                cost.product_bytes as f64 / 1e9,
                cost.kernel_bytes as f64 / 1e9,
                memory as f64 / 1e9
            );
            assert_eq!(cost.operations, runs * operations(sizes), "{name}");
            assert_eq!((cost.products, cost.clears), (12 * blocks + 5, 1), "{name}");
            assert_eq!(cost.launches, 21 * blocks + 20, "{name}: as many, however many runs there are");
        }
    }
}

//! What a step takes: the floor that docs/performance.md speaks of.

use crate::configurations::{Configuration, PAPER, QUICKSTART};
use taskvec_kernels::{Precision, cuda::program::Cost};
use taskvec_model::spec::DataSpec;
use taskvec_science::{
    engine::stacked::{Together, cost},
    model::Sizes,
    optim,
};

/// Of a step of so many runs.
fn of(texts: [&str; 3], runs: usize) -> Cost {
    let Configuration { model, data, train, .. } = Configuration::parse(texts).unwrap();
    let DataSpec::SparseLinear(sparse) = &data;
    let (adam, batch) = (optim::adam(&train.optimizer), train.batch as usize);
    let together = Together { adam, batch, precision: Precision::F32, slots: 100 };
    cost(Sizes::new(&model, &data), sparse, runs, together, 232_448)
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
        let alone = of(texts, 1);
        let giga = |n: usize| n as f64 / 1e9;
        println!(
            "{name}: {} products of {:.2} GFLOP and {:.3} GB, {} other launches of {:.3} GB, memory {:.2} GB",
            alone.products,
            giga(alone.operations),
            giga(alone.product_bytes),
            alone.launches + alone.clears,
            giga(alone.kernel_bytes),
            giga(alone.memory)
        );
        assert_eq!((alone.products, alone.launches, alone.clears), (12 * blocks + 5, 21 * blocks + 20, 1), "{name}");
        for runs in [1, 8, 32] {
            let all = of(texts, runs);
            assert_eq!(all.operations, runs * operations(sizes), "{name} × {runs}");
            assert_eq!([all.products, all.launches], [alone.products, alone.launches], "{name} × {runs}");
            assert!(all.memory <= runs * alone.memory, "{name} × {runs}: {} bytes", all.memory);
        }
    }
}

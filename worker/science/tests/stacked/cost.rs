//! What a step takes: the floor that docs/performance.md speaks of.

use crate::configurations::{Configuration, PAPER, QUICKSTART};
use taskvec_kernels::{Precision, cuda::program::Cost};
use taskvec_model::{job::JobWork, spec::DataSpec};
use taskvec_science::{
    analysis::decode::Decoder,
    engine::stacked::{
        Together, cost,
        patching::{self, Patching},
        states::{self, Place, Readings},
    },
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
        assert_eq!((alone.products, alone.launches, alone.clears), (12 * blocks + 5, 10 * blocks + 16, 1), "{name}");
        for runs in [1, 8, 32] {
            let all = of(texts, runs);
            assert_eq!(all.operations, runs * operations(sizes), "{name} × {runs}");
            assert_eq!([all.products, all.launches], [alone.products, alone.launches], "{name} × {runs}");
            assert!(all.memory <= runs * alone.memory, "{name} × {runs}: {} bytes", all.memory);
        }
    }
}

/// What a worker packs runs by, beside what their program takes on a GPU.
#[test]
fn memory_is_about_what_packing_expects() {
    for (name, texts) in [("quickstart", QUICKSTART), ("paper", PAPER)] {
        let Configuration { model, data, train, checkpoints } = Configuration::parse(texts).unwrap();
        let to = train.steps;
        let work = JobWork::Train { seed: 1, model, data, train, checkpoints, from: 0, to };
        let expected = work.pack_key().unwrap().bytes() as f64;
        for runs in [1, 8] {
            let share = of(texts, runs).memory as f64 / (runs as f64 * expected);
            println!("{name} × {runs}: {share:.2} of the memory that is expected");
            assert!((0.6..1.0).contains(&share), "{name} × {runs}: {share}");
        }
    }
}

/// Task decodability of a checkpoint at all layers and sites: two readings, of the sequences and of those with a shared query.
#[test]
fn launches_and_operations_of_task_decodability() {
    for (name, texts, samples, k) in [("quickstart", QUICKSTART, 100, 10), ("paper", PAPER, 100, 10)] {
        let Configuration { model, data, train, .. } = Configuration::parse(texts).unwrap();
        let DataSpec::SparseLinear(sparse) = &data;
        let (sizes, sequences) = (Sizes::new(&model, &data), samples * sparse.bases as usize);
        let at = |tokens: &[usize]| -> Vec<Place> {
            let token = |&token: &usize| (0..=sizes.layers).map(move |layer| Place { layer, token });
            tokens.iter().flat_map(token).collect()
        };
        let (x, own) = (sizes.positions - 2, sizes.positions - 3);
        let wanted = [at(&[x, own]), at(&[x])];
        let wanted = wanted.each_ref().map(Vec::as_slice);
        let common = Readings { sequences, nearest: Decoder::depth(k), memory: 1 << 30 };
        let cost = states::cost(sizes, &wanted, common, 232_448);
        // Sums of squared differences of every two states, three operations each, in f64.
        let sets = 3 * (sizes.layers + 1);
        let distances = 3 * sets * sequences * sequences * sizes.width;
        let training = train.steps as usize * of(texts, 1).operations;
        let giga = |n: usize| n as f64 / 1e9;
        println!(
            "{name}: {} products of {:.2} GFLOP and {:.3} GB, {} other launches of {:.3} GB, distances of {:.2} GFLOP in f64, \
             memory {:.2} GB; 24 such checkpoints are {:.2} % of the products of {} steps",
            cost.products,
            giga(cost.operations),
            giga(cost.product_bytes),
            cost.launches + cost.clears,
            giga(cost.kernel_bytes),
            giga(distances),
            giga(cost.memory),
            100.0 * 24.0 * cost.operations as f64 / training as f64,
            train.steps
        );
        let (blocks, rows) = (sizes.layers, sequences * sizes.positions);
        let forward = 2 * rows * sizes.width * (sizes.channels + 12 * blocks * sizes.width);
        assert_eq!(cost.operations, 2 * forward, "{name}");
        assert_eq!((cost.products, cost.clears), (2 * (4 * blocks + 1), 0), "{name}");
        assert_eq!(cost.launches, 2 * (6 * blocks + 1) + sets + 2, "{name}");
        // In two parts, everything is launched twice but what looks at all states.
        let half = Readings { memory: 12 * sizes.width * rows * size_of::<f32>() / 2, ..common };
        let parts = states::cost(sizes, &wanted, half, 232_448);
        assert_eq!((parts.operations, parts.products), (cost.operations, 2 * cost.products), "{name}");
        assert_eq!(parts.launches, 2 * (cost.launches - 2) + 2, "{name}");
        assert!(parts.memory < cost.memory, "{name}");
    }
}

/// Patching at every block, of all ordered pairs, with 100 sequences of each task and again of each source.
#[test]
fn launches_and_operations_of_patching() {
    for (name, texts) in [("quickstart", QUICKSTART), ("paper", PAPER)] {
        let Configuration { model, data, .. } = Configuration::parse(texts).unwrap();
        let DataSpec::SparseLinear(sparse) = &data;
        let (sizes, n, tasks) = (Sizes::new(&model, &data), 100, sparse.bases as usize);
        let layers: Vec<usize> = (1..=sizes.layers).collect();
        let pairs: Vec<[usize; 2]> = (0..tasks).flat_map(|source| (0..tasks).map(move |to| [source, to])).collect();
        let tokens = (0, sizes.positions / 2);
        let of = Patching { sequences: n, tasks, layers: &layers, tokens, add: true, pairs: &pairs, memory: 4 << 30 };
        let cost = patching::cost(sizes, of, 232_448);
        let giga = |n: usize| n as f64 / 1e9;
        println!(
            "{name}: {} products of {:.2} GFLOP and {:.3} GB, {} other launches of {:.3} GB, memory {:.2} GB",
            cost.products,
            giga(cost.operations),
            giga(cost.product_bytes),
            cost.launches + cost.clears,
            giga(cost.kernel_bytes),
            giga(cost.memory)
        );
        // Once through all blocks, and from each layer on through those behind it; read in once, and out at the end of each.
        let (l, d, rows) = (sizes.layers, sizes.width, n * sizes.positions);
        let behind = l * (l - 1) / 2;
        assert_eq!((cost.products, cost.clears), (4 * (l + behind) + 1 + l + l + 1, 0), "{name}");
        assert_eq!(cost.launches, 6 * (l + behind) + 1 + l * pairs.len() + 3 * (l + 1), "{name}");
        let (all, out) = (2 * tasks, |runs: usize| runs * rows / 2 * d);
        let blocks = 12 * d * d * rows * (all * l + pairs.len() * behind);
        let means = l * tasks * tasks * n * sizes.positions * d;
        let by_hand = 2 * (blocks + all * rows * d * sizes.channels + means + out(tasks) + l * out(pairs.len()));
        assert_eq!(cost.operations, by_hand, "{name}");
    }
}

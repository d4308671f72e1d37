//! Steps per second of training on a GPU, of the quickstart's model and the paper's, of 1, 8 and 32 runs side by side:
//! `device_training [SECONDS [NAME]]`, built with `--features cuda`.
//!
//! What a step takes is said also without a GPU. benches/device.sh runs this beside PyTorch.

mod common;

use common::{Configuration, PAPER, QUICKSTART};
use taskvec_kernels::Precision;
use taskvec_model::spec::DataSpec;
use taskvec_science::{
    engine::stacked::{Together, cost},
    model::Sizes,
    optim,
};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Steps between two looks at the losses.
const SLOTS: usize = 100;

fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let seconds: f64 = args.next().map_or(Ok(5.0), |s| s.parse())?;
    let only = args.next();
    for (name, texts) in [("quickstart", QUICKSTART), ("paper", PAPER)] {
        if only.as_ref().is_none_or(|o| o == name) {
            let configuration = Configuration::parse(texts)?;
            floor(name, &configuration);
            measure::all(name, &configuration, seconds)?;
        }
    }
    Ok(())
}

/// What a step of one run takes, whatever it is computed on.
fn floor(name: &str, configuration: &Configuration) {
    let Configuration { model, data, .. } = configuration;
    let DataSpec::SparseLinear(sparse) = data;
    let together = together(configuration, Precision::F32);
    let cost = cost(Sizes::new(model, data), sparse, 1, together, 232_448);
    let giga = |n: usize| n as f64 / 1e9;
    println!(
        "{name}: a step is {} products of {:.2} GFLOP and {:.3} GB, and {} other launches of {:.3} GB; memory {:.2} GB a run",
        cost.products,
        giga(cost.operations),
        giga(cost.product_bytes),
        cost.launches + cost.clears,
        giga(cost.kernel_bytes),
        giga(cost.memory),
    );
}

fn together(configuration: &Configuration, precision: Precision) -> Together {
    let train = &configuration.train;
    Together { adam: optim::adam(&train.optimizer), batch: train.batch as usize, precision, slots: SLOTS }
}

#[cfg(not(feature = "cuda"))]
mod measure {
    use super::{Configuration, Failure};

    pub fn all(name: &str, _: &Configuration, _: f64) -> Result<(), Failure> {
        println!("{name}: not measured, since this was built without the feature `cuda` (--features cuda)");
        Ok(())
    }
}

#[cfg(feature = "cuda")]
mod measure {
    use super::{Configuration, Failure, SLOTS, together};
    use candle_core::Device;
    use std::time::Instant;
    use taskvec_kernels::{
        Precision,
        cuda::device::{Gpu, Launching},
    };
    use taskvec_model::spec::DataSpec;
    use taskvec_science::{
        engine::stacked::{Run, StackedEngine},
        model::Transformer,
    };

    /// So many seeds of one configuration.
    struct Seeds<'a> {
        configuration: &'a Configuration,
        networks: Vec<Transformer>,
    }

    impl<'a> Seeds<'a> {
        fn new(configuration: &'a Configuration, seeds: u64) -> Result<Self, Failure> {
            let Configuration { model, data, .. } = configuration;
            let network = |seed| Transformer::init(model, data, seed, &Device::Cpu);
            Ok(Self { configuration, networks: (0..seeds).map(network).collect::<Result<_, _>>()? })
        }

        fn runs(&self) -> Vec<Run<'_>> {
            let DataSpec::SparseLinear(data) = &self.configuration.data;
            let clip_norm = self.configuration.train.clip_norm;
            let run = |(seed, network)| Run { network, moments: None, data, seed, step: 0, clip_norm };
            (0..).zip(&self.networks).map(run).collect()
        }
    }

    pub fn all(name: &str, configuration: &Configuration, seconds: f64) -> Result<(), Failure> {
        let gpu = match Gpu::new(0, Launching::Each) {
            Ok(gpu) => gpu,
            Err(error) => {
                println!("{name}: not measured, since there is no GPU to use: {error}");
                return Ok(());
            }
        };
        for seeds in [1, 8, 32] {
            let seeds = Seeds::new(configuration, seeds)?;
            for precision in [Precision::F32, Precision::Tf32, Precision::Bf16] {
                for launching in [Launching::Each, Launching::Graph(1), Launching::Graph(10)] {
                    let what = format!("{name:10} × {:2} {precision:?} {launching:?}", seeds.networks.len());
                    match one(&gpu.launching(launching), &seeds, precision, seconds) {
                        Ok((rate, loss)) => println!("{what}: taskvec {rate:9.1} steps/s of each run, loss {loss:.4}"),
                        Err(error) => println!("{what}: not measured: {error}"),
                    }
                }
            }
        }
        Ok(())
    }

    /// Steps per second of each run, and the last loss of the first.
    fn one(gpu: &Gpu, seeds: &Seeds<'_>, precision: Precision, seconds: f64) -> Result<(f64, f64), Failure> {
        let train = &seeds.configuration.train;
        let mut engine = StackedEngine::new(gpu, &seeds.runs(), together(seeds.configuration, precision))?;
        let mut advance = || engine.advance(SLOTS, |_, step| train.learning_rate(step));
        advance()?;
        let (start, mut steps, mut loss) = (Instant::now(), 0, f64::NAN);
        while start.elapsed().as_secs_f64() < seconds {
            let advanced = advance()?;
            loss = advanced[0].rows.last().map_or(f64::NAN, |row| row.loss);
            steps += SLOTS;
        }
        Ok((steps as f64 / start.elapsed().as_secs_f64(), loss))
    }
}

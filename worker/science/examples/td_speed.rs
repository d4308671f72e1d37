//! What task decodability costs beside training, on the CPU: `td_speed THREADS [SECONDS]`.
//!
//! Of the quickstart's model and the paper's: one step of training, one checkpoint's decodability at all layers and site x with
//! 100 sequences of each task, and what 24 checkpoints take of all steps; and of the latter what neighbours and votes take,
//! which benches/neighbours.py does in scikit-learn with numbers of the same sizes.

mod common;

use common::{Configuration, Nowhere, PAPER, QUICKSTART};
use std::time::Instant;
use taskvec_model::spec::{At, DataSpec, Layers, Site, TdSpec};
use taskvec_science::{
    analysis::{decode::Decoder, td},
    rng::{Purpose, Stream},
    train::Trainer,
};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const CHECKPOINTS: f64 = 24.0;
const EACH: u32 = 100;
const K: u32 = 10;

fn main() -> Result<(), Failure> {
    taskvec_kernels::process::prepare();
    let mut args = std::env::args().skip(1);
    let threads: usize = args.next().ok_or("usage: td_speed THREADS [SECONDS]")?.parse()?;
    let seconds: f64 = args.next().map_or(Ok(5.0), |s| s.parse())?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    for (name, texts) in [("quickstart", QUICKSTART), ("paper", PAPER)] {
        pool.install(|| measure(name, &Configuration::parse(texts)?, seconds))?;
    }
    Ok(())
}

fn measure(name: &str, configuration: &Configuration, seconds: f64) -> Result<(), Failure> {
    let mut trainer = Trainer::fresh(&configuration.whole_run(1))?;
    let step = each(seconds, || Ok(trainer.advance().map(drop)?))?;
    let (network, DataSpec::SparseLinear(data)) = (trainer.network()?, &configuration.data);
    let spec = TdSpec { layers: Layers::All, sites: vec![Site::X], k: K, samples_per_task: EACH, at: At::All };
    let td = each(seconds, || Ok(td::run(&network, 1, &configuration.data, &spec, &mut Nowhere).map(drop)?))?;
    let sizes = network.sizes();
    let labels: Vec<u32> = (0..data.bases * EACH).map(|i| i % data.bases).collect();
    let points: Vec<f64> = (0..labels.len() * sizes.width).map(|i| (i as f64 * 0.37).sin()).collect();
    let decoder = Decoder::new(&labels, data.bases, K as usize, Stream { seed: 1, purpose: Purpose::Td, step: 1 });
    let votes = each(seconds, || {
        (0..=sizes.layers).for_each(|_| drop(decoder.decode(&points, sizes.width)));
        Ok(())
    })?;
    let share = CHECKPOINTS * td / (CHECKPOINTS * td + configuration.train.steps as f64 * step);
    println!(
        "{name:10} a step {:.4} s, a checkpoint's TD {td:.4} s: {CHECKPOINTS} checkpoints are {:.2} % of the time of {} steps",
        step,
        100.0 * share,
        configuration.train.steps
    );
    println!(
        "{name:10} neighbours, votes and standard errors of {} × {} points of {} numbers: taskvec {votes:.4} s",
        sizes.layers + 1,
        labels.len(),
        sizes.width
    );
    Ok(())
}

/// The mean time of a call, after a first one.
fn each(seconds: f64, mut call: impl FnMut() -> Result<(), Failure>) -> Result<f64, Failure> {
    call()?;
    let (start, mut calls) = (Instant::now(), 0.0);
    while calls == 0.0 || start.elapsed().as_secs_f64() < seconds {
        call()?;
        calls += 1.0;
    }
    Ok(start.elapsed().as_secs_f64() / calls)
}

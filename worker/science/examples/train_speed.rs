//! Steps per second of training, for the quickstart's model and the paper's, and of eight quickstart runs: side by side, each
//! by itself, and stacked, as a worker does it in one slot; also stacked, one and eight with a small batch. In f32 and, where
//! that is another way, with factors of bf16: `train_speed THREADS [SECONDS [NAME]]`.
//!
//! benches/pytorch_train.py measures the same configurations in PyTorch; `make bench` prints both.

mod common;

use common::{Configuration, PAPER, QUICKSTART};
use rayon::prelude::*;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};
use taskvec_model::{
    id::Digest,
    job::{BlobRef, CheckpointRef, JobWork, Progress, Purpose},
    metric::TrainLoss,
    spec::Precision,
};
use taskvec_science::{
    Control, Executed, Inputs, Member, MemberSink, Models, ScienceError, Sink, WriteCheckpoint, execute_stack,
    train::Trainer,
};

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    taskvec_kernels::process::prepare();
    let mut args = std::env::args().skip(1);
    let usage = "usage: train_speed THREADS [SECONDS [quickstart|paper]]";
    let threads: usize = args.next().ok_or(usage)?.parse()?;
    let seconds: f64 = args.next().map_or(Ok(10.0), |s| s.parse())?;
    let only = args.next();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    for (name, texts) in [("quickstart", QUICKSTART), ("paper", PAPER)] {
        if only.as_ref().is_none_or(|o| o == name) {
            for (factors, precision) in [("f32", Precision::F32), ("bf16", Precision::Bf16)] {
                let rate = pool.install(|| measure(texts, precision, seconds))?;
                println!("{name:10} {threads} threads  taskvec {rate:8.2} steps/s, {factors}");
            }
        }
    }
    if only.is_none_or(|o| o == "quickstart") {
        let together = |name: &str, rate: f64| {
            println!("{name:15} {threads} threads  taskvec {rate:8.2} steps/s, of all runs together");
        };
        together("8 runs", pool.install(|| side_by_side(Precision::F32, seconds))?);
        together("8 runs, bf16", pool.install(|| side_by_side(Precision::Bf16, seconds))?);
        together("8 stacked", pool.install(|| stacked(8, QUICKSTART_BATCH, Precision::F32, seconds))?);
        together("8 stacked, bf16", pool.install(|| stacked(8, QUICKSTART_BATCH, Precision::Bf16, seconds))?);
        together("1 small", pool.install(|| stacked(1, SMALL_BATCH, Precision::F32, seconds))?);
        together("8 small", pool.install(|| stacked(8, SMALL_BATCH, Precision::F32, seconds))?);
    }
    Ok(())
}

fn configuration(texts: [&str; 3], precision: Precision) -> Result<Configuration, Failure> {
    let mut configuration = Configuration::parse(texts)?;
    configuration.train.precision = precision;
    Ok(configuration)
}

/// Steps per second of eight seeds of the quickstart that share the threads, all runs together.
fn side_by_side(precision: Precision, seconds: f64) -> Result<f64, Failure> {
    const AT_ONCE: u32 = 20;
    let configuration = configuration(QUICKSTART, precision)?;
    let segments: Vec<_> = (0..8).map(|seed| configuration.whole_run(seed)).collect();
    let mut trainers = segments.iter().map(Trainer::fresh).collect::<Result<Vec<_>, _>>()?;
    let (start, mut steps) = (Instant::now(), 0);
    while start.elapsed().as_secs_f64() < seconds {
        let some = |trainer: &mut Trainer<'_>| (0..AT_ONCE).try_for_each(|_| trainer.advance().map(drop));
        trainers.par_iter_mut().with_max_len(1).try_for_each(some)?;
        steps += 8 * AT_ONCE;
    }
    Ok(f64::from(steps) / start.elapsed().as_secs_f64())
}

const QUICKSTART_BATCH: u32 = 64;
/// One piece, which one thread computes.
const SMALL_BATCH: u32 = 16;

/// The same of runs that a worker has in one slot, with this batch.
fn stacked(runs: u64, batch: u32, precision: Precision, seconds: f64) -> Result<f64, Failure> {
    let Configuration { model, data, train, checkpoints } = configuration(QUICKSTART, precision)?;
    let (steps, start) = (Arc::new(AtomicU64::new(0)), Instant::now());
    let member = |seed| {
        let (model, data, mut train, checkpoints) = (model.clone(), data.clone(), train.clone(), checkpoints.clone());
        (train.steps, train.batch) = (1_000_000, batch);
        let work = JobWork::Train { seed, model, data, train, checkpoints, from: 0, to: 1_000_000 };
        let sink = Box::new(Until { start, seconds, done: 0, steps: steps.clone() });
        Member { work, inputs: Inputs::default(), sink }
    };
    execute_stack((0..runs).map(member).collect(), &Models::default());
    Ok(steps.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64())
}

/// Stops its run after some seconds, and counts its steps.
struct Until {
    start: Instant,
    seconds: f64,
    done: u64,
    steps: Arc<AtomicU64>,
}

impl Sink for Until {
    fn progress(&mut self, progress: Progress) -> Control {
        self.done = progress.done;
        if self.start.elapsed().as_secs_f64() < self.seconds { Control::Continue } else { Control::Stop }
    }

    fn checkpoint(
        &mut self,
        step: u64,
        purpose: Purpose,
        _: &mut WriteCheckpoint<'_>,
    ) -> Result<CheckpointRef, ScienceError> {
        let blob = BlobRef { digest: Digest([0; 32]), bytes: 0 };
        Ok(CheckpointRef { step, purpose, blob })
    }

    fn train_loss(&mut self, _: TrainLoss) {}
}

impl MemberSink for Until {
    fn ended(self: Box<Self>, _: Result<Executed, ScienceError>) {
        self.steps.fetch_add(self.done, Ordering::Relaxed);
    }
}

/// Steps per second over at least `seconds`, after a warm-up of a tenth of that.
fn measure(texts: [&str; 3], precision: Precision, seconds: f64) -> Result<f64, Failure> {
    let configuration = configuration(texts, precision)?;
    let mut trainer = Trainer::fresh(&configuration.whole_run(0))?;
    let mut run = |seconds: f64| -> Result<f64, ScienceError> {
        let (start, mut steps) = (Instant::now(), 0);
        while start.elapsed().as_secs_f64() < seconds {
            trainer.advance()?;
            steps += 1;
        }
        Ok(f64::from(steps) / start.elapsed().as_secs_f64())
    };
    run(seconds / 10.0)?;
    Ok(run(seconds)?)
}

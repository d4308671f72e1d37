//! How fast prompts of a language model are analysed: `language_speed MODEL PROMPTS.json [THREADS [PER_TASK [SHOTS]]]`.
//!
//! Prints the memory and time of loading, then prompts and prompt tokens per second of one pass without answers (task
//! decodability at all layers), with greedy answers, and with both and the lens. PROMPTS.json gets the token ids of the prompts,
//! in the order measured, and whether each was answered rightly, so that benches/language.py can do the same in transformers
//! and llama.cpp and compare.

use serde_json::json;
use std::time::Instant;
use taskvec_model::{
    job::{CheckpointRef, LensPart, Progress, Purpose, TdPart},
    metric::TrainLoss,
    spec::{Family, FloatType, Instruction, Layers, NaturalSpec, PretrainedSpec, Site, Template},
};
use taskvec_science::{
    Control, Models, ScienceError, Sink, WriteCheckpoint,
    analysis::natural::{Reader, measure},
    load,
    task::{Prompts, Series, Split, TaskSet},
};

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    taskvec_kernels::process::prepare();
    let mut args = std::env::args().skip(1);
    let usage = "usage: language_speed MODEL PROMPTS.json [THREADS [PER_TASK [SHOTS]]]";
    let (path, out) = (args.next().ok_or(usage)?, args.next().ok_or(usage)?);
    let mut number = |default: usize| args.next().map_or(Ok(default), |s| s.parse());
    let (threads, per_task, shots) = (number(1)?, number(20)?, number(4)?);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    pool.install(|| run(&path, &out, per_task as u32, shots as u32))
}

fn run(path: &str, out: &str, per_task: u32, shots: u32) -> Result<(), Failure> {
    let spec = PretrainedSpec { path: path.to_owned(), revision: None, dtype: FloatType::F32, identity: None };
    let start = Instant::now();
    let reader = Models::default().get(&spec)?;
    let weights = load::Files::find(path, None)?.bytes(reader.model.dtype());
    let peak = peak_bytes().unwrap_or(f64::NAN);
    println!(
        "load                 {:6.2} s   weights {:.0} MB, peak memory {:.0} MB ({:.2} of the weights)",
        start.elapsed().as_secs_f64(),
        weights as f64 / 1e6,
        peak / 1e6,
        peak / weights as f64
    );
    let data = NaturalSpec {
        family: Family::Bitwise { digits: 5 },
        shots: vec![shots],
        tasks: Vec::new(),
        template: Template::default(),
        instruction: Instruction::None,
    };
    let rows = prompts(&reader, &data, per_task, shots)?;
    let tokens: usize = rows.iter().map(|(tokens, _)| tokens.len()).sum();
    let td = TdPart { layers: Layers::All, sites: vec![Site::X], k: 10, samples_per_task: per_task, pairs: false };
    let lens = LensPart { layers: Layers::All, samples_per_task: per_task };
    let asked = |icl, td, lens| measure::Asked { seed: 0, data: &data, shots, icl, td, lens };
    let mut right = Vec::new();
    for (what, asked) in [
        ("states of all layers", asked(None, Some(&td), None)),
        ("greedy answers", asked(Some(per_task), None, None)),
        ("states, answers, lens", asked(Some(per_task), Some(&td), Some(&lens))),
    ] {
        let start = Instant::now();
        let metrics = measure::run(&reader, asked, &mut Nowhere)?;
        let seconds = start.elapsed().as_secs_f64();
        let (prompts, tokens) = (rows.len() as f64 / seconds, tokens as f64 / seconds);
        println!("{what:22} taskvec {prompts:8.2} prompts/s {tokens:9.0} prompt tokens/s");
        right = metrics.icl.iter().map(|row| json!({ "task": row.latent_task, "accuracy": row.value })).collect();
    }
    let prompts: Vec<_> = rows.iter().map(|(t, answer)| json!({ "tokens": t, "answer": answer })).collect();
    std::fs::write(out, json!({ "prompts": prompts, "accuracy": right }).to_string())?;
    Ok(())
}

/// Tokens and answers of the prompts that a measurement sees.
fn prompts(
    reader: &Reader,
    data: &NaturalSpec,
    per_task: u32,
    shots: u32,
) -> Result<Vec<(Vec<u32>, String)>, ScienceError> {
    let tasks = TaskSet::load(data, 0)?;
    let prompts = Prompts::new(&tasks, data, &reader.tokenizer, reader.model.config().context, 0)?;
    let mut rows = Vec::new();
    for task in 0..tasks.tasks().len() {
        let series = Series { task, split: Split::Test, shots, replicate: 0 };
        rows.extend(prompts.batch(series, 0..u64::from(per_task))?.into_iter().map(|p| (p.tokens, p.answer)));
    }
    Ok(rows)
}

/// The most memory that this process has had.
fn peak_bytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? * 1024.0)
}

struct Nowhere;

impl Sink for Nowhere {
    fn progress(&mut self, _: Progress) -> Control {
        Control::Continue
    }

    fn checkpoint(&mut self, _: u64, _: Purpose, _: &mut WriteCheckpoint<'_>) -> Result<CheckpointRef, ScienceError> {
        Err(ScienceError::Sink("a measurement keeps no checkpoints".into()))
    }

    fn train_loss(&mut self, _: TrainLoss) {}
}

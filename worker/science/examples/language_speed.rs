//! How fast prompts of a language model are analysed: `language_speed MODEL PROMPTS.json [THREADS [PER_TASK [SHOTS
//! [DTYPE]]]]`, DTYPE being f32, bf16 or f16.
//!
//! Prints the memory and time of loading, then prompts and prompt tokens per second of one pass without answers (task
//! decodability at all layers), with greedy answers, with the lens, and with all three; and what is saved by doing these in one
//! pass, by not padding, and by computing the common beginning of patched prompts once. PROMPTS.json gets the token ids of the prompts,
//! in the order measured, and whether each was answered rightly, so that benches/language.py can do the same in transformers
//! and llama.cpp and compare.

mod common;

use common::Nowhere;
use serde_json::json;
use std::time::Instant;
use taskvec_model::{
    job::{LensPart, TdPart},
    spec::{
        At, Corpus, Family, FloatType, Instruction, InterventionSpec, Layers, NaturalSpec, PatchLayers, PatchMode,
        PatchPairs, PatchPositions, PretrainedSpec, Site, Template,
    },
};
use taskvec_science::{
    Models, ScienceError,
    analysis::natural::{Reader, intervene, measure},
    load,
    model::language::Batch,
    task::{Prompt, Prompts, Series, Split, TaskSet},
};

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    taskvec_kernels::process::prepare();
    let mut args = std::env::args().skip(1);
    let usage = "usage: language_speed MODEL PROMPTS.json [THREADS [PER_TASK [SHOTS [f32 | bf16 | f16 [GPU …]]]]]";
    let (path, out) = (args.next().ok_or(usage)?, args.next().ok_or(usage)?);
    let mut number = |default: usize| args.next().map_or(Ok(default), |s| s.parse());
    let (threads, per_task, shots) = (number(1)?, number(20)?, number(4)?);
    let dtype = args.next().map_or(Ok(FloatType::F32), |s| serde_json::from_value(json!(s)))?;
    let gpus = args.map(|gpu| gpu.parse()).collect::<Result<Vec<usize>, _>>()?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    let spec = PretrainedSpec { path, revision: None, dtype, identity: None };
    pool.install(|| run(&spec, &out, per_task as u32, shots as u32, gpus))
}

fn run(spec: &PretrainedSpec, out: &str, per_task: u32, shots: u32, gpus: Vec<usize>) -> Result<(), Failure> {
    loading(spec)?;
    let reader = Models::on_gpus(gpus).get(spec)?;
    let data = natural(Family::Bitwise { digits: 5 });
    let rows = prompts(&reader, &data, per_task, shots)?;
    let right = measured(&reader, &data, per_task, shots, &rows)?;
    if spec.dtype == FloatType::F32 {
        padding(&reader, per_task, shots)?;
        sharing(&rows)?;
        beginnings(&reader, &data, shots, &rows)?;
    }
    let prompts: Vec<_> = rows.iter().map(|p| json!({ "tokens": p.tokens, "answer": p.answer })).collect();
    std::fs::write(out, json!({ "prompts": prompts, "accuracy": right }).to_string())?;
    Ok(())
}

/// The model alone, without its tokenizer, and memory beyond what the process had before.
fn loading(spec: &PretrainedSpec) -> Result<(), Failure> {
    let (start, before) = (Instant::now(), peak_bytes().unwrap_or(f64::NAN));
    let files = load::Files::find(&spec.path, None)?;
    let model = files.load(load::dtype(spec.dtype), &[load::Room::cpu()])?;
    let (weights, peak) = (files.bytes(model.dtype()) as f64, peak_bytes().unwrap_or(f64::NAN) - before);
    println!(
        "load                 {:6.2} s   weights {:.0} MB, peak memory {:.0} MB ({:.2} of the weights)",
        start.elapsed().as_secs_f64(),
        weights / 1e6,
        peak / 1e6,
        peak / weights
    );
    Ok(())
}

fn natural(family: Family) -> NaturalSpec {
    let (template, instruction) = (Template::default(), Instruction::None);
    NaturalSpec { family, shots: Vec::new(), tasks: Vec::new(), template, instruction }
}

/// Each part of a measurement alone, and all in one pass; gives the accuracy of each task.
fn measured(
    reader: &Reader,
    data: &NaturalSpec,
    per_task: u32,
    shots: u32,
    rows: &[Prompt],
) -> Result<Vec<serde_json::Value>, Failure> {
    let tokens: usize = rows.iter().map(|p| p.tokens.len()).sum();
    let td = TdPart { layers: Layers::All, sites: vec![Site::X], k: 10, samples_per_task: per_task, pairs: false };
    let lens = LensPart { layers: Layers::All, samples_per_task: per_task };
    let asked = |icl, td, lens| measure::Asked { seed: 0, data, shots, icl, td, lens };
    // Memory that was never used costs more than memory that was.
    measure::run(reader, asked(None, Some(&td), None), &mut Nowhere)?;
    let (mut right, mut apart) = (Vec::new(), 0.0);
    for (what, asked) in [
        ("states of all layers", asked(None, Some(&td), None)),
        ("greedy answers", asked(Some(per_task), None, None)),
        ("lens", asked(None, None, Some(&lens))),
        ("states, answers, lens", asked(Some(per_task), Some(&td), Some(&lens))),
    ] {
        let start = Instant::now();
        let metrics = measure::run(reader, asked, &mut Nowhere)?;
        let seconds = start.elapsed().as_secs_f64();
        let (prompts, tokens) = (rows.len() as f64 / seconds, tokens as f64 / seconds);
        println!("{what:22} taskvec      {prompts:8.2} prompts/s {tokens:9.0} prompt tokens/s");
        if asked.td.is_some() && asked.icl.is_some() {
            println!("one pass saves         {seconds:.1} s for all three, {apart:.1} s one after the other");
        }
        apart += seconds;
        right = metrics.icl.iter().map(|row| json!({ "task": row.latent_task, "accuracy": row.value })).collect();
    }
    Ok(right)
}

/// What padding would cost with prompts of different lengths: in order, and sorted by length.
fn padding(reader: &Reader, per_task: u32, shots: u32) -> Result<(), ScienceError> {
    const BATCH: usize = 16;
    let rows = prompts(reader, &natural(Family::Pos { corpus: Corpus::Bundled }), per_task, shots)?;
    let mut lengths: Vec<usize> = rows.iter().map(|p| p.tokens.len()).collect();
    let padded = |lengths: &[usize]| -> usize {
        lengths.chunks(BATCH).map(|some| some.len() * some.iter().max().copied().unwrap_or(0)).sum()
    };
    let (tokens, in_order) = (lengths.iter().sum::<usize>(), padded(&lengths));
    lengths.sort_unstable();
    let more = |padded: usize| 100.0 * (padded as f64 / tokens as f64 - 1.0);
    println!(
        "packing saves          {:.1} % of the tokens of POS prompts padded in batches of {BATCH}, {:.1} % if sorted by length",
        more(in_order),
        more(padded(&lengths))
    );
    Ok(())
}

/// What it saves to compute once what prompts that come together begin with.
fn sharing(rows: &[Prompt]) -> Result<(), Failure> {
    const TOKENS: usize = 2048;
    let mut sorted: Vec<&Prompt> = rows.iter().collect();
    sorted.sort_by(|a, b| a.tokens.cmp(&b.tokens));
    let longest = sorted.iter().map(|p| p.tokens.len()).max().unwrap_or(1);
    let (mut all, mut computed) = (0, 0);
    for some in sorted.chunks((TOKENS / longest).max(1)) {
        let most: Vec<usize> = some.iter().map(|p| p.tokens.len() - 1).collect();
        computed += Batch::sharing(some.iter().map(|p| &p.tokens), &most)?.tokens().len();
        all += some.iter().map(|p| p.tokens.len()).sum::<usize>();
    }
    println!("sharing saves          {:.1} % of the tokens", 100.0 * (1.0 - computed as f64 / all as f64));
    Ok(())
}

/// Interventions at the last token of prompts, whose beginning all variants share, and at every site, of which the first is
/// near the start.
fn beginnings(reader: &Reader, data: &NaturalSpec, shots: u32, rows: &[Prompt]) -> Result<(), ScienceError> {
    let spec = |positions| InterventionSpec {
        at: At::Last,
        layers: PatchLayers::List(vec![5, 10, 15, 20]),
        site: Site::X,
        positions,
        mode: PatchMode::Replace,
        pairs: PatchPairs::Paper,
        shots: Vec::new(),
        samples_per_task: 2,
        replicates: 1,
    };
    for (what, positions) in [("last token", PatchPositions::Last), ("every site", PatchPositions::All)] {
        let spec = spec(positions);
        let start = Instant::now();
        let metrics = intervene::run(reader, intervene::Asked { seed: 0, data, shots, spec: &spec }, &mut Nowhere)?;
        let (seconds, variants) = (start.elapsed().as_secs_f64(), metrics.interventions.len());
        let answers = variants * spec.samples_per_task as usize;
        let first = |p: &Prompt| match positions {
            PatchPositions::Last => p.x_sites.last().copied(),
            PatchPositions::All => p.x_sites.first().copied(),
        };
        let (shared, tokens) =
            rows.iter().fold((0, 0), |(shared, tokens), p| (shared + first(p).unwrap_or(0), tokens + p.tokens.len()));
        println!(
            "patching, {what:12} taskvec      {:8.2} answers/s ({:.0} % of a prompt is common to its variants)",
            answers as f64 / seconds,
            100.0 * shared as f64 / tokens as f64
        );
    }
    Ok(())
}

/// The prompts that a measurement sees.
fn prompts(reader: &Reader, data: &NaturalSpec, per_task: u32, shots: u32) -> Result<Vec<Prompt>, ScienceError> {
    let tasks = TaskSet::load(data, 0)?;
    let prompts = Prompts::new(&tasks, data, &reader.tokenizer, reader.model.config().context, 0)?;
    let mut rows = Vec::new();
    for task in 0..tasks.tasks().len() {
        let series = Series { task, split: Split::Test, shots, replicate: 0 };
        rows.extend(prompts.batch(series, 0..u64::from(per_task))?);
    }
    Ok(rows)
}

/// The most memory that this process has had.
fn peak_bytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? * 1024.0)
}

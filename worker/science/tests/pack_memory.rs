//! What a run of a pack takes against its estimate, each case in a process of its own, since it is the process that is
//! measured.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use common::{Memory, peak};
use std::process::Command;
use taskvec_model::{job::JobWork, spec::DataSpec};
use taskvec_science::{Inputs, Models, execute};

/// Which case the process is there for.
const CASE: &str = "TASKVEC_PACK_MEMORY";

/// Threads that train.
const THREADS: u64 = 2;

/// Layers, width, examples and batch: many parameters, many tokens, and something of both.
const CASES: [[u32; 4]; 3] = [[4, 256, 4, 16], [2, 64, 20, 256], [6, 128, 10, 64]];

#[test]
fn the_estimate_is_near_what_training_takes() {
    if let Ok(case) = std::env::var(CASE) {
        return measure(CASES[case.parse::<usize>().unwrap()]);
    }
    if peak().is_none() {
        common::skipped(format_args!("/proc/self/status does not tell the peak of memory here"));
        return;
    }
    for (case, sizes) in CASES.iter().enumerate() {
        let mut child = Command::new(std::env::current_exe().unwrap());
        let this = "the_estimate_is_near_what_training_takes";
        let ended = child.args(["--exact", this, "--nocapture"]).env(CASE, case.to_string()).status().unwrap();
        assert!(ended.success(), "{sizes:?}");
    }
}

fn measure([layers, width, examples, batch]: [u32; 4]) {
    let (mut model, mut data, mut train) = (common::model(), common::data(), common::train(2));
    (model.layers, model.width, model.heads, train.batch) = (layers, width, 4, batch);
    let DataSpec::SparseLinear(inner) = &mut data;
    inner.examples = examples;
    let work = JobWork::Train { seed: 1, model, data, train, checkpoints: common::checkpoints(), from: 0, to: 2 };
    // The estimate is of all tokens at once; pieces that follow one another on a thread share their memory.
    let tokens = u64::from(2 * examples * batch);
    let pieces = (tokens / 256).clamp(1, 8).min(u64::from(batch));
    let of_tokens = 4 * tokens * u64::from(width) * (16 * u64::from(layers) + 10);
    let estimate = work.pack_key().unwrap().bytes() - of_tokens + of_tokens * THREADS.min(pieces) / pieces;
    assert!(estimate > 16 << 20, "{estimate} bytes are too few to measure");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(THREADS as usize).build().unwrap();
    let before = peak().unwrap();
    let mut sink = Memory::default();
    pool.install(|| execute(&work, &Inputs::default(), &Models::default(), &mut sink)).unwrap();
    // What the test itself keeps, and writes twice to compare.
    let kept: usize = sink.files.values().map(Vec::len).sum();
    let largest = sink.files.values().map(Vec::len).max().unwrap();
    let taken = (peak().unwrap() - before).saturating_sub((kept + largest) as u64);
    let ratio = taken as f64 / estimate as f64;
    eprintln!("{layers} layers of {width}, batch {batch} × {}: {ratio:.3} of the estimate", 2 * examples);
    assert!((0.8..1.25).contains(&ratio), "{taken} bytes, where {estimate} were expected");
}

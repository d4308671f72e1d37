//! How much memory loading takes beside the weights: in a process of its own, since it is the process that is measured.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use candle_core::DType;
use std::path::{Path, PathBuf};
use taskvec_science::load::{Files, Room};

/// The most memory that the process has ever had, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn loading_takes_little_more_than_the_weights() {
    let named = std::env::var_os("TASKVEC_SMOLLM2_GGUF").map(PathBuf::from);
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    let path = named.unwrap_or(fetched);
    if !path.is_file() {
        common::skipped(format_args!("{} is not there; `make models` fetches it", path.display()));
        return;
    }
    let before = peak();
    let files = Files::find(path.to_str().unwrap(), None).unwrap();
    let model = files.load(DType::F32, &[Room::cpu()]).unwrap();
    let ratio = (peak() - before) as f64 / files.bytes(DType::F32) as f64;
    eprintln!("peak memory of loading is {ratio:.3} of the weights");
    assert!(ratio < 1.1, "{ratio}");
    assert_eq!(model.dtype(), DType::F32);
}

//! How much memory loading takes beside the weights: each type in a process of its own, since it is the process that is
//! measured.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use candle_core::DType;
use common::peak;
use std::{
    path::{Path, PathBuf},
    process::Command,
};
use taskvec_science::load::{Files, Room};

/// Which type the process is there for.
const CASE: &str = "TASKVEC_GGUF_MEMORY";

#[test]
fn loading_takes_little_more_than_the_weights() {
    let named = std::env::var_os("TASKVEC_SMOLLM2_GGUF").map(PathBuf::from);
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    let path = named.unwrap_or(fetched);
    if !path.is_file() {
        common::skipped(format_args!("{} is not there; `make models` fetches it", path.display()));
        return;
    }
    if let Ok(case) = std::env::var(CASE) {
        return measure(&path, if case == "f32" { DType::F32 } else { DType::BF16 });
    }
    for case in ["f32", "bf16"] {
        let mut child = Command::new(std::env::current_exe().unwrap());
        let this = "loading_takes_little_more_than_the_weights";
        assert!(child.args(["--exact", this, "--nocapture"]).env(CASE, case).status().unwrap().success(), "{case}");
    }
}

fn measure(path: &Path, dtype: DType) {
    let before = peak().unwrap();
    let files = Files::find(path.to_str().unwrap(), None).unwrap();
    let model = files.load(dtype, &[Room::cpu()]).unwrap();
    let ratio = (peak().unwrap() - before) as f64 / files.bytes(dtype) as f64;
    eprintln!("peak memory of loading as {dtype:?} is {ratio:.3} of the weights");
    // At least nearly all of them, or the measurement saw nothing.
    assert!((0.9..1.1).contains(&ratio), "{dtype:?}: {ratio}");
    assert_eq!(model.dtype(), dtype);
}

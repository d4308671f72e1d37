//! A sink that keeps everything, and small specifications.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]
#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod language;
pub mod tiny;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};
use taskvec_model::{
    id::Digest,
    job::{BlobRef, CheckpointRef, Progress, Purpose},
    metric::TrainLoss,
    spec::{
        Arch, CheckpointSpec, DataSpec, Decay, InitSpec, ModelSpec, OptimizerKind, OptimizerSpec, Overlap, Precision,
        Schedule, SparseLinear, TrainSpec, YChannel,
    },
};
use taskvec_science::{Control, ScienceError, Sink, WriteCheckpoint};

#[derive(Default)]
pub struct Memory {
    pub files: BTreeMap<(u64, Purpose), Vec<u8>>,
    pub losses: Vec<TrainLoss>,
    pub progress: Vec<Progress>,
    /// Asks for a stop once so many steps are done.
    pub stop_at: Option<u64>,
}

impl Sink for Memory {
    fn progress(&mut self, progress: Progress) -> Control {
        self.progress.push(progress);
        if self.stop_at.is_some_and(|s| progress.done >= s) { Control::Stop } else { Control::Continue }
    }

    fn checkpoint(
        &mut self,
        step: u64,
        purpose: Purpose,
        write: &mut WriteCheckpoint<'_>,
    ) -> Result<CheckpointRef, ScienceError> {
        let (mut bytes, mut again) = (Vec::new(), Vec::new());
        write(&mut bytes)?;
        write(&mut again)?;
        assert!(bytes == again, "writing twice must give the same bytes");
        let blob = BlobRef { digest: Digest([0; 32]), bytes: bytes.len() as u64 };
        assert!(self.files.insert((step, purpose), bytes).is_none(), "{purpose} of step {step} was written twice");
        Ok(CheckpointRef { step, purpose, blob })
    }

    fn train_loss(&mut self, row: TrainLoss) {
        self.losses.push(row);
    }
}

/// Says why a test, or a part of it, is not done: not by `eprintln!`, which is hidden where the test passes.
pub fn skipped(why: std::fmt::Arguments<'_>) {
    std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("\nSKIPPED: {why}\n")).unwrap();
}

/// The most memory that this process has ever had, in bytes, where the system tells.
pub fn peak() -> Option<u64> {
    status("VmHWM:")
}

/// What it has now.
pub fn resident() -> Option<u64> {
    status("VmRSS:")
}

fn status(which: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(which))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

/// A folder that goes away with the test.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("taskvec-science-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

pub fn data() -> DataSpec {
    DataSpec::SparseLinear(SparseLinear {
        dim: 4,
        bases: 2,
        rank: 2,
        overlap: Overlap::Disjoint,
        examples: 4,
        noise_variance: 0.01,
        weight_mean: 1.0,
        y_channel: YChannel::Shared,
    })
}

pub fn model() -> ModelSpec {
    let init = InitSpec { std: 0.2, read_in_std: 0.3, position_std: 0.1 };
    ModelSpec { arch: Arch::Gpt2, layers: 2, width: 16, heads: 2, init }
}

pub fn train(steps: u64) -> TrainSpec {
    TrainSpec {
        steps,
        batch: 8,
        optimizer: OptimizerSpec {
            kind: OptimizerKind::Adam,
            learning_rate: 3e-3,
            betas: [0.9, 0.9999],
            epsilon: 1e-8,
            weight_decay: 0.0,
        },
        warmup: 5,
        decay: Decay::Cosine,
        clip_norm: Some(1.0),
        precision: Precision::F32,
        log_every: 4,
    }
}

pub fn checkpoints() -> CheckpointSpec {
    CheckpointSpec { schedule: Schedule::Linear, count: 5, resume_every: 20 }
}

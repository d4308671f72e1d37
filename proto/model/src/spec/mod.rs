//! The full configuration of one run: a sweep file with its grid point filled in and every default made explicit.
//!
//! These types hold what was already validated; `taskvec-sweep` reads and checks the YAML.

mod analysis;
mod data;
mod model;
mod natural;
mod train;

pub use analysis::{AnalysisSpec, At, EvaluateSpec, IclSpec, Layers, Site, TdSpec};
pub use data::{DataSpec, Overlap, SparseLinear, YChannel};
pub use model::{Arch, InitSpec, ModelSpec};
pub use natural::{
    Corpus, DataFile, Evaluate, Family, Finetune, FloatType, Instruction, InterventionSpec, LensSpec, LoraLayers,
    LoraSpec, ModelIdentity, NaturalAnalysis, NaturalIcl, NaturalSpec, NaturalTd, PatchLayers, PatchMode, PatchPairs,
    PatchPositions, PretrainedSpec, Template,
};
pub use train::{CheckpointSpec, Decay, OptimizerKind, OptimizerSpec, Precision, Schedule, TrainSpec};

use serde::{Deserialize, Serialize};

/// One run under one full configuration. Serialised, it looks like the sweep file it came from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum RunSpec {
    Pretrain(Pretrain),
    Selftest(Selftest),
}

impl RunSpec {
    pub fn seed(&self) -> u64 {
        match self {
            Self::Pretrain(p) => p.seed,
            Self::Selftest(s) => s.seed,
        }
    }

    pub fn kind(&self) -> &'static str {
        match self {
            Self::Pretrain(_) => "pretrain",
            Self::Selftest(_) => "selftest",
        }
    }
}

/// Train a small transformer from scratch on a synthetic mixture and analyse its checkpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pretrain {
    pub seed: u64,
    pub model: ModelSpec,
    pub data: DataSpec,
    pub train: TrainSpec,
    pub checkpoints: CheckpointSpec,
    pub evaluate: EvaluateSpec,
    pub analyses: Vec<AnalysisSpec>,
}

/// Jobs that compute nothing: they show that scheduling, storage and failure handling work on this installation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Selftest {
    pub seed: u64,
    pub selftest: SelftestSpec,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SelftestSpec {
    /// Independent jobs in the run.
    pub jobs: u32,
    pub behaviour: Behaviour,
    /// How long each job takes.
    pub millis: u64,
}

/// What a selftest job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Behaviour {
    Succeed,
    /// Reports an ordinary error that may be retried.
    Fail,
    /// Panics on the worker.
    Panic,
}

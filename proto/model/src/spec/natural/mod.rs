//! Pretrained language models and the tasks they are asked in words.

mod analysis;
mod data;
mod tune;

pub use analysis::{
    InterventionSpec, LensSpec, NaturalAnalysis, NaturalIcl, NaturalTd, PatchLayers, PatchMode, PatchPairs,
    PatchPositions,
};
pub use data::{Corpus, DataFile, Family, Instruction, NULL_TASK, NaturalSpec, Template};
pub use tune::{LoraLayers, LoraSpec, TuneSpec};

use super::CheckpointSpec;
use crate::{id::Digest, names::names};
use serde::{Deserialize, Serialize};

/// Analyse a pretrained model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluate {
    pub seed: u64,
    pub model: PretrainedSpec,
    pub data: NaturalSpec,
    pub analyses: Vec<NaturalAnalysis>,
}

/// Fine-tune a pretrained model with low-rank adapters and analyse it at its checkpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finetune {
    pub seed: u64,
    pub model: PretrainedSpec,
    pub data: NaturalSpec,
    pub lora: LoraSpec,
    pub train: TuneSpec,
    pub checkpoints: CheckpointSpec,
    pub analyses: Vec<NaturalAnalysis>,
}

/// Which pretrained model, and what it was found to be when the sweep was planned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PretrainedSpec {
    /// A folder as downloaded from the HuggingFace hub, a GGUF file, or a hub name (`owner/name`).
    pub path: String,
    /// A folder below `path`, or a revision of the hub.
    pub revision: Option<String>,
    /// What weights are held in; activations are 32-bit floats, which products with `bf16` weights round to bf16.
    pub dtype: FloatType,
    /// Filled in when the sweep is planned where the files are; workers refuse files that are not these.
    pub identity: Option<ModelIdentity>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FloatType {
    F32,
    Bf16,
    F16,
}

names!(FloatType, "number format", F32 = "f32", Bf16 = "bf16", F16 = "f16");

impl FloatType {
    /// Of one number.
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }
}

/// What a model's files say, and their hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelIdentity {
    /// BLAKE3 over names and contents of all files that are read.
    pub digest: Digest,
    /// `llama`, `gemma2`, `olmo`, `olmo2`, `gpt2` or `mamba2`.
    pub arch: String,
    /// Number of blocks, L.
    pub layers: u32,
    /// Width of the residual stream, d.
    pub width: u32,
    pub heads: u32,
    pub vocabulary: u32,
    pub parameters: u64,
    /// Longest sequence the model was made for; none where it has no such limit.
    pub context: Option<u32>,
    /// Pretraining step, where the revision names one (`step1000-tokens4B`); else 0.
    pub step: u64,
}

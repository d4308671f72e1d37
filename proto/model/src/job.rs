//! Jobs: what a worker is asked to compute, what it is given and what it hands back.

use crate::{
    id::Digest,
    metric::Metrics,
    spec::{
        Behaviour, CheckpointSpec, DataSpec, InterventionSpec, Layers, LoraSpec, ModelSpec, NaturalSpec,
        PretrainedSpec, Site, TdSpec, TrainSpec, TuneSpec,
    },
};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Everything a job computes from, except the checkpoints it reads. Its canonical JSON, the keys of the jobs it reads
/// from and `code_version` make the job's content key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "job", rename_all = "snake_case")]
pub enum JobWork {
    /// Training from the state after step `from` to the state after step `to`; `from` 0 starts from initialisation.
    Train {
        seed: u64,
        model: ModelSpec,
        data: DataSpec,
        train: TrainSpec,
        checkpoints: CheckpointSpec,
        from: u64,
        to: u64,
    },
    /// Error of the reference estimators on the held-out sequences and, where TD is asked for, the ideal observer's
    /// accuracy on the sequences that TD uses.
    Baselines { seed: u64, data: DataSpec, sequences: u32, td_samples_per_task: Option<u32> },
    /// ICL performance of one checkpoint.
    Icl { seed: u64, model: ModelSpec, data: DataSpec, sequences: u32 },
    /// Task decodability of one checkpoint.
    Td { seed: u64, model: ModelSpec, data: DataSpec, td: TdSpec },
    /// A language model on prompts with `shots` demonstrations: whatever is asked for, from the same prompts. Reads the
    /// adapters of a fine-tuned model, where it is one, as its weights.
    Measure {
        seed: u64,
        model: PretrainedSpec,
        /// Its `shots` are those of the job alone.
        data: NaturalSpec,
        shots: u32,
        /// Accuracy, on this many prompts of each task.
        icl: Option<u32>,
        td: Option<TdPart>,
        lens: Option<LensPart>,
    },
    /// What interventions in the states of one model do to its metric. Reads the checkpoint of a synthetic model, or
    /// the adapters of a fine-tuned one, as its weights.
    Intervene { seed: u64, subject: Subject, spec: InterventionSpec },
    /// Training of adapters from the state after step `from` to the state after step `to`; `from` 0 starts from fresh
    /// ones.
    Finetune {
        seed: u64,
        model: PretrainedSpec,
        /// Its `shots` are those of `train` alone.
        data: NaturalSpec,
        lora: LoraSpec,
        train: TuneSpec,
        checkpoints: CheckpointSpec,
        from: u64,
        to: u64,
    },
    /// Nothing, in a chosen manner.
    Selftest { seed: u64, index: u32, behaviour: Behaviour, millis: u64 },
}

impl JobWork {
    pub fn kind(&self) -> JobKind {
        match self {
            Self::Train { .. } => JobKind::Train,
            Self::Baselines { .. } => JobKind::Baselines,
            Self::Icl { .. } => JobKind::Icl,
            Self::Td { .. } => JobKind::Td,
            Self::Measure { .. } => JobKind::Measure,
            Self::Intervene { .. } => JobKind::Interventions,
            Self::Finetune { .. } => JobKind::Finetune,
            Self::Selftest { .. } => JobKind::Selftest,
        }
    }

    /// The pretrained model that the job is about, where there is one.
    pub fn pretrained(&self) -> Option<&PretrainedSpec> {
        match self {
            Self::Measure { model, .. }
            | Self::Finetune { model, .. }
            | Self::Intervene { subject: Subject::Language { model, .. }, .. } => Some(model),
            Self::Intervene { subject: Subject::Synthetic { .. }, .. }
            | Self::Train { .. }
            | Self::Baselines { .. }
            | Self::Icl { .. }
            | Self::Td { .. }
            | Self::Selftest { .. } => None,
        }
    }
}

/// Most rows of metrics that one job may give: they travel in one message.
pub const MAX_ROWS: u64 = 200_000;

/// Task decodability as part of [`JobWork::Measure`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TdPart {
    pub layers: Layers,
    pub sites: Vec<Site>,
    /// Neighbours that vote.
    pub k: u32,
    pub samples_per_task: u32,
    /// Also between two tasks at a time.
    pub pairs: bool,
}

/// The logit lens as part of [`JobWork::Measure`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LensPart {
    pub layers: Layers,
    pub samples_per_task: u32,
}

/// In whose states [`JobWork::Intervene`] intervenes, and on which sequences.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "world", rename_all = "snake_case")]
#[allow(clippy::large_enum_variant, reason = "there is one in a job, and it is never moved about")]
pub enum Subject {
    Synthetic {
        model: ModelSpec,
        data: DataSpec,
    },
    Language {
        model: PretrainedSpec,
        /// Its `shots` are those of the job alone.
        data: NaturalSpec,
        shots: u32,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    Train,
    Baselines,
    Icl,
    Td,
    Measure,
    Interventions,
    Finetune,
    Selftest,
}

impl JobKind {
    pub const ALL: [Self; 8] = [
        Self::Train,
        Self::Baselines,
        Self::Icl,
        Self::Td,
        Self::Measure,
        Self::Interventions,
        Self::Finetune,
        Self::Selftest,
    ];

    /// Raised by hand whenever a change to the code changes this kind's numbers, so that older results are not reused.
    pub fn code_version(self) -> u32 {
        match self {
            // 3: the last token of a sequence is left out, and sums of bf16 products have other lengths. 4: these are made by AMX
            // where there is such.
            Self::Train => 4,
            Self::Baselines => 1,
            Self::Icl => 1,
            Self::Td => 1,
            // 2: products with weights in bf16 round their other factor. 3: attention adds up keys in blocks whose places are
            // fixed, whatever prompts share and however far they see. 4: products with weights in bf16 are made by AMX where there is
            // such.
            Self::Measure => 4,
            Self::Interventions => 4,
            // 2: examples come in another order. 3, 4, 5: as 2, 3, 4 above.
            Self::Finetune => 5,
            Self::Selftest => 1,
        }
    }

    /// Is it a segment of training? Then it has a state to hand over when it is stopped, and its progress is the run's.
    pub fn trains(self) -> bool {
        matches!(self, Self::Train | Self::Finetune)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Baselines => "baselines",
            Self::Icl => "icl",
            Self::Td => "td",
            Self::Measure => "measure",
            Self::Interventions => "interventions",
            Self::Finetune => "finetune",
            Self::Selftest => "selftest",
        }
    }
}

impl fmt::Display for JobKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a stored checkpoint is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// Weights alone, for analysis. Kept.
    Weights,
    /// Weights, optimiser moments and step: training goes on from here. Kept while a job may still need it.
    Resume,
}

impl Purpose {
    pub const ALL: [Self; 2] = [Self::Weights, Self::Resume];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::Resume => "resume",
        }
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{text}` is not a {what}")]
pub struct BadName {
    pub what: &'static str,
    pub text: String,
}

impl FromStr for JobKind {
    type Err = BadName;
    fn from_str(s: &str) -> Result<Self, BadName> {
        Self::ALL.into_iter().find(|k| k.as_str() == s).ok_or_else(|| BadName { what: "job kind", text: s.to_owned() })
    }
}

impl FromStr for Purpose {
    type Err = BadName;
    fn from_str(s: &str) -> Result<Self, BadName> {
        Self::ALL
            .into_iter()
            .find(|p| p.as_str() == s)
            .ok_or_else(|| BadName { what: "checkpoint purpose", text: s.to_owned() })
    }
}

/// A stored run of bytes (a safetensors file) by its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobRef {
    pub digest: Digest,
    pub bytes: u64,
}

/// A checkpoint that a job reads or has written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointRef {
    pub step: u64,
    pub purpose: Purpose,
    pub blob: BlobRef,
}

/// What a worker needs to start an attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Assignment {
    pub work: JobWork,
    /// At most one per purpose.
    pub inputs: Vec<CheckpointRef>,
    /// Where an earlier attempt that was asked to stop left off.
    pub handover: Option<Handover>,
}

/// A training segment that was stopped on request between two steps: the state, and what the segment had produced.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Handover {
    pub state: CheckpointRef,
    pub produced: Produced,
}

/// What a finished job hands back; published in one transaction with its completion.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Produced {
    pub metrics: Metrics,
    pub checkpoints: Vec<CheckpointRef>,
}

/// Why an attempt did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub retry: Retry,
    /// For the user: what, where and what to do.
    pub reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Retry {
    /// The same would happen again: a diverged run, a damaged input.
    Never,
    /// Another try may succeed.
    Allowed,
}

/// How far a running attempt is. Transient: never stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Steps (or items) done, of `total`.
    pub done: u64,
    pub total: u64,
    pub per_second: f64,
    pub loss: Option<f64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for kind in JobKind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        for purpose in Purpose::ALL {
            assert_eq!(purpose.to_string().parse(), Ok(purpose));
        }
        assert!("trian".parse::<JobKind>().is_err());
    }
}

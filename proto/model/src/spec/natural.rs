//! Pretrained language models and the tasks they are asked in words.

use super::{CheckpointSpec, TrainSpec};
use crate::id::Digest;
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
    pub train: TrainSpec,
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
    /// What weights and activations are held in.
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

/// Tasks in words, and how prompts are made of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NaturalSpec {
    #[serde(flatten)]
    pub family: Family,
    /// Demonstrations before the query; every number is measured.
    pub shots: Vec<u32>,
    /// Latent tasks by name, in order; empty: all of the family.
    pub tasks: Vec<String>,
    pub template: Template,
    /// Is the true task named before the demonstrations?
    pub instruction: Instruction,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "family", rename_all = "snake_case")]
pub enum Family {
    /// Two binary numbers of `digits` digits to the result of AND, NAND, OR, NOR, XOR or XNOR, or to random digits (Null).
    Bitwise { digits: u32 },
    /// A sentence to its first Noun, Adjective, Verb, Adverb, Preposition or Pronoun, or to a random word (Null).
    Pos { corpus: Corpus },
    /// Rows of (task, input, output) from a file.
    Pairs { file: DataFile },
}

impl Family {
    /// The latent tasks, in order; empty where only the file knows them.
    pub fn latent_tasks(&self) -> &'static [&'static str] {
        match self {
            Self::Bitwise { .. } => &["AND", "NAND", "OR", "NOR", "XOR", "XNOR", "Null"],
            Self::Pos { .. } => &["Noun", "Adjective", "Verb", "Adverb", "Preposition", "Pronoun", "Null"],
            Self::Pairs { .. } => &[],
        }
    }
}

/// Tagged sentences.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "format", rename_all = "snake_case")]
pub enum Corpus {
    /// The small one that comes with the program.
    Bundled,
    /// NLTK's Penn Treebank sample: `treebank.zip` or its folder.
    Treebank {
        file: DataFile,
    },
    Conllu {
        file: DataFile,
    },
    /// A folder, zip or file in the Brown corpus's `word/TAG` format.
    Brown {
        file: DataFile,
    },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataFile {
    pub path: String,
    /// Filled in when the sweep is planned where the file is.
    pub digest: Option<Digest>,
}

/// How a prompt is written: the instruction (where there is one) and a separator, then for each demonstration
/// `input TEXT arrow gap OUTPUT separator`, then the query up to its arrow. The model is to go on with `gap OUTPUT`; where
/// the tokenizer makes the gap a token of its own before every output, the query includes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Template {
    /// Before every input.
    pub input: String,
    /// After every input. Site `x` is the last token before the output: the arrow's, or the gap's.
    pub arrow: String,
    /// Between arrow and output. Most tokenizers merge a space with the word after it, but many not with digits.
    pub gap: String,
    /// Between output and the next input; also ends the model's answer.
    pub separator: String,
}

impl Default for Template {
    /// `input -> output` lines.
    fn default() -> Self {
        Self { input: String::new(), arrow: " ->".into(), gap: " ".into(), separator: "\n".into() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Instruction {
    None,
    /// The latent task is named in the first line ("AND", "Find the first noun in the sentence.").
    Named,
}

/// What is measured on a language model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum NaturalAnalysis {
    Icl(NaturalIcl),
    Td(NaturalTd),
    Lens(LensSpec),
    Interventions(InterventionSpec),
}

/// Accuracy of greedy answers, exact match.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NaturalIcl {
    pub at: super::At,
    pub samples_per_task: u32,
}

/// Task decodability from the state before the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NaturalTd {
    pub at: super::At,
    pub layers: super::Layers,
    pub sites: Vec<super::Site>,
    pub k: u32,
    pub samples_per_task: u32,
    /// Also between two tasks at a time (`results.td_pairs`).
    pub pairs: bool,
}

/// Logit lens (nostalgebraist 2020): what the final norm and the unembedding make of each layer's state before the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LensSpec {
    pub at: super::At,
    pub layers: super::Layers,
    pub samples_per_task: u32,
}

/// Activation patching with mean states: what the metric of a source task becomes when the state is moved towards a
/// target task. Serves both worlds; a synthetic model's metric is its squared error, a language model's its accuracy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InterventionSpec {
    pub at: super::At,
    pub layers: PatchLayers,
    pub site: super::Site,
    pub positions: PatchPositions,
    pub mode: PatchMode,
    pub pairs: PatchPairs,
    /// Sequences from which the mean of each task is taken, and on which the effect is measured.
    pub samples_per_task: u32,
    /// Independent draws of both.
    pub replicates: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PatchLayers {
    All,
    /// The one whose mean TD over tasks is highest on the same prompts (language models).
    Best,
    List(Vec<u32>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PatchPositions {
    /// The last one of the site.
    Last,
    /// Every one of the site.
    All,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PatchMode {
    /// The state becomes the target's mean.
    Replace,
    /// The target's mean less the mean over tasks is added.
    AddMeanDifference,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PatchPairs {
    /// Every source with every target.
    Matrix,
    /// Every task with itself (positive) and with Null (negative), as in the paper.
    Paper,
    List(Vec<[String; 2]>),
}

/// Low-rank adapters (Hu et al. 2021).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraSpec {
    pub rank: u32,
    pub alpha: f64,
    pub dropout: f64,
    /// Module names as in the checkpoint: `q_proj`, `k_proj`, …
    pub targets: Vec<String>,
    pub layers: LoraLayers,
}

/// Which blocks get adapters, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoraLayers {
    All,
    First(u32),
    Last(u32),
    Range(u32, u32),
}

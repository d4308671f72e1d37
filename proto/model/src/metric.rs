//! Metric rows: one struct per result view, without the run and step, which the job knows.

use crate::{
    job::BadName,
    spec::{PatchMode, PatchPositions, Site},
};
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// All rows a job produced.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub train_loss: Vec<TrainLoss>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub icl: Vec<Icl>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub baselines: Vec<Baseline>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub td: Vec<Td>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub td_bound: Vec<TdBound>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub td_pairs: Vec<TdPair>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interventions: Vec<Intervention>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lens: Vec<Lens>,
}

impl Metrics {
    pub fn rows(&self) -> usize {
        let Self { train_loss, icl, baselines, td, td_bound, td_pairs, interventions, lens } = self;
        let synthetic = baselines.len() + td_bound.len();
        let natural = td_pairs.len() + lens.len();
        train_loss.len() + icl.len() + td.len() + interventions.len() + synthetic + natural
    }

    /// Adds the rows of `more` after these.
    pub fn append(&mut self, more: Self) {
        // Taken apart, so that no table can be forgotten.
        let Self { train_loss, icl, baselines, td, td_bound, td_pairs, interventions, lens } = more;
        self.train_loss.extend(train_loss);
        self.icl.extend(icl);
        self.baselines.extend(baselines);
        self.td.extend(td);
        self.td_bound.extend(td_bound);
        self.td_pairs.extend(td_pairs);
        self.interventions.extend(interventions);
        self.lens.extend(lens);
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainLoss {
    /// The update whose loss this is; the first update is step 1.
    pub step: u64,
    /// Before the update: mean squared error over the batch and all positions; of a language model, mean cross-entropy
    /// (in nats) over the answer tokens of the batch.
    pub loss: f64,
    pub learning_rate: f64,
    /// A time, not a result: it differs from machine to machine.
    pub sequences_per_second: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Icl {
    pub latent_task: String,
    /// Demonstrations before the last query of the sequence: K − 1 for synthetic data.
    pub shots: u32,
    /// 1 … K, or none for the mean over positions; always none for language models.
    pub position: Option<u32>,
    pub metric: IclMetric,
    pub value: f64,
    /// Standard error of `value` over sequences.
    pub stderr: f64,
    /// Sequences.
    pub n: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IclMetric {
    /// Squared error.
    Mse,
    /// Exact match of the whole greedy answer.
    Accuracy,
}

impl IclMetric {
    pub const ALL: [Self; 2] = [Self::Mse, Self::Accuracy];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mse => "mse",
            Self::Accuracy => "accuracy",
        }
    }
}

impl FromStr for IclMetric {
    type Err = BadName;
    fn from_str(s: &str) -> Result<Self, BadName> {
        Self::ALL.into_iter().find(|m| m.as_str() == s).ok_or_else(|| BadName { what: "metric", text: s.to_owned() })
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    pub latent_task: String,
    /// 1 … K, or none for the mean over positions.
    pub position: Option<u32>,
    pub estimator: Estimator,
    pub mse: f64,
}

/// Predictors that bound what a model can reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Estimator {
    /// Predicts 0.
    Zero,
    /// Ridge regression on all D coordinates.
    Ridge,
    /// LASSO on all D coordinates, at the penalty that is best on average over the held-out sequences.
    Lasso,
    /// Bayes estimate given the true basis.
    Oracle,
    /// Bayes estimate over all bases, weighted by their posterior.
    BayesMixture,
}

impl Estimator {
    pub const ALL: [Self; 5] = [Self::Zero, Self::Ridge, Self::Lasso, Self::Oracle, Self::BayesMixture];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Zero => "zero",
            Self::Ridge => "ridge",
            Self::Lasso => "lasso",
            Self::Oracle => "oracle",
            Self::BayesMixture => "bayes_mixture",
        }
    }
}

impl FromStr for Estimator {
    type Err = BadName;
    fn from_str(s: &str) -> Result<Self, BadName> {
        Self::ALL.into_iter().find(|e| e.as_str() == s).ok_or_else(|| BadName { what: "estimator", text: s.to_owned() })
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Td {
    pub layer: u32,
    pub site: Site,
    pub latent_task: String,
    pub shots: u32,
    pub k: u32,
    /// Samples of this latent task.
    pub n: u32,
    /// Fraction of them whose neighbours name the right task.
    pub value: f64,
    pub stderr: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TdBound {
    pub latent_task: String,
    pub shots: u32,
    /// How often the exact posterior over bases is highest at the true one.
    pub value: f64,
}

/// Task decodability between two latent tasks alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TdPair {
    pub layer: u32,
    pub site: Site,
    /// Comes before `latent_task_b` in the order of the tasks.
    pub latent_task_a: String,
    pub latent_task_b: String,
    pub shots: u32,
    /// Fraction of the samples of both whose neighbours, among both, name the right one; chance is 0.5.
    pub value: f64,
}

/// What moving the states of a source task towards a target task does to the metric of the source task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Intervention {
    pub layer: u32,
    pub site: Site,
    pub positions: PatchPositions,
    pub mode: PatchMode,
    pub source_task: String,
    pub target_task: String,
    pub shots: u32,
    pub metric: IclMetric,
    /// Without the intervention, on the same sequences.
    pub baseline: f64,
    pub patched: f64,
    /// From 1: which independent draw of sequences.
    pub replicate: u32,
    /// Sequences of the source task.
    pub n: u32,
}

/// What the final norm and the unembedding make of a layer's state before the answer: of the first token of the right answer,
/// over the prompts of one latent task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lens {
    pub layer: u32,
    pub latent_task: String,
    pub shots: u32,
    /// How often it is the first choice.
    pub accuracy: f64,
    /// Mean log probability, in nats.
    pub log_prob: f64,
    /// Mean rank among all tokens; 1 is the first choice.
    pub rank: f64,
    /// Prompts.
    pub n: u32,
}

//! Metric rows: one struct per result view, without the run and step, which the job knows.

use crate::{job::BadName, spec::Site};
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
}

impl Metrics {
    pub fn rows(&self) -> usize {
        self.train_loss.len() + self.icl.len() + self.baselines.len() + self.td.len() + self.td_bound.len()
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainLoss {
    /// The update whose loss this is; the first update is step 1.
    pub step: u64,
    /// Mean squared error over the batch and all positions, before the update.
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
    /// 1 … K, or none for the mean over positions.
    pub position: Option<u32>,
    pub metric: IclMetric,
    pub value: f64,
    /// Standard error of `value` over sequences.
    pub stderr: f64,
    /// Sequences.
    pub n: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IclMetric {
    Mse,
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

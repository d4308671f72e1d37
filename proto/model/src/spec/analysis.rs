//! What is measured at a run's checkpoints.

use super::InterventionSpec;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluateSpec {
    /// Held-out sequences over which ICL performance and the baselines are averaged.
    pub sequences: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum AnalysisSpec {
    Icl(IclSpec),
    Td(TdSpec),
    Interventions(InterventionSpec),
}

impl AnalysisSpec {
    pub fn at(&self) -> &At {
        match self {
            Self::Icl(a) => &a.at,
            Self::Td(a) => &a.at,
            Self::Interventions(a) => &a.at,
        }
    }
}

/// ICL performance: error per latent task and position, with the baselines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IclSpec {
    pub at: At,
}

/// Task decodability: leave-one-out kNN accuracy of the latent task from hidden states.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TdSpec {
    pub layers: Layers,
    pub sites: Vec<Site>,
    /// Neighbours that vote.
    pub k: u32,
    pub samples_per_task: u32,
    pub at: At,
}

/// Which checkpoints an analysis looks at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum At {
    All,
    Last,
    /// Steps of the run; each must be one of its checkpoints.
    Steps(Vec<u64>),
}

impl At {
    /// Does the analysis want the checkpoint at `step` of a run of `last` steps?
    pub fn wants(&self, step: u64, last: u64) -> bool {
        match self {
            Self::All => true,
            Self::Last => step == last,
            Self::Steps(steps) => steps.contains(&step),
        }
    }
}

/// Layers count from 1 (output of block 1) to L; 0 is the embedding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layers {
    All,
    List(Vec<u32>),
}

impl Layers {
    /// The layers meant, for a model of `count` blocks.
    pub fn resolve(&self, count: u32) -> Vec<u32> {
        match self {
            Self::All => (0..=count).collect(),
            Self::List(list) => list.clone(),
        }
    }
}

/// The position at which a hidden state is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Site {
    /// The position that predicts the answer: the last x.
    X,
    /// The last answer before it: the last but one y.
    Y,
    /// As `x`, with one query shared by all sequences (synthetic data only).
    S,
}

impl Site {
    pub const ALL: [Self; 3] = [Self::X, Self::Y, Self::S];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::X => "x",
            Self::Y => "y",
            Self::S => "s",
        }
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a site: x, y or s")]
pub struct BadSite(String);

impl FromStr for Site {
    type Err = BadSite;
    fn from_str(s: &str) -> Result<Self, BadSite> {
        Self::ALL.into_iter().find(|site| site.as_str() == s).ok_or_else(|| BadSite(s.to_owned()))
    }
}

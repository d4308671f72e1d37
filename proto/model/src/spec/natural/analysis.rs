//! What is measured on a language model, and interventions on any model.

use super::super::{At, Layers, Site};
use crate::names::names;
use serde::{Deserialize, Serialize};

/// What is measured on a language model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum NaturalAnalysis {
    Icl(NaturalIcl),
    Td(NaturalTd),
    Lens(LensSpec),
    Interventions(InterventionSpec),
}

impl NaturalAnalysis {
    pub fn at(&self) -> &At {
        match self {
            Self::Icl(a) => &a.at,
            Self::Td(a) => &a.at,
            Self::Lens(a) => &a.at,
            Self::Interventions(a) => &a.at,
        }
    }
}

/// Accuracy of greedy answers, exact match.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NaturalIcl {
    pub at: At,
    pub samples_per_task: u32,
}

/// Task decodability from the state before the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NaturalTd {
    pub at: At,
    pub layers: Layers,
    pub sites: Vec<Site>,
    pub k: u32,
    pub samples_per_task: u32,
    /// Also between two tasks at a time (`results.td_pairs`).
    pub pairs: bool,
}

/// Logit lens (nostalgebraist 2020): what the final norm and the unembedding make of each layer's state before the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LensSpec {
    pub at: At,
    pub layers: Layers,
    pub samples_per_task: u32,
}

/// Activation patching with mean states: what the metric of a source task becomes when the state is moved towards a
/// target task. Serves both worlds; a synthetic model's metric is its squared error, a language model's its accuracy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InterventionSpec {
    pub at: At,
    pub layers: PatchLayers,
    pub site: Site,
    pub positions: PatchPositions,
    pub mode: PatchMode,
    pub pairs: PatchPairs,
    /// Language models: the numbers of demonstrations at which it is done, each a job of its own. Empty in such a job,
    /// whose subject has the number, and for synthetic models, whose sequences have one length.
    pub shots: Vec<u32>,
    /// Sequences from which the mean of each task is taken, and on which the effect is measured.
    pub samples_per_task: u32,
    /// Independent draws of both.
    pub replicates: u32,
}

/// At the output of which blocks, from 1; 0 is the embedding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PatchLayers {
    /// Every block, one at a time.
    All,
    /// The one whose mean TD over tasks is highest on the same prompts (language models).
    Best,
    List(Vec<u32>),
}

impl PatchLayers {
    /// The layers meant, for a model of `count` blocks; none for the best, which is found when the job runs.
    pub fn resolve(&self, count: u32) -> Option<Vec<u32>> {
        match self {
            Self::All => Some((1..=count).collect()),
            Self::Best => None,
            Self::List(list) => Some(list.clone()),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PatchPositions {
    /// The last one of the site.
    Last,
    /// Every one of the site.
    All,
}

names!(PatchPositions, "choice of positions", Last = "last", All = "all");

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PatchMode {
    /// The state becomes the target's mean.
    Replace,
    /// The target's mean less the mean over tasks is added.
    AddMeanDifference,
}

names!(PatchMode, "mode of intervention", Replace = "replace", AddMeanDifference = "add_mean_difference");

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PatchPairs {
    /// Every source with every target.
    Matrix,
    /// Every task with itself (positive) and with Null (negative), as in the paper.
    Paper,
    /// Source and target of each.
    List(Vec<[String; 2]>),
}

impl PatchPairs {
    /// How many pairs there are among `tasks`.
    pub fn count(&self, tasks: &[String]) -> usize {
        match self {
            Self::Matrix => tasks.len() * tasks.len(),
            Self::Paper => 2 * tasks.iter().filter(|t| *t != super::NULL_TASK).count(),
            Self::List(list) => list.len(),
        }
    }

    /// Source and target of each pair among `tasks`.
    pub fn resolve(&self, tasks: &[String]) -> Vec<[String; 2]> {
        let pair = |source: &String, target: &str| [source.clone(), target.to_owned()];
        match self {
            Self::Matrix => tasks.iter().flat_map(|s| tasks.iter().map(move |t| pair(s, t))).collect(),
            Self::Paper => {
                let sources = tasks.iter().filter(|t| *t != super::NULL_TASK);
                sources.flat_map(|s| [pair(s, s), pair(s, super::NULL_TASK)]).collect()
            }
            Self::List(list) => list.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_papers_pairs_are_each_task_with_itself_and_with_null() {
        let tasks = ["AND", "Null", "OR"].map(str::to_owned);
        let shown = |pairs: PatchPairs| pairs.resolve(&tasks).iter().map(|p| p.join(">")).collect::<Vec<_>>();
        assert_eq!(shown(PatchPairs::Paper), ["AND>AND", "AND>Null", "OR>OR", "OR>Null"]);
        assert_eq!(shown(PatchPairs::Matrix).len(), 9);
        assert_eq!((PatchPairs::Paper.count(&tasks), PatchPairs::Matrix.count(&tasks)), (4, 9));
        assert_eq!(PatchLayers::All.resolve(2), Some(vec![1, 2]));
    }
}

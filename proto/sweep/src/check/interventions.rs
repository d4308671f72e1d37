//! Checks of interventions, in models of every kind.

use super::Checker;
use crate::fault::{any_of, did_you_mean, quoted};
use std::collections::BTreeSet;
use taskvec_model::{
    job::MAX_ROWS,
    spec::{InterventionSpec, NULL_TASK, PatchLayers, PatchPairs},
};

impl Checker<'_> {
    /// `source` is the setting that the tasks come from.
    pub(super) fn patched_pairs(&mut self, path: &str, spec: &InterventionSpec, tasks: &[String], source: &str) {
        match &spec.pairs {
            PatchPairs::Matrix => {}
            PatchPairs::Paper => {
                if !tasks.iter().any(|t| t == NULL_TASK) || tasks.len() < 2 {
                    let message = format!(
                        "`{path}.pairs`: the paper's pairs move every task towards itself and towards Null; `{source}` must \
                         have Null and another task"
                    );
                    self.fault(&[&format!("{path}.pairs"), source], message);
                }
            }
            PatchPairs::List(pairs) => {
                let names = || tasks.iter().map(String::as_str);
                for (i, pair) in pairs.iter().enumerate() {
                    for (j, task) in pair.iter().enumerate().filter(|(_, task)| !tasks.contains(task)) {
                        let slip = did_you_mean(task, names());
                        let message = format!(
                            "`{path}.pairs`: {} is not among the tasks of this run: {}{slip}",
                            quoted(task),
                            any_of(names())
                        );
                        self.fault(&[&format!("{path}.pairs[{i}][{j}]"), source], message);
                    }
                }
            }
        }
    }

    pub(super) fn patched_layers(&mut self, path: &str, spec: &InterventionSpec, count: u64, sizes: &[&str]) {
        if let PatchLayers::List(layers) = &spec.layers {
            self.layers(path, layers, count, sizes);
        }
    }

    /// All rows of a job travel in one message.
    pub(super) fn patched_rows(&mut self, path: &str, spec: &InterventionSpec, tasks: &[String], layers: u32) {
        let layers = spec.layers.resolve(layers).map_or(1, |l| l.len()) as u64;
        let rows = layers * spec.pairs.count(tasks) as u64 * u64::from(spec.replicates);
        if rows > MAX_ROWS {
            let message = format!(
                "`{path}`: {rows} results (layers × pairs × replicates) in one job; at most {MAX_ROWS}: use fewer layers, \
                 pairs or replicates"
            );
            let part = |key: &str| format!("{path}.{key}");
            self.fault(&[&part("replicates"), &part("layers"), &part("pairs")], message);
        }
    }
}

/// Would both give rows for the same intervention? `layers` is the number of blocks.
pub(super) fn same_patches(a: &InterventionSpec, b: &InterventionSpec, layers: u32) -> bool {
    let common = |a: &[u32], b: &[u32]| a.iter().any(|x| b.contains(x));
    let layers = match (a.layers.resolve(layers), b.layers.resolve(layers)) {
        (Some(a), Some(b)) => common(&a, &b),
        // The best one may be any.
        _ => true,
    };
    let shots = a.shots == b.shots || common(&a.shots, &b.shots);
    let manner = (a.site, a.positions, a.mode) == (b.site, b.positions, b.mode);
    manner && layers && shots && share_a_pair(&a.pairs, &b.pairs)
}

fn share_a_pair(a: &PatchPairs, b: &PatchPairs) -> bool {
    match (a, b) {
        (PatchPairs::Matrix, _) | (_, PatchPairs::Matrix) | (PatchPairs::Paper, PatchPairs::Paper) => true,
        (PatchPairs::Paper, PatchPairs::List(list)) | (PatchPairs::List(list), PatchPairs::Paper) => {
            list.iter().any(|[source, target]| source == target || target == NULL_TASK)
        }
        (PatchPairs::List(a), PatchPairs::List(b)) => {
            let a: BTreeSet<&[String; 2]> = a.iter().collect();
            b.iter().any(|pair| a.contains(pair))
        }
    }
}

//! The runs of a sweep: each point of the grid read, checked against its files and made complete.

use crate::{
    Limits, check, complete,
    fault::{Collector, quoted},
    files::Look,
    grid::Point,
    read::{self, Values},
    tree::{Node, Value},
};
use std::collections::BTreeSet;
use taskvec_model::{
    pattern::is_pattern,
    plan::PlannedRun,
    spec::{ModelIdentity, NaturalSpec, PretrainedSpec, RunSpec},
};

const REVISION: &str = "model.revision";

pub(crate) struct Runs<'a> {
    pub limits: &'a Limits,
    pub look: Look<'a>,
    pub faults: &'a mut Collector,
}

impl Runs<'_> {
    /// Those of all points, in order. Useless when faults were added.
    pub fn all(&mut self, points: impl Iterator<Item = Point>) -> Vec<PlannedRun> {
        let mut runs = Vec::new();
        // Two patterns may match the same revision.
        let mut known = BTreeSet::new();
        for point in points {
            for point in self.spread(point) {
                if !known.insert(point.params.to_string()) {
                    continue;
                }
                let run = self.read(&point.tree).map(|spec| PlannedRun { spec, params: point.params });
                runs.extend(run);
                if self.faults.is_full() || self.too_many(&runs, &point.tree) {
                    return runs;
                }
            }
        }
        runs
    }

    /// The grid was counted before; patterns may have made it larger.
    fn too_many(&mut self, runs: &[PlannedRun], tree: &Node) -> bool {
        let most = self.limits.runs;
        let too_many = runs.len() as u64 > most;
        if too_many {
            let at = revision(tree).map_or(tree.at, |node| node.at);
            self.faults
                .add(at, format!("with all revisions that match, the sweep has more than {most} runs; at most {most}"));
        }
        too_many
    }

    /// The point itself, or one for every revision that matches its pattern.
    fn spread(&mut self, point: Point) -> Vec<Point> {
        let Some((path, node)) = model_path(&point.tree).zip(revision(&point.tree)) else { return vec![point] };
        let Value::Text(pattern) = &node.value else { return vec![point] };
        if !is_pattern(pattern) {
            return vec![point];
        }
        match self.look.revisions(path, pattern) {
            None => vec![point],
            Some(Ok(found)) if !found.is_empty() => found.iter().map(|name| point.with_text(REVISION, name)).collect(),
            Some(found) => {
                let why = found
                    .err()
                    .unwrap_or_else(|| format!("no revision of {} matches {}", quoted(path), quoted(pattern)));
                self.faults.add(node.at, format!("`{REVISION}`: {why}"));
                Vec::new()
            }
        }
    }

    /// One run of the sweep.
    pub fn read(&mut self, tree: &Node) -> Option<RunSpec> {
        let (json, values) = read::read(tree, self.faults);
        let identity = self.identity(&values);
        check::check(&values, identity.as_ref(), self.limits, self.faults);
        let mut json = json?;
        let map = json.as_object_mut()?;
        for key in ["version", "name"] {
            map.remove(key);
        }
        complete::run(&mut json);
        let mut spec = match serde_json::from_value(json) {
            Ok(spec) => spec,
            Err(e) => {
                let message = format!("this configuration cannot be represented: {e}; please report it");
                self.faults.add(tree.at, message);
                return None;
            }
        };
        if let Some((model, data)) = natural(&mut spec) {
            model.identity = identity;
            self.hash(data, &values);
        }
        Some(spec)
    }

    /// What the pretrained model is found to be. None where there is none, where it is at fault, and where no files are
    /// looked at.
    fn identity(&mut self, values: &Values) -> Option<ModelIdentity> {
        let path = values.word("model.path")?;
        let revision = &values.get(REVISION)?.json;
        match self.look.model(path, revision.as_str())? {
            Ok(identity) => Some(identity),
            Err(why) => {
                let settings = if revision.is_null() { &["model.path"][..] } else { &["model.path", REVISION] };
                self.faults.add(values.blame(settings), format!("`model.path`: {why}"));
                None
            }
        }
    }

    /// Fills in the hash of the data file, where there is one.
    fn hash(&mut self, data: &mut NaturalSpec, values: &Values) {
        match self.look.data(&data.family) {
            None => {}
            Some(Ok(found)) => data.family = found,
            Some(Err(why)) => {
                let setting = if values.get("data.file").is_some() { "data.file" } else { "data.corpus.path" };
                self.faults.add(values.blame(&[setting]), format!("`{setting}`: {why}"));
            }
        }
    }
}

/// The parts of a run that files decide on.
fn natural(spec: &mut RunSpec) -> Option<(&mut PretrainedSpec, &mut NaturalSpec)> {
    match spec {
        RunSpec::Evaluate(run) => Some((&mut run.model, &mut run.data)),
        RunSpec::Finetune(run) => Some((&mut run.model, &mut run.data)),
        RunSpec::Pretrain(_) | RunSpec::Selftest(_) => None,
    }
}

fn revision(tree: &Node) -> Option<&Node> {
    Some(&tree.get("model")?.node.get("revision")?.node)
}

fn model_path(tree: &Node) -> Option<&str> {
    match &tree.get("model")?.node.get("path")?.node.value {
        Value::Text(path) => Some(path),
        _ => None,
    }
}

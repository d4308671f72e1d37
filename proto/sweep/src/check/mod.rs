//! What must hold between the values of a run. Each check looks at sound values only, and is left out where one of
//! its values is missing or at fault.

mod interventions;
mod natural;
mod synthetic;

use crate::{Limits, fault::Collector, read::Values};
use serde::de::DeserializeOwned;
use taskvec_model::spec::{At, CheckpointSpec, ModelIdentity};

/// The loss rows of one training job travel in one message.
const MAX_LOSS_ROWS: u64 = 100_000;

/// All checks of one run. `identity` is that of a pretrained model, where its files were looked at.
pub(crate) fn check(values: &Values, identity: Option<&ModelIdentity>, limits: &Limits, faults: &mut Collector) {
    let mut checker = Checker { values, identity, limits, faults };
    match values.word("kind") {
        Some("evaluate" | "finetune") => checker.natural(),
        _ => checker.synthetic(),
    }
}

struct Checker<'a> {
    values: &'a Values,
    identity: Option<&'a ModelIdentity>,
    limits: &'a Limits,
    faults: &'a mut Collector,
}

impl Checker<'_> {
    fn whole(&self, path: &str) -> Option<u64> {
        self.values.whole(path)
    }

    fn typed<T: DeserializeOwned>(&self, path: &str) -> Option<T> {
        serde_json::from_value(self.values.get(path)?.json.clone()).ok()
    }

    /// These values do not go together.
    fn fault(&mut self, paths: &[&str], message: String) {
        self.faults.add(self.values.blame(paths), message);
    }

    /// The paths of the analyses.
    fn analysis_paths(&self) -> impl Iterator<Item = String> + use<> {
        (0..self.values.items("analyses")).map(|i| format!("analyses[{i}]"))
    }

    fn training(&mut self) -> Option<()> {
        let (steps, warmup) = (self.whole("train.steps")?, self.whole("train.warmup")?);
        if warmup > steps {
            let message = format!("`train.warmup` must be at most `train.steps` ({steps}), not {warmup}");
            self.fault(&["train.warmup", "train.steps"], message);
        }
        Some(())
    }

    fn log_rows(&mut self) -> Option<()> {
        let (steps, log_every) = (self.whole("train.steps")?, self.whole("train.log_every")?);
        let rows = self.whole("checkpoints.resume_every")?.min(steps) / log_every;
        if rows > MAX_LOSS_ROWS {
            let message = format!(
                "one training job would log {rows} losses; at most {MAX_LOSS_ROWS}: \
                 raise `train.log_every` or lower `checkpoints.resume_every`"
            );
            self.fault(&["train.log_every", "checkpoints.resume_every"], message);
        }
        Some(())
    }

    fn steps(&mut self, path: &str, at: &At) -> Option<()> {
        let At::Steps(wanted) = at else { return None };
        let steps = self.whole("train.steps")?;
        let checkpoints: CheckpointSpec = self.typed("checkpoints")?;
        let there = checkpoints.analysis_steps(steps);
        for (i, step) in wanted.iter().enumerate().filter(|(_, step)| !there.contains(step)) {
            let list: Vec<String> = there.iter().map(u64::to_string).collect();
            let message = format!("`{path}.at`: step {step} has no checkpoint; there are {}", list.join(", "));
            let item = format!("{path}.at[{i}]");
            self.fault(&[&item, "train.steps", "checkpoints"], message);
        }
        Some(())
    }

    /// Are these layers those of a model of `count` blocks? `sizes` are the settings that `count` comes from.
    fn layers(&mut self, path: &str, layers: &[u32], count: u64, sizes: &[&str]) {
        for (i, layer) in layers.iter().enumerate().filter(|(_, layer)| u64::from(**layer) > count) {
            let message =
                format!("`{path}.layers`: there is no layer {layer}; the model has 0 (the embedding) to {count}");
            let item = format!("{path}.layers[{i}]");
            self.fault(&[&[item.as_str()], sizes].concat(), message);
        }
    }

    /// Do the states of `points` sequences in `spaces` spaces of `width` dimensions fit into memory?
    fn states(&mut self, path: &str, points: u64, width: u64, spaces: usize, sizes: &[&str]) {
        let bytes = 4.0 * points as f64 * width as f64 * spaces as f64;
        if bytes > self.limits.memory_bytes as f64 {
            let gib = |bytes: f64| bytes / f64::from(1 << 30);
            let message = format!(
                "`{path}`: the states of {points} points need {:.0} GiB of memory; the limit is {:.0} GiB",
                gib(bytes),
                gib(self.limits.memory_bytes as f64)
            );
            self.fault(&[&[format!("{path}.samples_per_task").as_str()], sizes].concat(), message);
        }
    }
}

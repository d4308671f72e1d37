//! What must hold between the values of a run. Each check looks at sound values only, and is left out where one of
//! its values is missing or at fault.

use crate::{Limits, cost::Shape, fault::Collector, read::Values};
use serde::de::DeserializeOwned;
use taskvec_model::spec::{AnalysisSpec, At, CheckpointSpec, Site, TdSpec};

/// The loss rows of one training job travel in one message.
const MAX_LOSS_ROWS: u64 = 100_000;

/// All checks of one run.
pub(crate) fn check(values: &Values, limits: &Limits, faults: &mut Collector) {
    let mut checker = Checker { values, limits, faults };
    // None means that a value to check is missing or at fault, which is reported already.
    let _ = checker.model();
    let _ = checker.bases();
    let _ = checker.training();
    let _ = checker.log_rows();
    let _ = checker.evaluation();
    let _ = checker.memory();
    let analyses = checker.analyses();
    for (path, analysis) in &analyses {
        let _ = checker.steps(path, analysis);
        if let AnalysisSpec::Td(td) = analysis {
            let _ = checker.td_layers(path, td);
            let _ = checker.td_samples(path, td);
            let _ = checker.td_site_y(path, td);
        }
    }
    checker.repeated(&analyses);
}

struct Checker<'a> {
    values: &'a Values,
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

    fn model(&mut self) -> Option<()> {
        let (heads, width) = (self.whole("model.heads")?, self.whole("model.width")?);
        if width % heads != 0 {
            let message = format!("`model.heads` must divide `model.width`; {heads} does not divide {width}");
            self.fault(&["model.heads", "model.width"], message);
        }
        Some(())
    }

    fn bases(&mut self) -> Option<()> {
        let (dim, bases, rank) = (self.whole("data.dim")?, self.whole("data.bases")?, self.whole("data.rank")?);
        let overlap = self.values.word("data.overlap")?;
        let half = dim / 2;
        let (paths, message) = match overlap {
            "disjoint" if bases * rank > dim => (
                ["data.bases", "data.rank", "data.dim"],
                format!("{bases} disjoint bases of rank {rank} need {} dimensions; `data.dim` is {dim}", bases * rank),
            ),
            "grouped" if bases % 2 != 0 => (
                ["data.bases", "data.overlap", "data.overlap"],
                format!("grouped bases come in two groups of equal size; `data.bases` must be even, not {bases}"),
            ),
            "grouped" if dim % 2 != 0 => (
                ["data.dim", "data.overlap", "data.overlap"],
                format!("grouped bases share two halves of the dimensions; `data.dim` must be even, not {dim}"),
            ),
            "grouped" if rank > half => (
                ["data.rank", "data.dim", "data.overlap"],
                format!(
                    "grouped bases lie within half of the dimensions; `data.rank` must be at most {half}, not {rank}"
                ),
            ),
            "grouped" if bases > 2 && (rank == half || bases / 2 > half) => (
                ["data.bases", "data.rank", "data.dim"],
                format!(
                    "{} bases of rank {rank} within {half} dimensions would not all differ; \
                     `data.rank` must be below {half} and `data.bases` at most {dim}",
                    bases / 2
                ),
            ),
            _ => return Some(()),
        };
        self.fault(&paths, message);
        Some(())
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

    fn evaluation(&mut self) -> Option<()> {
        let (sequences, bases) = (self.whole("evaluate.sequences")?, self.whole("data.bases")?);
        if sequences < 2 * bases {
            let message = format!(
                "`evaluate.sequences` must be at least 2 for each of the {bases} bases ({}), not {sequences}",
                2 * bases
            );
            self.fault(&["evaluate.sequences", "data.bases"], message);
        }
        Some(())
    }

    fn memory(&mut self) -> Option<()> {
        let number = |path: &str| self.whole(path).map(|n| n as f64);
        let own = f64::from(u8::from(self.values.word("data.y_channel")? == "own"));
        let shape = Shape {
            layers: number("model.layers")?,
            width: number("model.width")?,
            heads: number("model.heads")?,
            channels: number("data.dim")? + own,
            positions: 2.0 * number("data.examples")?,
        };
        let training = shape.training_bytes(number("train.batch")?);
        let held_out = 4.0 * number("evaluate.sequences")? * shape.positions * shape.channels;
        let gib = |bytes: f64| bytes / f64::from(1 << 30);
        let most = gib(self.limits.memory_bytes as f64);
        if gib(training) > most {
            let message = format!(
                "training this model ({:.0} parameters, {:.0} tokens a batch) needs about {:.0} GiB of memory; \
                 the limit is {most:.0} GiB",
                shape.parameters(),
                number("train.batch")? * shape.positions,
                gib(training)
            );
            let sizes = ["model.width", "model.layers", "train.batch", "data.examples", "data.dim"];
            self.fault(&sizes, message);
        }
        if gib(held_out) > most {
            let message =
                format!("the held-out sequences need {:.0} GiB of memory; the limit is {most:.0} GiB", gib(held_out));
            self.fault(&["evaluate.sequences", "data.examples", "data.dim"], message);
        }
        Some(())
    }

    /// The sound analyses, by path.
    fn analyses(&self) -> Vec<(String, AnalysisSpec)> {
        let paths = (0..).map(|i| format!("analyses[{i}]"));
        paths.take(self.values.items("analyses")).filter_map(|path| Some((path.clone(), self.typed(&path)?))).collect()
    }

    fn steps(&mut self, path: &str, analysis: &AnalysisSpec) -> Option<()> {
        let At::Steps(wanted) = analysis.at() else { return None };
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

    fn td_layers(&mut self, path: &str, td: &TdSpec) -> Option<()> {
        let count = self.whole("model.layers")?;
        let taskvec_model::spec::Layers::List(layers) = &td.layers else { return None };
        for (i, layer) in layers.iter().enumerate().filter(|(_, layer)| u64::from(**layer) > count) {
            let message =
                format!("`{path}.layers`: there is no layer {layer}; the model has 0 (the embedding) to {count}");
            let item = format!("{path}.layers[{i}]");
            self.fault(&[&item, "model.layers"], message);
        }
        Some(())
    }

    fn td_samples(&mut self, path: &str, td: &TdSpec) -> Option<()> {
        let bases = self.whole("data.bases")?;
        if bases < 2 {
            let message =
                format!("`{path}`: with one basis there is nothing to decode; `data.bases` must be at least 2");
            self.fault(&["data.bases", path], message);
            return Some(());
        }
        let points = bases * u64::from(td.samples_per_task);
        if u64::from(td.k) >= points {
            let message = format!(
                "`{path}.k` must be below the number of points, {bases} bases × {} samples, not {}",
                td.samples_per_task, td.k
            );
            self.fault(&[&format!("{path}.k"), &format!("{path}.samples_per_task"), "data.bases"], message);
        }
        let (layers, width) =
            (td.layers.resolve(self.whole("model.layers")?.try_into().ok()?), self.whole("model.width")?);
        let bytes = 4.0 * points as f64 * width as f64 * (layers.len() * td.sites.len()) as f64;
        if bytes > self.limits.memory_bytes as f64 {
            let gib = |bytes: f64| bytes / f64::from(1 << 30);
            let message = format!(
                "`{path}`: the states of {points} points need {:.0} GiB of memory; the limit is {:.0} GiB",
                gib(bytes),
                gib(self.limits.memory_bytes as f64)
            );
            self.fault(&[&format!("{path}.samples_per_task"), "data.bases", "model.width"], message);
        }
        Some(())
    }

    fn td_site_y(&mut self, path: &str, td: &TdSpec) -> Option<()> {
        if td.sites.contains(&Site::Y) && self.whole("data.examples")? < 2 {
            let message =
                format!("`{path}.sites`: `y` is the last answer before the query; `data.examples` must be at least 2");
            self.fault(&["data.examples", &format!("{path}.sites")], message);
        }
        Some(())
    }

    /// No measurement twice, or its rows would stand twice in the result views.
    fn repeated(&mut self, analyses: &[(String, AnalysisSpec)]) {
        let layers = self.whole("model.layers").and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
        for (i, (path, analysis)) in analyses.iter().enumerate() {
            for (earlier_path, earlier) in &analyses[..i] {
                let message = match (earlier, analysis) {
                    (AnalysisSpec::Icl(_), AnalysisSpec::Icl(_)) => {
                        format!("`{path}` repeats `{earlier_path}`; one `icl` is enough, with both of their `at`")
                    }
                    (AnalysisSpec::Td(a), AnalysisSpec::Td(b)) if a.samples_per_task != b.samples_per_task => format!(
                        "`{path}` and `{earlier_path}` must have the same `samples_per_task`, not {} and {}",
                        b.samples_per_task, a.samples_per_task
                    ),
                    (AnalysisSpec::Td(a), AnalysisSpec::Td(b)) if a.k == b.k && share_a_space(a, b, layers) => format!(
                        "`{path}` repeats `{earlier_path}`: both measure the same layers and sites with the same `k`"
                    ),
                    _ => continue,
                };
                self.fault(&[path], message);
            }
        }
    }
}

fn share_a_space(a: &TdSpec, b: &TdSpec, layers: u32) -> bool {
    let in_b = b.layers.resolve(layers);
    a.layers.resolve(layers).iter().any(|l| in_b.contains(l)) && a.sites.iter().any(|s| b.sites.contains(s))
}

//! Checks of a training on synthetic data.

use super::{Checker, interventions::same_patches};
use crate::{complete, cost::Shape};
use serde_json::Value as Json;
use taskvec_model::spec::{AnalysisSpec, InterventionSpec, Layers, Site, TdSpec};

impl Checker<'_> {
    pub(super) fn synthetic(&mut self) {
        // None means that a value to check is missing or at fault, which is reported already.
        let _ = self.model();
        let _ = self.bases();
        let _ = self.training();
        let _ = self.log_rows();
        let _ = self.evaluation();
        let _ = self.memory();
        let analyses = self.analyses();
        for (path, analysis) in &analyses {
            let _ = self.steps(path, analysis.at());
            match analysis {
                AnalysisSpec::Icl(_) => {}
                AnalysisSpec::Td(td) => {
                    let _ = self.td_layers(path, td);
                    let _ = self.td_samples(path, td);
                    let _ = self.td_site_y(path, td);
                }
                AnalysisSpec::Interventions(spec) => {
                    let _ = self.patches(path, spec);
                }
            }
        }
        self.repeated(&analyses);
    }

    /// Interventions in a synthetic model.
    fn patches(&mut self, path: &str, spec: &InterventionSpec) -> Option<()> {
        if spec.site == Site::Y && self.whole("data.examples")? < 2 {
            let message =
                format!("`{path}.site`: `y` is the last answer before the query; `data.examples` must be at least 2");
            self.fault(&["data.examples", &format!("{path}.site")], message);
        }
        let tasks = self.bases_by_name();
        if tasks.is_empty() {
            return None;
        }
        self.patched_pairs(path, spec, &tasks, "data.bases");
        let count = self.whole("model.layers")?;
        self.patched_layers(path, spec, count, &["model.layers"]);
        self.patched_rows(path, spec, &tasks, count.try_into().ok()?);
        Some(())
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

    fn bases_by_name(&self) -> Vec<String> {
        (1..=self.whole("data.bases").unwrap_or(0)).map(|k| format!("B{k}")).collect()
    }

    /// The sound analyses, by path.
    fn analyses(&self) -> Vec<(String, AnalysisSpec)> {
        let typed = |path: String| {
            let completed = complete::analysis(&self.values.get(&path)?.json, &Json::from([0; 0]));
            Some((path, serde_json::from_value(completed).ok()?))
        };
        self.analysis_paths().filter_map(typed).collect()
    }

    fn td_layers(&mut self, path: &str, td: &TdSpec) -> Option<()> {
        let count = self.whole("model.layers")?;
        if let Layers::List(layers) = &td.layers {
            self.layers(path, layers, count, &["model.layers"]);
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
        let spaces = layers.len() * td.sites.len();
        self.states(path, points, width, spaces, &["data.bases", "model.width"]);
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
                    (AnalysisSpec::Interventions(a), AnalysisSpec::Interventions(b)) if same_patches(a, b, layers) => {
                        format!(
                            "`{path}` repeats `{earlier_path}`: both intervene in the same manner at the same layers and bases"
                        )
                    }
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

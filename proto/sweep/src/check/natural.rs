//! Checks of runs on pretrained language models.

use super::{Checker, interventions::same_patches};
use crate::{
    complete,
    fault::{any_of, did_you_mean, quoted},
};
use serde_json::{Value as Json, json};
use taskvec_model::{
    job::MAX_ROWS,
    spec::{Family, InterventionSpec, Layers, LensSpec, LoraLayers, NaturalAnalysis, NaturalTd, Site},
};

/// The settings that decide which model it is.
const MODEL: [&str; 2] = ["model.path", "model.revision"];
/// The layers of a model that was not looked at are taken to be at most as many.
const MANY: u32 = 256;

impl Checker<'_> {
    pub(super) fn natural(&mut self) {
        // None means that a value to check is missing or at fault, which is reported already.
        let _ = self.training();
        let _ = self.log_rows();
        let _ = self.pieces();
        let _ = self.adapted_layers();
        let _ = self.adapted_modules();
        let _ = self.task_names();
        let analyses = self.natural_analyses();
        for (path, analysis) in &analyses {
            let _ = self.steps(path, analysis.at());
            match analysis {
                NaturalAnalysis::Icl(_) => {}
                NaturalAnalysis::Td(td) => self.natural_td(path, td),
                NaturalAnalysis::Lens(lens) => self.lens(path, lens),
                NaturalAnalysis::Interventions(spec) => self.natural_patches(path, spec),
            }
        }
        self.natural_repeats(&analyses);
    }

    fn pieces(&mut self) -> Option<()> {
        let (batch, pieces) = (self.whole("train.batch")?, self.whole("train.accumulate")?);
        if batch % pieces != 0 {
            let message = format!("`train.accumulate` must divide `train.batch`; {pieces} does not divide {batch}");
            self.fault(&["train.accumulate", "train.batch"], message);
        }
        Some(())
    }

    fn adapted_layers(&mut self) -> Option<()> {
        let layers: LoraLayers = self.typed("lora.layers")?;
        let count = self.identity?.layers;
        if layers.resolve(count).is_none() {
            let message =
                format!("`lora.layers`: the model has layers 1 to {count}; {} is not within them", shown(layers));
            self.fault(&[&["lora.layers"][..], &MODEL].concat(), message);
        }
        Some(())
    }

    fn adapted_modules(&mut self) -> Option<()> {
        let targets: Vec<String> = self.typed("lora.targets")?;
        let arch = self.identity?.arch.clone();
        let there: &[&str] = match arch.as_str() {
            "gpt2" => &["c_attn", "c_fc", "c_proj"],
            "mamba2" => &["in_proj"],
            _ => &["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        };
        if let Some(i) = targets.iter().position(|t| arch == "mamba2" && t == "out_proj") {
            let message = "`lora.targets`: PEFT refuses adapters of a mamba2 model's `out_proj`, so that nobody could load the \
                           result; use `in_proj`";
            self.fault(&[&[format!("lora.targets[{i}]").as_str()][..], &MODEL].concat(), message.to_owned());
            return None;
        }
        let first = targets.iter().position(|t| !there.contains(&t.as_str()))?;
        let missing = any_of(targets.iter().map(String::as_str).filter(|t| !there.contains(t)));
        let known = any_of(there.iter().copied());
        let message = format!("`lora.targets`: a {arch} model has no {missing}; use {known}");
        self.fault(&[&[format!("lora.targets[{first}]").as_str()][..], &MODEL].concat(), message);
        Some(())
    }

    fn task_names(&mut self) -> Option<()> {
        let family = self.values.word("data.family")?;
        let all = Family::tasks_of(family);
        if all.is_empty() {
            return None;
        }
        let named = self.values.get("data.tasks")?.json.get("list")?.as_array()?.clone();
        for (i, task) in named.iter().filter_map(Json::as_str).enumerate().filter(|(_, task)| !all.contains(task)) {
            let slip = did_you_mean(task, all.iter().copied());
            let (task, known) = (quoted(task), any_of(all.iter().copied()));
            let message = format!("`data.tasks`: `family: {family}` has no task {task}; it has {known}{slip}");
            let item = format!("data.tasks[{i}]");
            self.fault(&[&item, "data.family"], message);
        }
        Some(())
    }

    /// The latent tasks by name; none where only a file knows them.
    fn tasks(&self) -> Option<Vec<String>> {
        let data = json!({ "family": self.values.word("data.family")?, "tasks": self.values.get("data.tasks")?.json });
        let tasks: Vec<String> = serde_json::from_value(complete::natural_data(&data)["tasks"].take()).ok()?;
        (!tasks.is_empty()).then_some(tasks)
    }

    /// The sound analyses, by path.
    fn natural_analyses(&self) -> Vec<(String, NaturalAnalysis)> {
        let shots = self.values.get("data.shots").map_or(Json::Null, |found| found.json.clone());
        let typed = |path: String| {
            let completed = complete::analysis(&self.values.get(&path)?.json, &shots);
            Some((path, serde_json::from_value(completed).ok()?))
        };
        self.analysis_paths().filter_map(typed).collect()
    }

    fn natural_layers(&mut self, path: &str, layers: &Layers) {
        if let (Some(identity), Layers::List(list)) = (self.identity, layers) {
            self.layers(path, list, identity.layers.into(), &MODEL);
        }
    }

    fn lens(&mut self, path: &str, lens: &LensSpec) {
        self.natural_layers(path, &lens.layers);
    }

    fn natural_td(&mut self, path: &str, td: &NaturalTd) {
        self.natural_layers(path, &td.layers);
        let shots: Vec<u64> = self.typed("data.shots").unwrap_or_default();
        if td.sites.contains(&Site::Y) && shots.contains(&0) {
            self.no_answer_before(path, "sites", "data.shots");
        }
        let tasks = self.tasks();
        if tasks.as_ref().is_some_and(|t| t.len() < 2) {
            let message =
                format!("`{path}`: with one task there is nothing to decode; `data.tasks` must have at least 2");
            self.fault(&["data.tasks", path], message);
            return;
        }
        self.neighbours(path, td, tasks.as_ref().map(Vec::len));
        let (Some(tasks), Some(identity)) = (tasks, self.identity) else { return };
        let spaces = td.layers.resolve(identity.layers).len() * td.sites.len();
        let points = tasks.len() as u64 * u64::from(td.samples_per_task);
        self.states(path, points, identity.width.into(), spaces, &["data.tasks", "model.path"]);
        let pairs = if td.pairs { tasks.len() * (tasks.len() - 1) / 2 } else { 0 };
        let rows = ((tasks.len() + pairs) * spaces) as u64;
        if rows > MAX_ROWS {
            let message = format!(
                "`{path}`: {rows} results (layers × sites × tasks and pairs of tasks) in one job; at most {MAX_ROWS}: \
                 use fewer layers or `pairs: false`"
            );
            self.fault(&[&format!("{path}.pairs"), &format!("{path}.layers"), "data.tasks"], message);
        }
    }

    /// Enough points for k neighbours: over all tasks, and between two where that is asked for.
    fn neighbours(&mut self, path: &str, td: &NaturalTd, tasks: Option<usize>) {
        let samples = u64::from(td.samples_per_task);
        let counted = if td.pairs { Some(2) } else { tasks };
        let Some(tasks) = counted.filter(|n| u64::from(td.k) >= *n as u64 * samples) else { return };
        let between = if td.pairs { " of a pair" } else { "" };
        let message = format!(
            "`{path}.k` must be below the number of points{between}, {tasks} tasks × {samples} samples, not {}",
            td.k
        );
        self.fault(&[&format!("{path}.k"), &format!("{path}.samples_per_task"), "data.tasks"], message);
    }

    fn no_answer_before(&mut self, path: &str, key: &str, shots: &str) {
        let message = format!("`{path}.{key}`: `y` is the last answer before the query; with 0 shots there is none");
        self.fault(&[&format!("{path}.{key}"), shots], message);
    }

    fn natural_patches(&mut self, path: &str, spec: &InterventionSpec) {
        if spec.site == Site::Y && spec.shots.contains(&0) {
            self.no_answer_before(path, "site", &format!("{path}.shots"));
        }
        if let Some(identity) = self.identity {
            self.patched_layers(path, spec, identity.layers.into(), &MODEL);
        }
        if let Some(tasks) = self.tasks() {
            self.patched_pairs(path, spec, &tasks, "data.tasks");
            self.patched_rows(path, spec, &tasks, self.identity.map_or(1, |i| i.layers));
        }
    }

    /// No measurement twice, or its rows would stand twice in the result views.
    fn natural_repeats(&mut self, analyses: &[(String, NaturalAnalysis)]) {
        use NaturalAnalysis::{Icl, Interventions, Lens, Td};
        let layers = self.identity.map_or(MANY, |i| i.layers);
        for (i, (path, analysis)) in analyses.iter().enumerate() {
            for (earlier_path, earlier) in &analyses[..i] {
                let once = match (earlier, analysis) {
                    (Icl(_), Icl(_)) => "one `icl` is enough",
                    (Td(_), Td(_)) => "a run has one `td`, for all layers and sites; vary `k` by the grid",
                    (Lens(_), Lens(_)) => "one `lens` is enough, for all layers",
                    (Interventions(a), Interventions(b)) if same_patches(a, b, layers) => {
                        "both intervene in the same manner at the same layers, between the same tasks with the same shots"
                    }
                    _ => continue,
                };
                self.fault(&[path], format!("`{path}` repeats `{earlier_path}`; {once}"));
            }
        }
    }
}

/// As written in a file.
fn shown(layers: LoraLayers) -> String {
    match layers {
        LoraLayers::All => "`all`".to_owned(),
        LoraLayers::First(n) => format!("`first:{n}`"),
        LoraLayers::Last(n) => format!("`last:{n}`"),
        LoraLayers::Range(from, to) => format!("`[{from}, {to}]`"),
    }
}

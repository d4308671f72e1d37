//! From the text of a sweep file to a validated [`Plan`]: its runs, the DAG of their jobs and their content keys.
//!
//! [`plan`] reads the YAML, checks it against the declarations of the schema, expands the grid and lays out the jobs. It
//! finds all faults of a file at once, each with its line and column. It does no IO: what a sweep on pretrained models needs
//! to know about files comes through [`Files`], and [`plan_with`] asks.
//!
//! ```
//! let yaml = "version: 1\nname: smoke\nkind: selftest\nselftest: { jobs: 3 }\ngrid: { seed: [0, 1] }\n";
//! let plan = taskvec_sweep::plan(yaml, "smoke.yaml", &taskvec_sweep::Limits::default()).unwrap();
//! assert_eq!((plan.runs.len(), plan.jobs.len()), (2, 6));
//!
//! let faults = taskvec_sweep::plan("version: 1\nnam: x\n", "bad.yaml", &Default::default()).unwrap_err();
//! assert!(faults.to_string().contains("bad.yaml:2:1: unknown key `nam`; did you mean `name`?"));
//! ```

mod check;
mod complete;
mod cost;
mod fault;
mod files;
mod grid;
mod jobs;
mod key;
mod read;
mod run;
mod schema;
mod tree;

pub use cost::{Estimate, KindEstimate, estimate};
pub use fault::{Fault, Faults, Mark};
pub use files::{Files, NoFiles, Unseen};
pub use key::{Input, canonical_json, finetune_trajectory, job_key, trajectory};
pub use schema::{KeyDoc, keys, reference};

use fault::Collector;
use files::Look;
use grid::Grid;
use run::Runs;
use serde_json::Value as Json;
use taskvec_model::plan::{Plan, PlannedRun};

/// What one sweep may ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Size of the file.
    pub file_bytes: usize,
    /// Nesting of lists and mappings.
    pub depth: usize,
    pub runs: u64,
    pub jobs: u64,
    /// Memory that training or analysing one model may need, by a rough count.
    pub memory_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { file_bytes: 1 << 20, depth: 32, runs: 10_000, jobs: 1_000_000, memory_bytes: 64 << 30 }
    }
}

/// Reads, checks and expands a sweep file, without a look at models and data: pretrained models stay without identity,
/// patterns of revisions as they are, and what depends on either is not checked.
///
/// `file` is its name, for messages. Runs come in the order of the grid, the last path varying fastest; jobs run by
/// run, each after the jobs it needs.
///
/// # Errors
/// All faults of the file, in its order. A fault of a value that the grid varies stands at that value, once.
pub fn plan(yaml: &str, file: &str, limits: &Limits) -> Result<Plan, Faults> {
    plan_looking(yaml, file, limits, Look::default())
}

/// The same where models and data can be looked at: each pretrained model gets its identity and each data file its hash,
/// a pattern of revisions becomes a run for every revision that matches, and content keys follow from what is in the
/// files instead of where they are.
///
/// # Errors
/// Those of [`plan`], and every model or data file that is not there or does not fit the rest.
pub fn plan_with(yaml: &str, file: &str, limits: &Limits, files: &dyn Files) -> Result<Plan, Faults> {
    plan_looking(yaml, file, limits, Look::at(files))
}

fn plan_looking(yaml: &str, file: &str, limits: &Limits, look: Look<'_>) -> Result<Plan, Faults> {
    let mut faults = Collector::default();
    match try_plan(yaml, limits, look, &mut faults) {
        Some(plan) if faults.is_empty() => Ok(plan),
        _ => Err(faults.into_faults(file)),
    }
}

/// None, or a plan of no use, when faults were added.
fn try_plan(yaml: &str, limits: &Limits, look: Look<'_>, faults: &mut Collector) -> Option<Plan> {
    let mut root = tree::parse(yaml, limits, faults)?;
    let spec = root.to_json();
    let grid = Grid::take(&mut root, faults);
    let few = grid.check_size(limits, faults);
    let mut reader = Runs { limits, look, faults };
    if !few {
        grid.sample(&root).for_each(|point| drop(reader.read(&point.tree)));
        return None;
    }
    let runs = reader.all(grid.points(&root));
    if !faults.is_empty() || !few_enough_jobs(&runs, limits, faults) {
        return None;
    }
    let mut all_jobs = Vec::new();
    for (i, run) in runs.iter().enumerate() {
        jobs::append(&mut all_jobs, i, &run.spec);
    }
    let name = spec.get("name").and_then(Json::as_str)?.to_owned();
    Some(Plan { name, spec, runs, jobs: all_jobs })
}

fn few_enough_jobs(runs: &[PlannedRun], limits: &Limits, faults: &mut Collector) -> bool {
    let jobs = runs.iter().map(|run| jobs::count(&run.spec)).fold(0, u64::saturating_add);
    if jobs > limits.jobs {
        let message = format!(
            "the sweep has {jobs} jobs; a sweep may have {}: use fewer runs or checkpoints, or a larger `resume_every`",
            limits.jobs
        );
        faults.add(Mark::START, message);
    }
    jobs <= limits.jobs
}

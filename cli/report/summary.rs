//! The summary that a sweep ends with.

use super::{Findings, Point, RunFindings, patches, short};
use serde_json::{Value, json};
use taskvec_model::table::Table;

/// Runs shown one by one; more are counted only.
const MOST_RUNS: usize = 20;
/// Runs whose interventions are shown.
const MOST_PATCHED: usize = 8;
/// TD from which the latent task counts as encoded.
const ENCODED: f64 = 0.85;

/// Per run: error against its bounds and TD of the best layer, at the start, in the middle and at the end.
pub fn summary(found: &Findings) -> String {
    let measured: Vec<&RunFindings> = found.runs.iter().filter(|run| !run.points.is_empty()).collect();
    let mut out = format!("Sweep {} “{}”, {} runs", found.sweep_id, found.name, found.count);
    if !found.natural.is_empty() {
        return out + ".\n" + &super::natural::summary(&found.natural);
    }
    if measured.is_empty() {
        return match patched(&found.runs) {
            none if none.is_empty() => out + "\nNothing was measured.",
            some => out + &some,
        };
    }
    out +=
        "; means over latent tasks. Error: mean squared error of the prediction, over all positions and at the last.";
    out += &format!("\n\n{}", crate::output::render(&table(&measured)));
    out += "\n\nridge, mixture, oracle: error over all positions of ridge regression, of the Bayes mixture over bases and of the \
            Bayes\nestimate that is told the basis. TD: leave-one-out kNN accuracy of the basis, best layer at the end. \
            ideal: how often the\nexact posterior names the basis.\n";
    for run in measured.iter().take(MOST_RUNS) {
        out += &format!("\n{}", reading(run));
    }
    if measured.len() > MOST_RUNS {
        out += &format!("\n… and {} more runs: see the result views.", measured.len() - MOST_RUNS);
    }
    out + &patched(&found.runs)
}

/// What interventions did, run by run, at the last step of each that has any.
fn patched(runs: &[RunFindings]) -> String {
    let all: Vec<_> = runs.iter().filter_map(|run| Some((run, run.patched.as_ref()?))).collect();
    let mut out = String::new();
    for (run, (step, interventions)) in all.iter().take(MOST_PATCHED) {
        let varied = if run.params.is_empty() { String::new() } else { format!(" {}", run.params) };
        let table = patches::shown(interventions, "mean squared error");
        out += &format!("\n\nrun {}{varied}, step {step}\n{table}", run.run_id);
    }
    if all.len() > MOST_PATCHED {
        out += &format!("\n\nInterventions in {} more runs: see results.interventions.", all.len() - MOST_PATCHED);
    }
    out
}

fn table(runs: &[&RunFindings]) -> Table {
    let columns = ["run", "varied", "step", "error", "at last", "ridge", "mixture", "oracle", "TD", "layer", "ideal"];
    let rows = runs.iter().take(MOST_RUNS).flat_map(|run| {
        run.three().into_iter().enumerate().map(|(i, point)| row(run, point, i == 0)).collect::<Vec<_>>()
    });
    Table { columns: columns.map(str::to_owned).to_vec(), rows: rows.collect() }
}

fn row(run: &RunFindings, point: Point, first: bool) -> Vec<Value> {
    let only_first = |v: Value| if first { v } else { Value::Null };
    let layer = run.best.as_ref().map_or(Value::Null, |(layer, site)| json!(format!("{layer} ({site})")));
    vec![
        only_first(json!(run.run_id)),
        only_first(json!(run.params)),
        json!(point.step),
        short(point.mse),
        short(point.mse_last),
        only_first(short(run.bounds.ridge)),
        only_first(short(run.bounds.mixture)),
        only_first(short(run.bounds.oracle)),
        short(point.td),
        only_first(layer),
        only_first(short(run.bounds.td)),
    ]
}

/// One sentence per run: does it encode the latent task, and does it use it?
fn reading(run: &RunFindings) -> String {
    let (Some(start), Some(end)) = (run.points.first(), run.points.last()) else {
        return format!("run {}: nothing was measured.", run.run_id);
    };
    let mut facts = Vec::new();
    if let (Some(a), Some(b)) = (start.td, end.td) {
        facts.push(format!("TD {a:.2} → {b:.2}"));
    }
    if let (Some(a), Some(b)) = (start.mse_last, end.mse_last) {
        facts.push(format!("error at the last position {a:.3} → {b:.3} ({:.1}×)", a / b));
    }
    let below = end.mse.zip(run.bounds.ridge).map(|(mse, ridge)| mse < ridge);
    let verdict = match (end.td.map(|td| td >= ENCODED), below) {
        (Some(true), Some(true)) => "encodes the latent task, and uses it (error below ridge)",
        (Some(true), Some(false)) => {
            "encodes the latent task, but its error is not below ridge: no sign that it uses it"
        }
        (Some(false), Some(true)) => {
            "error below ridge with TD under 0.85: uses the mixture without separating it at this site"
        }
        (Some(false), Some(false)) => "neither separates the latent tasks nor beats ridge (so far)",
        _ => "not enough was measured to judge",
    };
    format!("run {}: {verdict}; {}.", run.run_id, facts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Bounds, patches::tests::intervention};

    fn run(td: f64, mse: f64) -> RunFindings {
        let point = |step, mse, td| Point { step, mse: Some(mse), mse_last: Some(mse), td: Some(td) };
        RunFindings {
            run_id: 1,
            params: "seed=0".into(),
            points: vec![point(0, 4.0, 0.5), point(10, 2.0, 0.6), point(100, mse, td)],
            best: Some((2, "x".into())),
            bounds: Bounds { ridge: Some(1.3), ..Bounds::default() },
            latent_tasks: 2,
            patched: None,
        }
    }

    #[test]
    fn interventions_come_after_the_runs_and_also_alone() {
        let mut one = run(0.9, 1.0);
        one.patched = Some((100, vec![intervention(2, "B1", 1.5, 1.75)]));
        let found = |runs| Findings { sweep_id: 3, name: "s".into(), runs, natural: Vec::new(), count: 1 };
        let text = summary(&found(vec![one]));
        let (before, after) = text.split_once("and uses it").unwrap();
        assert!(!before.contains("Interventions"), "{text}");
        assert!(after.contains("run 1 seed=0, step 100\nInterventions: mean squared error before"), "{text}");
        assert!(after.contains("+0.250"), "{text}");
        let mut alone = run(0.9, 1.0);
        alone.points.clear();
        assert!(summary(&found(vec![alone])).ends_with("Nothing was measured."));
        let mut alone = run(0.9, 1.0);
        alone.points.clear();
        alone.patched = Some((0, vec![intervention(1, "B2", 1.0, 3.0)]));
        let text = summary(&found(vec![alone]));
        assert!(text.contains("+2.000") && !text.contains("Nothing"), "{text}");
    }

    #[test]
    fn td_alone_is_not_called_use() {
        assert!(reading(&run(0.9, 1.0)).contains("and uses it"));
        assert!(reading(&run(0.9, 2.0)).contains("no sign that it uses it"));
        assert!(reading(&run(0.6, 1.0)).contains("without separating"));
        assert!(reading(&run(0.6, 2.0)).contains("neither"));
    }

    #[test]
    fn start_middle_and_end_are_shown_once_each() {
        let steps: Vec<i64> = run(0.9, 1.0).three().iter().map(|p| p.step).collect();
        assert_eq!(steps, [0, 10, 100]);
    }
}

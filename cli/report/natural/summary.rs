//! Tables about language models, for the summary that a sweep ends with.

use super::{Intervention, State};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use taskvec_model::table::Table;

/// Rows of the overview; the views have the rest.
const MOST_STATES: usize = 40;
/// Models or checkpoints shown task by task.
const MOST_DETAILED: usize = 8;
/// Interventions shown of each: the largest changes.
const MOST_PATCHES: usize = 16;

const EXPLAINED: &str = "\
Accuracy: greedy answers that match exactly. TD: leave-one-out kNN accuracy of the latent task, at the layer where its
mean over tasks and shots is highest. R²: of a line of accuracy over TD, a point for each task and number of shots. Null
has no right answer: it counts for TD, not for accuracy or R².";

/// Accuracy and TD by shots, R² and interventions.
pub fn summary(states: &[State]) -> String {
    let mut out = EXPLAINED.to_owned() + "\n\n";
    out += &crate::output::render(&overview(states));
    if states.len() > MOST_STATES {
        out += &format!("\n… and {} more: see results.icl and results.td.", states.len() - MOST_STATES);
    }
    for state in states.iter().take(MOST_DETAILED) {
        out += &format!("\n\n{}\n{}", title(state), crate::output::render(&by_task(state)));
        if !state.interventions.is_empty() {
            out += &format!("\n\n{}", patches(state));
        }
    }
    if states.len() > MOST_DETAILED {
        out += &format!("\n\nTask by task only the first {MOST_DETAILED} of {}.", states.len());
    }
    out
}

fn title(state: &State) -> String {
    let varied = if state.params.is_empty() { String::new() } else { format!(" {}", state.params) };
    let layer = state.best.map_or(String::new(), |layer| format!(", TD at layer {layer}"));
    format!("run {}{varied}, step {}{layer}", state.run_id, state.step)
}

/// A row for each model or checkpoint: means over tasks.
fn overview(states: &[State]) -> Table {
    let shots: BTreeSet<i64> = states.iter().flat_map(State::shots).collect();
    let mut columns: Vec<String> = ["run", "varied", "step"].map(str::to_owned).into();
    columns.extend(by_shots(&shots));
    columns.extend(["layer", "R²", "points"].map(str::to_owned));
    let row = |state: &State| {
        let mut row = vec![json!(state.run_id), json!(state.params), json!(state.step)];
        row.extend(shots.iter().map(|n| short(state.mean_accuracy(*n))));
        row.extend(shots.iter().map(|n| short(state.mean_td(*n))));
        row.extend([json!(state.best), short(state.fit.map(|f| f.r2)), json!(state.fit.map(|f| f.points))]);
        row
    };
    Table { columns, rows: states.iter().take(MOST_STATES).map(row).collect() }
}

fn by_shots(shots: &BTreeSet<i64>) -> Vec<String> {
    let of = |what: &str| shots.iter().map(|n| format!("{what} {n}")).collect::<Vec<_>>();
    [of("accuracy"), of("TD")].concat()
}

fn by_task(state: &State) -> Table {
    let shots = state.shots();
    let columns = [vec!["task".to_owned()], by_shots(&shots)].concat();
    let row = |task: &str| {
        let at = |n: &i64| (task.to_owned(), *n);
        let mut row = vec![json!(task)];
        row.extend(shots.iter().map(|n| short(state.accuracy.get(&at(n)).copied())));
        row.extend(shots.iter().map(|n| short(state.td.get(&at(n)).copied())));
        row
    };
    Table { columns, rows: state.tasks().into_iter().map(row).collect() }
}

fn patches(state: &State) -> String {
    let mut shown: Vec<&Intervention> = state.interventions.iter().collect();
    let change = |p: &Intervention| p.patched - p.baseline;
    if shown.len() > MOST_PATCHES {
        shown.sort_by(|a, b| change(b).abs().total_cmp(&change(a).abs()));
        shown.truncate(MOST_PATCHES);
    }
    let columns = ["source", "target", "layer", "manner", "shots", "before", "after", "change", "±"];
    let row = |p: &&Intervention| {
        vec![
            json!(p.source),
            json!(p.target),
            json!(p.layer),
            json!(p.manner),
            json!(p.shots),
            short(Some(p.baseline)),
            short(Some(p.patched)),
            json!(format!("{:+.3}", change(p))),
            short(p.deviation),
        ]
    };
    let table = Table { columns: columns.map(str::to_owned).into(), rows: shown.iter().map(row).collect() };
    let of = match state.interventions.len() - shown.len() {
        0 => String::new(),
        _ => format!(" (the {} largest changes of {})", shown.len(), state.interventions.len()),
    };
    format!(
        "Interventions{of}: accuracy before and after, ± the deviation of the change over replicates\n{}",
        crate::output::render(&table)
    )
}

fn short(x: Option<f64>) -> Value {
    x.map_or(Value::Null, |x| json!(format!("{x:.3}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::natural::tests::state;

    #[test]
    fn the_overview_has_a_row_a_state_and_the_details_a_row_a_task() {
        let table = overview(&[state()]);
        assert_eq!(table.columns[3..7], ["accuracy 1", "accuracy 4", "TD 1", "TD 4"]);
        let cells: Vec<String> = table.rows[0].iter().map(crate::output::table::cell).collect();
        assert_eq!(cells, ["1", "family=bitwise", "0", "0.150", "0.500", "0.450", "0.900", "2", "0.810", "4"]);
        assert_eq!(by_task(&state()).rows.len(), 3);
        assert_eq!(by_task(&state()).rows[1][1], Value::Null, "Null was not answered with 1 shot");
    }

    #[test]
    fn of_many_interventions_the_largest_changes_are_shown() {
        let mut many = state();
        let small = |i: u32| Intervention {
            layer: i.into(),
            manner: "x, last, replace".into(),
            shots: 4,
            source: format!("T{i}"),
            target: "Null".into(),
            baseline: 0.5,
            patched: 0.5 + f64::from(i) / 1000.0,
            deviation: None,
        };
        many.interventions.extend((1..=20).map(small));
        let text = patches(&many);
        assert!(text.contains("the 16 largest changes of 21"), "{text}");
        assert!(text.contains("-0.150") && text.contains("+0.020") && !text.contains("T5 "), "{text}");
    }
}

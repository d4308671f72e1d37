//! Tables about language models, for the summary that a sweep ends with.

use super::State;
use crate::report::{patches, short};
use serde_json::json;
use std::collections::BTreeSet;
use taskvec_model::table::Table;

/// Rows of the overview; the views have the rest.
const MOST_STATES: usize = 40;
/// Models or checkpoints shown task by task.
const MOST_DETAILED: usize = 8;

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
            out += &format!("\n\n{}", patches::shown(&state.interventions, "accuracy"));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::natural::tests::state;
    use serde_json::Value;

    #[test]
    fn the_overview_has_a_row_a_state_and_the_details_a_row_a_task() {
        let table = overview(&[state()]);
        assert_eq!(table.columns[3..7], ["accuracy 1", "accuracy 4", "TD 1", "TD 4"]);
        let cells: Vec<String> = table.rows[0].iter().map(crate::output::table::cell).collect();
        assert_eq!(cells, ["1", "family=bitwise", "0", "0.150", "0.500", "0.450", "0.900", "2", "0.810", "4"]);
        assert_eq!(by_task(&state()).rows.len(), 3);
        assert_eq!(by_task(&state()).rows[1][1], Value::Null, "Null was not answered with 1 shot");
    }
}

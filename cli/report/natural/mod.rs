//! What a sweep showed about language models: accuracy and task decodability of every model and checkpoint.

mod plot;
mod summary;

pub use plot::picture;
pub use summary::summary;

use super::{
    number,
    patches::{self, Intervention},
    text, whole,
};
use crate::{client::Client, error::CliError};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Its answers cannot be right, so it has no part in accuracy.
const NULL_TASK: &str = "Null";

/// One model, or one checkpoint of its fine-tuning.
#[derive(Default)]
pub struct State {
    pub run_id: i64,
    /// Only what the sweep varies, as `dtype=bf16`.
    pub params: String,
    pub step: i64,
    /// By task and shots.
    pub accuracy: BTreeMap<(String, i64), f64>,
    /// By layer and shots: mean over tasks.
    pub by_layer: BTreeMap<(i64, i64), f64>,
    /// The layer whose TD is highest on average over tasks and shots.
    pub best: Option<i64>,
    /// At the best layer, by task and shots.
    pub td: BTreeMap<(String, i64), f64>,
    /// At the best layer.
    pub fit: Option<Fit>,
    pub interventions: Vec<Intervention>,
}

/// The line of accuracy over TD.
#[derive(Clone, Copy)]
pub struct Fit {
    pub slope: f64,
    pub intercept: f64,
    pub r2: f64,
    pub points: i64,
}

impl State {
    pub fn is_empty(&self) -> bool {
        self.accuracy.is_empty() && self.by_layer.is_empty() && self.interventions.is_empty()
    }

    /// Numbers of demonstrations for which anything was measured.
    pub fn shots(&self) -> BTreeSet<i64> {
        let accuracy = self.accuracy.keys().map(|(_, shots)| *shots);
        accuracy.chain(self.by_layer.keys().map(|(_, shots)| *shots)).collect()
    }

    pub fn tasks(&self) -> BTreeSet<&str> {
        self.accuracy.keys().chain(self.td.keys()).map(|(task, _)| task.as_str()).collect()
    }

    /// Mean accuracy over tasks, Null left out.
    pub fn mean_accuracy(&self, shots: i64) -> Option<f64> {
        mean(self.accuracy.iter().filter(|((task, n), _)| *n == shots && task != NULL_TASK).map(|(_, x)| *x))
    }

    /// Mean TD over tasks, at the best layer.
    pub fn mean_td(&self, shots: i64) -> Option<f64> {
        self.by_layer.get(&(self.best?, shots)).copied()
    }
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, n) = values.fold((0.0, 0u32), |(sum, n), x| (sum + x, n + 1));
    (n > 0).then(|| sum / f64::from(n))
}

/// Runs on language models, in the queries below.
const RUNS: &str = "SELECT run_id FROM results.runs WHERE kind IN ('evaluate', 'finetune') AND sweep_id =";

/// Reads what was measured on language models through the views, by run and step.
pub async fn collect(client: &Client, sweep: i64) -> Result<Vec<State>, CliError> {
    let ask = async |query: &str| client.sql(&query.replace("OF_SWEEP", &format!("run_id IN ({RUNS} {sweep})"))).await;
    let runs = ask("SELECT run_id, params FROM results.runs WHERE OF_SWEEP").await?;
    let params: BTreeMap<i64, String> = runs
        .rows
        .iter()
        .filter_map(|row| Some((row.first()?.as_i64()?, crate::live::short(&row.get(1)?.to_string()))))
        .collect();
    let mut states = States { params, found: BTreeMap::new() };
    if states.params.is_empty() {
        return Ok(Vec::new());
    }
    let accuracy = ask(ACCURACY).await?;
    states.each(&accuracy.rows, |state, row| {
        state.accuracy.insert((text(row, 2)?, whole(row, 3)?), number(row, 4)?);
        Some(())
    });
    states.each(&ask(BY_LAYER).await?.rows, |state, row| {
        state.by_layer.insert((whole(row, 2)?, whole(row, 3)?), number(row, 4)?);
        Some(())
    });
    states.each(&ask(AT_BEST).await?.rows, |state, row| {
        state.best = Some(whole(row, 2)?);
        state.td.insert((text(row, 3)?, whole(row, 4)?), number(row, 5)?);
        Some(())
    });
    states.each(&ask(FITS).await?.rows, |state, row| {
        if state.best == Some(whole(row, 2)?) {
            let (slope, intercept, r2) = (number(row, 3)?, number(row, 4)?, number(row, 5)?);
            state.fit = Some(Fit { slope, intercept, r2, points: whole(row, 6)? });
        }
        Some(())
    });
    states.each(&ask(patches::QUERY).await?.rows, |state, row| {
        state.interventions.push(patches::read(row)?);
        Some(())
    });
    Ok(states.found.into_values().filter(|state| !state.is_empty()).collect())
}

const ACCURACY: &str = "SELECT run_id, step, latent_task, shots, value FROM results.icl \
     WHERE OF_SWEEP AND metric = 'accuracy' AND position IS NULL";

// At x, as in the paper, where that was measured: it comes before y.
const BY_LAYER: &str = "SELECT run_id, step, layer, shots, avg(value) FROM results.td \
     WHERE OF_SWEEP AND site = (SELECT min(site) FROM results.td WHERE OF_SWEEP) GROUP BY 1, 2, 3, 4";

const AT_BEST: &str = "WITH here AS ( \
         SELECT * FROM results.td WHERE OF_SWEEP AND site = (SELECT min(site) FROM results.td WHERE OF_SWEEP) \
     ), mean AS ( \
         SELECT run_id, step, layer, avg(value) AS td FROM here GROUP BY 1, 2, 3 \
     ), best AS ( \
         SELECT DISTINCT ON (run_id, step) run_id, step, layer FROM mean ORDER BY run_id, step, td DESC, layer \
     ) SELECT run_id, step, layer, latent_task, shots, value FROM here JOIN best USING (run_id, step, layer)";

const FITS: &str = "SELECT run_id, step, layer, slope, intercept, r2, n FROM results.td_vs_icl_fit \
     WHERE OF_SWEEP AND metric = 'accuracy' AND site = (SELECT min(site) FROM results.td WHERE OF_SWEEP)";

struct States {
    params: BTreeMap<i64, String>,
    found: BTreeMap<(i64, i64), State>,
}

impl States {
    /// Passes each row on with the state that its first two columns, run and step, name. Rows of another shape are left
    /// out.
    fn each(&mut self, rows: &[Vec<Value>], mut add: impl FnMut(&mut State, &[Value]) -> Option<()>) {
        for row in rows {
            let (Some(run_id), Some(step)) = (whole(row, 0), whole(row, 1)) else { continue };
            let state = self.found.entry((run_id, step)).or_insert_with(|| {
                let params = self.params.get(&run_id).cloned().unwrap_or_default();
                State { run_id, step, params, ..State::default() }
            });
            let _ = add(state, row);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Two tasks and Null with 1 and 4 shots; layer 2 of 3 is best.
    pub fn state() -> State {
        let key = |task: &str, shots| (task.to_owned(), shots);
        let accuracy = [("AND", 1, 0.2), ("AND", 4, 0.6), ("OR", 1, 0.1), ("OR", 4, 0.4), ("Null", 4, 0.0)];
        let td = [("AND", 1, 0.5), ("AND", 4, 0.9), ("OR", 1, 0.4), ("OR", 4, 0.8), ("Null", 4, 1.0)];
        State {
            run_id: 1,
            params: "family=bitwise".into(),
            step: 0,
            accuracy: accuracy.map(|(task, shots, x)| (key(task, shots), x)).into(),
            by_layer: [((1, 1), 0.3), ((1, 4), 0.4), ((2, 1), 0.45), ((2, 4), 0.9), ((3, 1), 0.4), ((3, 4), 0.7)]
                .into(),
            best: Some(2),
            td: td.map(|(task, shots, x)| (key(task, shots), x)).into(),
            fit: Some(Fit { slope: 1.0, intercept: -0.3, r2: 0.81, points: 4 }),
            interventions: vec![Intervention {
                layer: 2,
                manner: "x, last, replace".into(),
                shots: 4,
                source: "AND".into(),
                target: "Null".into(),
                baseline: 0.6,
                patched: 0.45,
                deviation: Some(0.02),
            }],
        }
    }

    #[test]
    fn null_counts_for_decodability_but_not_for_accuracy() {
        let state = state();
        assert_eq!((state.mean_accuracy(4), state.mean_td(4)), (Some(0.5), Some(0.9)));
        assert_eq!((state.mean_accuracy(10), state.mean_td(10)), (None, None));
        assert_eq!(state.shots(), [1, 4].into());
    }
}

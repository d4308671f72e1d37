//! Interventions, as the summary of a sweep shows them.

use super::{number, short, text, whole};
use serde_json::{Value, json};
use taskvec_model::table::Table;

/// Rows of a table: the largest changes.
const MOST: usize = 16;

/// Of what [`read`] takes; `OF_SWEEP` stands for the condition that chooses the runs. The first two columns are run and step.
pub const QUERY: &str = "SELECT run_id, step, layer, concat_ws(', ', site, positions, mode), shots, source_task, \
         target_task, avg(baseline), avg(patched), stddev_samp(patched - baseline) FROM results.interventions \
     WHERE OF_SWEEP GROUP BY 1, 2, 3, 4, 5, 6, 7 ORDER BY 1, 2, 4, 5, 3, 6, 7";

/// Means over replicates.
pub struct Intervention {
    pub layer: i64,
    /// Site, positions and mode.
    pub manner: String,
    pub shots: i64,
    pub source: String,
    pub target: String,
    pub baseline: f64,
    pub patched: f64,
    /// Of the change, over replicates; none for one.
    pub deviation: Option<f64>,
}

impl Intervention {
    fn change(&self) -> f64 {
        self.patched - self.baseline
    }
}

/// A row of [`QUERY`]; none where it has another shape.
pub fn read(row: &[Value]) -> Option<Intervention> {
    Some(Intervention {
        layer: whole(row, 2)?,
        manner: text(row, 3)?,
        shots: whole(row, 4)?,
        source: text(row, 5)?,
        target: text(row, 6)?,
        baseline: number(row, 7)?,
        patched: number(row, 8)?,
        deviation: number(row, 9),
    })
}

/// What interventions did to a metric, which is named in words.
pub fn shown(all: &[Intervention], metric: &str) -> String {
    let mut shown: Vec<&Intervention> = all.iter().collect();
    if shown.len() > MOST {
        shown.sort_by(|a, b| b.change().abs().total_cmp(&a.change().abs()));
        shown.truncate(MOST);
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
            json!(format!("{:+.3}", p.change())),
            short(p.deviation),
        ]
    };
    let table = Table { columns: columns.map(str::to_owned).into(), rows: shown.iter().map(row).collect() };
    let of = match all.len() - shown.len() {
        0 => String::new(),
        _ => format!(" (the {} largest changes of {})", shown.len(), all.len()),
    };
    format!(
        "Interventions{of}: {metric} before and after, ± the deviation of the change over replicates\n{}",
        crate::output::render(&table)
    )
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn intervention(layer: i64, source: &str, baseline: f64, patched: f64) -> Intervention {
        let (manner, target) = ("x, last, replace".to_owned(), "Null".to_owned());
        let source = source.to_owned();
        Intervention { layer, manner, shots: 4, source, target, baseline, patched, deviation: Some(0.02) }
    }

    #[test]
    fn of_many_the_largest_changes_are_shown() {
        let mut many = vec![intervention(2, "AND", 0.6, 0.45)];
        many.extend((1..=20).map(|i| intervention(i, &format!("T{i}"), 0.5, 0.5 + i as f64 / 1000.0)));
        let text = shown(&many, "accuracy");
        assert!(text.contains("the 16 largest changes of 21): accuracy before"), "{text}");
        assert!(text.contains("-0.150") && text.contains("+0.020") && !text.contains("T5 "), "{text}");
    }
}

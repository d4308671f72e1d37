//! What a sweep showed: encoding and ICL performance of every run, through training.

pub mod natural;
mod patches;
mod plot;
mod summary;

pub use summary::summary;

use crate::{client::Client, error::CliError};
use patches::Intervention;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};
use taskvec_model::table::Table;

/// A sweep's curves, means over its latent tasks.
pub struct Findings {
    pub sweep_id: i64,
    pub name: String,
    /// Runs that train from scratch.
    pub runs: Vec<RunFindings>,
    /// Language models, by run and step.
    pub natural: Vec<natural::State>,
    /// Runs of every kind.
    pub count: usize,
}

pub struct RunFindings {
    pub run_id: i64,
    /// Only what the sweep varies, as `seed=3`.
    pub params: String,
    pub points: Vec<Point>,
    /// (layer, site) whose TD is highest at the last checkpoint.
    pub best: Option<(i64, String)>,
    pub bounds: Bounds,
    pub latent_tasks: usize,
    /// Those of the last step that has any, after that step.
    pub patched: Option<(i64, Vec<Intervention>)>,
}

/// One checkpoint of one run.
#[derive(Clone, Copy, Default)]
pub struct Point {
    pub step: i64,
    /// Error over all positions and at the last one.
    pub mse: Option<f64>,
    pub mse_last: Option<f64>,
    /// TD of the best layer.
    pub td: Option<f64>,
}

/// What can be reached: over all positions, but `*_last` at the last one.
#[derive(Clone, Copy, Default)]
pub struct Bounds {
    pub ridge: Option<f64>,
    pub oracle: Option<f64>,
    pub mixture: Option<f64>,
    pub oracle_last: Option<f64>,
    /// TD of the ideal observer.
    pub td: Option<f64>,
}

impl RunFindings {
    /// The checkpoints at the start, in the middle and at the end.
    pub fn three(&self) -> Vec<Point> {
        let n = self.points.len();
        let mut picked = vec![0, n / 2, n.saturating_sub(1)];
        picked.dedup();
        picked.into_iter().filter_map(|i| self.points.get(i).copied()).collect()
    }
}

/// Reads a sweep's results through the views.
pub async fn collect(client: &Client, sweep: i64) -> Result<Findings, CliError> {
    let name = client.sql(&format!("SELECT name FROM results.sweeps WHERE sweep_id = {sweep}")).await?;
    let name = name.rows.first().and_then(|r| r.first()?.as_str().map(str::to_owned));
    let name = name.ok_or_else(|| CliError::Usage(format!("there is no sweep {sweep}")))?;
    let count = client.sql(&format!("SELECT count(*) FROM results.runs WHERE sweep_id = {sweep}")).await?;
    let count = count.rows.first().and_then(|r| r.first()?.as_u64()).unwrap_or_default() as usize;
    let of_sweep = format!(
        "run_id IN (SELECT run_id FROM results.runs WHERE sweep_id = {sweep} AND kind NOT IN ('evaluate', 'finetune'))"
    );
    let runs = client.sql(&format!("SELECT run_id, params FROM results.runs WHERE {of_sweep} ORDER BY 1")).await?;
    let icl = client
        .sql(&format!(
            "SELECT run_id, step, avg(value) FILTER (WHERE position IS NULL), avg(value) FILTER (WHERE position = last), \
             count(DISTINCT latent_task) \
             FROM (SELECT *, max(position) OVER (PARTITION BY run_id) AS last FROM results.icl WHERE {of_sweep}) AS i \
             GROUP BY 1, 2 ORDER BY 1, 2"
        ))
        .await?;
    let td = client
        .sql(&format!(
            "SELECT run_id, step, layer, site, avg(value) FROM results.td WHERE {of_sweep} GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4"
        ))
        .await?;
    let baselines = client
        .sql(&format!(
            "SELECT run_id, estimator, position IS NULL, avg(mse) FROM \
             (SELECT *, max(position) OVER (PARTITION BY run_id) AS last FROM results.baselines WHERE {of_sweep}) AS b \
             WHERE position IS NULL OR position = last GROUP BY 1, 2, 3"
        ))
        .await?;
    let bound =
        client.sql(&format!("SELECT run_id, avg(value) FROM results.td_bound WHERE {of_sweep} GROUP BY 1")).await?;
    let mut by_run: BTreeMap<i64, RunFindings> = runs.rows.iter().filter_map(|row| new_run(row)).collect();
    add_icl(&mut by_run, &icl);
    add_td(&mut by_run, &td);
    add_bounds(&mut by_run, &baselines, &bound);
    add_patches(&mut by_run, &client.sql(&patches::QUERY.replace("OF_SWEEP", &of_sweep)).await?);
    let natural = natural::collect(client, sweep).await?;
    Ok(Findings { sweep_id: sweep, name, runs: by_run.into_values().collect(), natural, count })
}

fn new_run(row: &[Value]) -> Option<(i64, RunFindings)> {
    let run_id = row.first()?.as_i64()?;
    let params = crate::live::short(&row.get(1)?.to_string());
    let run = RunFindings {
        run_id,
        params,
        points: Vec::new(),
        best: None,
        bounds: Bounds::default(),
        latent_tasks: 0,
        patched: None,
    };
    Some((run_id, run))
}

fn whole(row: &[Value], column: usize) -> Option<i64> {
    row.get(column)?.as_i64()
}

fn number(row: &[Value], column: usize) -> Option<f64> {
    row.get(column)?.as_f64()
}

fn text(row: &[Value], column: usize) -> Option<String> {
    Some(row.get(column)?.as_str()?.to_owned())
}

/// A number in a table, or nothing.
fn short(x: Option<f64>) -> Value {
    x.map_or(Value::Null, |x| json!(format!("{x:.3}")))
}

fn run_of<'a>(runs: &'a mut BTreeMap<i64, RunFindings>, row: &[Value]) -> Option<&'a mut RunFindings> {
    runs.get_mut(&row.first()?.as_i64()?)
}

fn add_icl(runs: &mut BTreeMap<i64, RunFindings>, icl: &Table) {
    for row in &icl.rows {
        let (Some(run), Some(step)) = (run_of(runs, row), row[1].as_i64()) else { continue };
        run.latent_tasks = number(row, 4).unwrap_or_default() as usize;
        run.points.push(Point { step, mse: number(row, 2), mse_last: number(row, 3), td: None });
    }
}

/// Follows, through training, the (layer, site) that is best at the end; site `x`, as in the paper, where it was measured.
fn add_td(runs: &mut BTreeMap<i64, RunFindings>, td: &Table) {
    type Curve = BTreeMap<i64, f64>;
    let mut curves: BTreeMap<i64, BTreeMap<(String, i64), Curve>> = BTreeMap::new();
    for row in &td.rows {
        let (Some(run), Some(step), Some(layer), Some(site), Some(value)) =
            (row[0].as_i64(), row[1].as_i64(), row[2].as_i64(), row[3].as_str(), number(row, 4))
        else {
            continue;
        };
        curves.entry(run).or_default().entry((site.to_owned(), layer)).or_default().insert(step, value);
    }
    for (run, curves) in curves {
        let Some(run) = runs.get_mut(&run) else { continue };
        let end = |curve: &Curve| curve.last_key_value().map_or(0.0, |(_, v)| *v);
        let has_x = curves.keys().any(|(site, _)| site == "x");
        let candidates = curves.iter().filter(|((site, _), _)| !has_x || site == "x");
        let Some(((site, layer), curve)) = candidates.max_by(|a, b| end(a.1).total_cmp(&end(b.1))) else { continue };
        run.best = Some((*layer, site.clone()));
        for (step, value) in curve {
            match run.points.iter_mut().find(|p| p.step == *step) {
                Some(point) => point.td = Some(*value),
                None => run.points.push(Point { step: *step, td: Some(*value), ..Point::default() }),
            }
        }
        run.points.sort_by_key(|p| p.step);
    }
}

fn add_bounds(runs: &mut BTreeMap<i64, RunFindings>, baselines: &Table, bound: &Table) {
    for row in &baselines.rows {
        let (Some(run), Some(estimator)) = (run_of(runs, row), row[1].as_str()) else { continue };
        let mse = number(row, 3);
        match (estimator, row[2].as_bool().unwrap_or_default()) {
            ("ridge", true) => run.bounds.ridge = mse,
            ("oracle", true) => run.bounds.oracle = mse,
            ("bayes_mixture", true) => run.bounds.mixture = mse,
            ("oracle", false) => run.bounds.oracle_last = mse,
            _ => {}
        }
    }
    for row in &bound.rows {
        if let Some(run) = run_of(runs, row) {
            run.bounds.td = number(row, 1);
        }
    }
}

/// Steps ascend; those of an earlier one give way.
fn add_patches(runs: &mut BTreeMap<i64, RunFindings>, patched: &Table) {
    for row in &patched.rows {
        let (Some(step), Some(one)) = (whole(row, 1), patches::read(row)) else { continue };
        let Some(run) = run_of(runs, row) else { continue };
        match &mut run.patched {
            Some((at, all)) if *at == step => all.push(one),
            last => *last = Some((step, vec![one])),
        }
    }
}

/// Writes `summary.txt`, and `emergence.svg` or `language.svg`, into `dir`; the paths written.
pub fn write(found: &Findings, dir: &Path) -> Result<Vec<PathBuf>, CliError> {
    std::fs::create_dir_all(dir).map_err(CliError::io(dir))?;
    let text = dir.join("summary.txt");
    std::fs::write(&text, summary(found) + "\n").map_err(CliError::io(&text))?;
    let mut written = vec![text];
    let cannot = |e| CliError::Failed(format!("cannot draw the picture: {e}"));
    if let Some(svg) = natural::picture(&found.name, &found.natural).map_err(cannot)? {
        let picture = dir.join("language.svg");
        std::fs::write(&picture, svg).map_err(CliError::io(&picture))?;
        written.push(picture);
    }
    if found.runs.iter().any(|run| run.points.len() > 1) {
        let picture = dir.join("emergence.svg");
        let svg = plot::emergence(found).map_err(cannot)?;
        std::fs::write(&picture, svg).map_err(CliError::io(&picture))?;
        written.push(picture);
    }
    Ok(written)
}

//! Live progress of a sweep: bars on a terminal, a line now and then elsewhere.

use crate::{client::Client, error::CliError};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    io::IsTerminal,
    time::{Duration, Instant},
};
use taskvec_model::{
    state::{JobState, SweepState},
    table::Table,
};
use taskvec_wire::pb::{RunStatus, SweepRequest, SweepStatus};

/// Rows shown at once; a sweep of a thousand runs still fits the terminal.
const MOST_ROWS: usize = 12;
/// How often a line is printed where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// How long a watch goes on asking for a server that went away.
const PATIENCE: Duration = Duration::from_secs(120);

/// Shows a sweep until it has ended. `Err(Failed)` unless every job is done.
pub async fn watch(client: &Client, sweep_id: i64) -> Result<SweepStatus, CliError> {
    let mut view = View::new();
    let mut lost: Option<Instant> = None;
    let mut newest = None;
    loop {
        match follow(client, sweep_id, &mut view, &mut newest).await {
            Ok(()) if newest.as_ref().is_some_and(ended) => break,
            Ok(()) => {}
            Err(status) if status.code() != tonic::Code::Unavailable && status.code() != tonic::Code::Unknown => {
                return Err(client.fault(status));
            }
            Err(status) if lost.is_some_and(|since| since.elapsed() > PATIENCE) => return Err(client.fault(status)),
            Err(_) => {
                lost.get_or_insert_with(Instant::now);
                view.say("the server does not answer; trying again …");
                tokio::time::sleep(Duration::from_millis(500)).await;
                continue;
            }
        }
        lost = None;
    }
    view.finish();
    let last = newest.ok_or_else(|| CliError::Failed("the server said nothing about the sweep".to_owned()))?;
    verdict(last, &client.call)
}

/// One connection's worth of updates.
async fn follow(
    client: &Client,
    sweep_id: i64,
    view: &mut View,
    newest: &mut Option<SweepStatus>,
) -> Result<(), tonic::Status> {
    let mut stream = client.sweeps().watch(SweepRequest { sweep_id }).await?.into_inner();
    while let Some(status) = stream.message().await? {
        view.show(&status);
        *newest = Some(status);
    }
    Ok(())
}

fn ended(status: &SweepStatus) -> bool {
    status.state.parse::<SweepState>().is_ok_and(SweepState::ended)
}

fn verdict(last: SweepStatus, call: &str) -> Result<SweepStatus, CliError> {
    if last.state == SweepState::Done.as_str() {
        return Ok(last);
    }
    let id = last.sweep_id;
    Err(CliError::Failed(format!(
        "sweep {id} {}: {}\n  why: {call} sql \"SELECT job_id, run_id, kind, step, error FROM results.jobs \
         WHERE sweep_id = {id} AND state = 'failed'\"\n  again: {call} sweep retry {id}",
        last.state,
        headline(&last)
    )))
}

/// `12 of 40 jobs done, 2 running, 26 waiting, about 1 min 20 s left`.
pub fn headline(status: &SweepStatus) -> String {
    let of = |state: JobState| {
        let index = JobState::ALL.iter().position(|s| *s == state).unwrap_or_default();
        status.jobs.get(index).copied().unwrap_or_default()
    };
    let total: u32 = status.jobs.iter().sum();
    let mut parts = vec![format!("{} of {total} jobs done", of(JobState::Done))];
    if status.cached > 0 {
        parts[0] += &format!(" ({} cached)", status.cached);
    }
    for (name, n) in [
        ("running", of(JobState::Running)),
        ("waiting", of(JobState::Waiting) + of(JobState::Ready)),
        ("failed", of(JobState::Failed)),
        ("skipped", of(JobState::Skipped)),
        ("cancelled", of(JobState::Cancelled)),
    ] {
        if n > 0 || name == "running" {
            parts.push(format!("{n} {name}"));
        }
    }
    if let Some(seconds) = status.eta_seconds {
        parts.push(format!("about {} left", span(seconds)));
    }
    parts.join(", ")
}

/// The runs of a sweep, as a listing.
pub fn as_table(status: &SweepStatus) -> Table {
    let columns = ["run_id", "params", "state", "step", "steps", "steps_per_second", "loss", "jobs_done", "jobs_total"];
    let row = |run: &RunStatus| -> Vec<Value> {
        vec![
            json!(run.run_id),
            serde_json::from_str(&run.params).unwrap_or(Value::Null),
            json!(run.state),
            json!(run.step),
            json!(run.steps),
            if run.steps_per_second > 0.0 { json!(run.steps_per_second) } else { Value::Null },
            json!(run.loss),
            json!(run.jobs_done),
            json!(run.jobs_total),
        ]
    };
    Table { columns: columns.map(str::to_owned).to_vec(), rows: status.runs.iter().map(row).collect() }
}

/// `step 1200/3000 · 61.0 steps/s · 30 s left · loss 1.234 · 3/12 jobs`.
fn run_line(run: &RunStatus) -> String {
    let mut parts = Vec::new();
    if run.steps > 0 {
        parts.push(format!("step {}/{}", run.step, run.steps));
    }
    if run.steps_per_second > 0.0 {
        parts.push(format!("{:.1} steps/s", run.steps_per_second));
        if run.step < run.steps {
            parts.push(format!("{} left", span((run.steps - run.step) as f64 / run.steps_per_second)));
        }
    }
    if let Some(loss) = run.loss {
        parts.push(format!("loss {loss:.4}"));
    }
    if run.job_total > 0 {
        parts.push(format!("job {}: {}/{}", run.job_id, run.job_done, run.job_total));
    }
    parts.push(format!("{}/{} jobs", run.jobs_done, run.jobs_total));
    parts.join(" · ")
}

/// A duration for people.
pub fn span(seconds: f64) -> String {
    let s = seconds.max(0.0).round() as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {:02} s", s / 60, s % 60),
        _ => format!("{} h {:02} min", s / 3600, s % 3600 / 60),
    }
}

/// Where progress is drawn: always stderr, so that results on stdout stay clean.
enum View {
    Terminal { all: MultiProgress, head: ProgressBar, runs: BTreeMap<i64, ProgressBar> },
    Lines { last: Option<Instant> },
}

impl View {
    fn new() -> Self {
        if !std::io::stderr().is_terminal() {
            return Self::Lines { last: None };
        }
        let all = MultiProgress::new();
        let head = all.add(ProgressBar::new_spinner());
        head.enable_steady_tick(Duration::from_millis(200));
        Self::Terminal { all, head, runs: BTreeMap::new() }
    }

    fn show(&mut self, status: &SweepStatus) {
        match self {
            Self::Lines { last } => {
                if last.is_none_or(|t| t.elapsed() >= LINE_EVERY) || ended(status) {
                    *last = Some(Instant::now());
                    eprintln!("{}", headline(status));
                    for run in status.runs.iter().filter(|r| r.state == "running").take(MOST_ROWS) {
                        eprintln!("  run {}: {}", run.run_id, run_line(run));
                    }
                }
            }
            Self::Terminal { all, head, runs } => {
                head.set_message(headline(status));
                for run in &status.runs {
                    if run.state == "running" && (runs.contains_key(&run.run_id) || runs.len() < MOST_ROWS) {
                        let bar = runs.entry(run.run_id).or_insert_with(|| all.add(bar(run)));
                        bar.set_position(run.step.max(u64::from(run.jobs_done)));
                        bar.set_message(run_line(run));
                    } else if let Some(bar) = runs.remove(&run.run_id) {
                        bar.finish_and_clear();
                    }
                }
            }
        }
    }

    fn say(&self, text: &str) {
        match self {
            Self::Lines { .. } => eprintln!("{text}"),
            Self::Terminal { head, .. } => head.set_message(text.to_owned()),
        }
    }

    fn finish(&self) {
        if let Self::Terminal { all, .. } = self {
            // Clearing a closed terminal fails, and then there is nobody to tell.
            let _ = all.clear();
        }
    }
}

fn bar(run: &RunStatus) -> ProgressBar {
    let style = ProgressStyle::with_template("  {prefix:<18.18} {bar:20.cyan/blue} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(run.steps.max(u64::from(run.jobs_total))).with_style(style);
    bar.set_prefix(format!("run {} {}", run.run_id, short(&run.params)));
    bar
}

/// `{"seed":3}` as `seed=3`.
pub fn short(params: &str) -> String {
    let Ok(Value::Object(map)) = serde_json::from_str(params) else {
        return String::new();
    };
    let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
    map.iter().map(|(k, v)| format!("{}={v}", last(k))).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> SweepStatus {
        SweepStatus { sweep_id: 3, state: "failed".into(), jobs: vec![1, 2, 3, 4, 1, 0, 0], ..Default::default() }
    }

    #[test]
    fn the_headline_counts_every_state_that_occurs() {
        assert_eq!(headline(&status()), "4 of 11 jobs done, 3 running, 3 waiting, 1 failed");
    }

    #[test]
    fn a_sweep_that_failed_says_where_to_look() {
        let error = verdict(status(), "taskvec").expect_err("it failed");
        assert_eq!(error.exit_code(), 1);
        assert!(error.to_string().contains("taskvec sweep retry 3"), "{error}");
    }

    #[test]
    fn spans_and_params_are_short() {
        assert_eq!([span(5.2), span(80.0), span(7300.0)], ["5 s", "1 min 20 s", "2 h 01 min"]);
        assert_eq!(short(r#"{"data.rank":2,"seed":3}"#), "rank=2 seed=3");
    }
}

//! Models from the HuggingFace hub into its cache, with progress on stderr.

use crate::error::CliError;
use indicatif::{DecimalBytes, ProgressBar, ProgressStyle};
use std::{collections::BTreeSet, io::IsTerminal};
use taskvec_hub::{Fetched, Hub, HubError, Name, Watch};
use taskvec_model::{pattern::is_pattern, plan::Plan, spec::RunSpec};
use taskvec_science::load;

/// Fetches one revision, or all whose names match a pattern, in the order of their names.
pub fn fetch(name: &str, revision: Option<&str>) -> Result<Vec<Fetched>, HubError> {
    let (name, hub): (Name, Hub) = (name.parse()?, Hub::from_environment()?);
    match revision.filter(|revision| is_pattern(revision)) {
        Some(pattern) => {
            let found = hub.matching(&name, pattern)?;
            found.iter().map(|revision| hub.fetch(&name, Some(revision), &mut Progress::default())).collect()
        }
        None => Ok(vec![hub.fetch(&name, revision, &mut Progress::default())?]),
    }
}

/// Fetches what a sweep needs of the hub and this machine does not have. Where the environment forbids it, nothing
/// happens: whoever plans the sweep then says what is missing.
pub fn fetch_missing(plan: &Plan) -> Result<(), CliError> {
    let models: BTreeSet<(&str, Option<&str>)> = plan.runs.iter().filter_map(|run| model(&run.spec)).collect();
    for (path, revision) in models {
        let fetched = match revision {
            _ if !load::is_hub_name(path) => continue,
            Some(pattern) if is_pattern(pattern) => fetch_wanting(path, pattern),
            _ if load::is_wanting(path, revision) => fetch(path, revision).map(drop),
            _ => continue,
        };
        match fetched {
            Ok(()) | Err(HubError::Offline | HubError::BadName(_)) => {}
            Err(error) => without_the_hub(path, revision, &error)?,
        }
    }
    Ok(())
}

fn model(spec: &RunSpec) -> Option<(&str, Option<&str>)> {
    let model = match spec {
        RunSpec::Evaluate(run) => &run.model,
        RunSpec::Finetune(run) => &run.model,
        _ => return None,
    };
    Some((&model.path, model.revision.as_deref()))
}

/// Of the revisions that match, those that are not here. The hub is asked each time: it may have more than are here.
fn fetch_wanting(path: &str, pattern: &str) -> Result<(), HubError> {
    let (name, hub): (Name, Hub) = (path.parse()?, Hub::from_environment()?);
    let found = hub.matching(&name, pattern)?;
    let wanting: Vec<&String> = found.iter().filter(|revision| load::is_wanting(path, Some(revision))).collect();
    if !wanting.is_empty() {
        // It may be more than anyone wants.
        eprintln!(
            "taskvec: fetching {} of the {} revisions of {name} that match {pattern}",
            wanting.len(),
            found.len()
        );
    }
    for revision in wanting {
        hub.fetch(&name, Some(revision), &mut Progress::default())?;
    }
    Ok(())
}

/// The revisions that are here will do for a pattern; otherwise what is missing is said, and why the hub did not help.
fn without_the_hub(path: &str, revision: Option<&str>, error: &HubError) -> Result<(), CliError> {
    let missing = match revision.filter(|revision| is_pattern(revision)) {
        Some(pattern) => load::revisions(path, pattern).map(|found| {
            eprintln!("taskvec: {error}; going on with the {} revisions of {path} that are here", found.len());
        }),
        None => load::Files::find(path, revision).map(drop),
    };
    missing.map_err(|missing| CliError::Usage(format!("{missing}\n  fetching it failed: {error}")))
}

/// A bar per file on a terminal, a line per file elsewhere.
#[derive(Default)]
struct Progress {
    bar: Option<ProgressBar>,
}

impl Watch for Progress {
    fn begins(&mut self, file: &str, size: u64, have: u64) {
        self.finish();
        if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new(size).with_message(file.to_owned()).with_position(have);
            let look = "{msg}  [{wide_bar}] {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta}";
            if let Ok(style) = ProgressStyle::with_template(look) {
                bar.set_style(style.progress_chars("=> "));
            }
            // Speed and time left are of what is still to come.
            bar.reset_eta();
            self.bar = Some(bar);
        } else {
            eprintln!("taskvec: fetching {file} ({})", DecimalBytes(size));
        }
    }

    fn received(&mut self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
        }
    }

    fn waits(&mut self) {
        eprintln!("taskvec: another process is fetching this model; waiting for it");
    }

    fn stops(&self) -> bool {
        false
    }
}

impl Progress {
    fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

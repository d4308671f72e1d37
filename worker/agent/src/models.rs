//! Pretrained models that a job needs and this machine lacks: fetched from the HuggingFace hub before the job computes.

use crate::log::AttemptLog;
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use taskvec_hub::{Fetched, Hub, HubError, Name, Watch};
use taskvec_model::{
    job::{Failure, JobWork, Retry},
    spec::PretrainedSpec,
};
use taskvec_science::load;

/// Fetches the model of a job, if it is one of the hub and not here. Drop the future to give up: what came is kept. That
/// what was fetched is what the sweep was planned with is checked where it is loaded.
///
/// # Errors
/// Where the hub does not have it or cannot be reached; only the latter is worth another try.
pub async fn bring(work: &JobWork, log: &Arc<AttemptLog>) -> Result<(), Failure> {
    let Some(spec) = work.pretrained().cloned() else { return Ok(()) };
    let given_up = GivenUp::default();
    let (log, stop) = (log.clone(), given_up.0.clone());
    let fetching = tokio::task::spawn_blocking(move || fetch(&spec, &mut Logged { log, stop }));
    match fetching.await {
        Ok(done) => done,
        Err(error) => Err(Failure { retry: Retry::Allowed, reason: format!("a helper thread ended early: {error}") }),
    }
}

/// Tells the thread when nobody waits for it any more.
#[derive(Default)]
struct GivenUp(Arc<AtomicBool>);

impl Drop for GivenUp {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Notes each file in the attempt's log.
struct Logged {
    log: Arc<AttemptLog>,
    stop: Arc<AtomicBool>,
}

impl Watch for Logged {
    fn begins(&mut self, file: &str, size: u64, have: u64) {
        self.log.add(&format!("fetching {file}: {size} bytes, {have} of them here"));
    }

    fn received(&mut self, _: u64) {}

    fn waits(&mut self) {
        self.log.add("waiting for another process that fetches the same model");
    }

    fn stops(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

fn fetch(spec: &PretrainedSpec, watch: &mut Logged) -> Result<(), Failure> {
    let PretrainedSpec { path, revision, .. } = spec;
    if !load::is_wanting(path, revision.as_deref()) {
        return Ok(());
    }
    match from_hub(path, revision.as_deref(), watch) {
        Ok(fetched) => {
            watch.log.add(&format!("fetched {path} at commit {}", fetched.commit));
            Ok(())
        }
        // The loader says what is missing and where to place it.
        Err(HubError::Offline | HubError::BadName(_)) => Ok(()),
        Err(error) => Err(failure(spec, &error)),
    }
}

fn from_hub(path: &str, revision: Option<&str>, watch: &mut Logged) -> Result<Fetched, HubError> {
    let name: Name = path.parse()?;
    watch.log.add(&format!("{name} is not on this machine; asking the hub"));
    Hub::from_environment()?.fetch(&name, revision, watch)
}

/// What the loader would say, and why the hub did not help.
fn failure(spec: &PretrainedSpec, error: &HubError) -> Failure {
    let retry = if error.is_passing() { Retry::Allowed } else { Retry::Never };
    let missing = load::Files::find(&spec.path, spec.revision.as_deref()).err().map(|e| e.to_string());
    let missing = missing.unwrap_or_else(|| format!("{} could not be fetched", spec.path));
    Failure { retry, reason: format!("{missing}. Fetching it failed: {error}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use taskvec_model::spec::FloatType;

    #[test]
    fn only_a_network_that_fails_is_tried_again() {
        let path = "nobody/no-such-model".to_owned();
        let spec = PretrainedSpec { path, revision: None, dtype: FloatType::F32, identity: None };
        let endpoint = || "https://hub".to_owned();
        let away = failure(&spec, &HubError::Unreachable { endpoint: endpoint(), reason: "no route".to_owned() });
        assert_eq!(away.retry, Retry::Allowed);
        for part in ["`nobody/no-such-model` is neither", "Place config.json", "cannot be reached (no route"] {
            assert!(away.reason.contains(part), "`{part}` is not in: {}", away.reason);
        }
        let name = "nobody/no-such-model".parse().expect("a name");
        assert_eq!(failure(&spec, &HubError::NotFound { endpoint: endpoint(), name }).retry, Retry::Never);
    }

    #[test]
    fn a_fetch_is_stopped_when_nobody_waits_for_it() {
        let given_up = GivenUp::default();
        let log = Arc::new(AttemptLog::new(std::time::Instant::now()));
        let watch = Logged { log, stop: given_up.0.clone() };
        assert!(!watch.stops());
        drop(given_up);
        assert!(watch.stops());
    }
}

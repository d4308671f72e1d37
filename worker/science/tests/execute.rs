//! The entrance for workers: selftest jobs, and what analyses say about their inputs.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use common::{Folder, Memory};
use std::time::{Duration, Instant};
use taskvec_model::{
    job::{JobWork, Purpose, Retry},
    metric::Metrics,
    spec::Behaviour,
};
use taskvec_science::{Executed, Inputs, Models, ScienceError, execute};

fn selftest(behaviour: Behaviour, millis: u64, sink: &mut Memory) -> Result<Executed, ScienceError> {
    execute(&JobWork::Selftest { seed: 0, index: 7, behaviour, millis }, &Inputs::default(), &Models::default(), sink)
}

#[test]
fn a_selftest_takes_its_time_and_succeeds() {
    let (mut sink, start) = (Memory::default(), Instant::now());
    assert_eq!(selftest(Behaviour::Succeed, 50, &mut sink).unwrap(), Executed::Finished(Metrics::default()));
    assert!(start.elapsed() >= Duration::from_millis(50));
    assert_eq!(sink.progress.last().map(|p| (p.done, p.total)), Some((50, 50)));
}

#[test]
fn a_failing_selftest_may_be_retried() {
    let error = selftest(Behaviour::Fail, 0, &mut Memory::default()).unwrap_err();
    assert_eq!(error.to_string(), "selftest job 7 failed, as its sweep file asks (behaviour: fail)");
    assert_eq!(error.retry(), Retry::Allowed);
}

#[test]
#[should_panic(expected = "selftest job 7 panicked")]
fn a_panicking_selftest_panics() {
    let _ = selftest(Behaviour::Panic, 0, &mut Memory::default());
}

#[test]
fn a_selftest_stops_soon_when_asked() {
    let (mut sink, start) = (Memory { stop_at: Some(1), ..Memory::default() }, Instant::now());
    let error = selftest(Behaviour::Succeed, 60_000, &mut sink).unwrap_err();
    assert!(matches!(error, ScienceError::Stopped), "{error}");
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn an_analysis_reads_the_weights_that_training_wrote() {
    let (seed, model, data) = (3, common::model(), common::data());
    let (train, checkpoints) = (common::train(2), common::checkpoints());
    let mut sink = Memory::default();
    let work = JobWork::Train { seed, model: model.clone(), data: data.clone(), train, checkpoints, from: 0, to: 2 };
    execute(&work, &Inputs::default(), &Models::default(), &mut sink).unwrap();

    let icl = |seed| JobWork::Icl { seed, model: model.clone(), data: data.clone(), sequences: 40 };
    let folder = Folder::new();
    let weights = Some(folder.put("weights", &sink.files[&(2, Purpose::Weights)]));
    let inputs = Inputs { resume: None, weights };
    let Ok(Executed::Finished(metrics)) = execute(&icl(seed), &inputs, &Models::default(), &mut sink) else {
        panic!("it should finish")
    };
    assert!(!metrics.icl.is_empty() && metrics.icl.len() == metrics.rows());

    let error = execute(&icl(seed + 1), &inputs, &Models::default(), &mut sink).unwrap_err();
    assert!(error.to_string().contains("its seed is 3, wanted 4") && error.retry() == Retry::Never, "{error}");
    let error = execute(&icl(seed), &Inputs::default(), &Models::default(), &mut sink).unwrap_err();
    assert_eq!(error.to_string(), "the job was given no weights checkpoint to read");
}

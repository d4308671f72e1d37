//! Training is a function of the specification: however it is cut, stopped, handed over or threaded, the bytes are equal.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use common::{Folder, Memory};
use std::path::Path;
use taskvec_model::{
    job::{JobWork, Purpose, Retry},
    spec::{Decay, TrainSpec},
};
use taskvec_science::{Executed, Inputs, Models, ScienceError, execute};

const STEPS: u64 = 20;

fn segment(train: &TrainSpec, from: u64, to: u64) -> JobWork {
    let (model, data, checkpoints) = (common::model(), common::data(), common::checkpoints());
    JobWork::Train { seed: 3, model, data, train: train.clone(), checkpoints, from, to }
}

fn run(from: u64, to: u64, resume: Option<&Path>, sink: &mut Memory) -> Result<Executed, ScienceError> {
    let inputs = Inputs { resume: resume.map(Path::to_owned), weights: None };
    execute(&segment(&common::train(STEPS), from, to), &inputs, &Models::default(), sink)
}

/// All of training in one segment.
fn undisturbed() -> Memory {
    let mut sink = Memory::default();
    assert!(matches!(run(0, STEPS, None, &mut sink), Ok(Executed::Finished(m)) if m.rows() == 0));
    sink
}

/// What several parts produced, with the resume states between them left out.
fn joined(parts: Vec<Memory>) -> Memory {
    let mut all = Memory::default();
    for part in parts {
        all.files.extend(part.files);
        all.losses.extend(part.losses);
    }
    all.files.retain(|(step, purpose), _| *purpose == Purpose::Weights || *step == STEPS);
    all
}

fn assert_same(a: &Memory, b: &Memory) {
    assert_eq!(a.files.keys().collect::<Vec<_>>(), b.files.keys().collect::<Vec<_>>());
    for (key, bytes) in &a.files {
        assert!(bytes == &b.files[key], "{key:?} differs");
    }
    let rows = |m: &Memory| m.losses.iter().map(|r| (r.step, r.loss.to_bits(), r.learning_rate.to_bits())).collect();
    let (a, b): (Vec<_>, Vec<_>) = (rows(a), rows(b));
    assert_eq!(a, b);
}

#[test]
fn a_run_writes_its_schedule_and_logs_its_steps() {
    let sink = undisturbed();
    let steps = |purpose| sink.files.keys().filter(|k| k.1 == purpose).map(|k| k.0).collect::<Vec<_>>();
    assert_eq!(steps(Purpose::Weights), [0, 5, 10, 15, 20]);
    assert_eq!(steps(Purpose::Resume), [20]);
    assert_eq!(sink.losses.iter().map(|r| r.step).collect::<Vec<_>>(), [1, 4, 8, 12, 16, 20]);
    assert!(sink.losses.iter().all(|r| r.sequences_per_second > 0.0));
    assert_eq!(sink.progress.iter().map(|p| p.done).collect::<Vec<_>>(), (1..=20).collect::<Vec<_>>());
    let last = sink.progress.last().unwrap();
    assert!(last.total == 20 && last.per_second > 0.0 && last.loss == Some(sink.losses[5].loss));
}

#[test]
fn cutting_into_segments_changes_nothing() {
    let folder = Folder::new();
    let whole = undisturbed();
    for cuts in [vec![7], vec![1, 2, 19], vec![5, 10]] {
        let mut parts = Vec::new();
        let (mut from, mut state) = (0, None);
        for to in cuts.into_iter().chain([STEPS]) {
            let mut sink = Memory::default();
            assert!(matches!(run(from, to, state.as_deref(), &mut sink), Ok(Executed::Finished(_))));
            state = Some(folder.put("state", &sink.files[&(to, Purpose::Resume)]));
            parts.push(sink);
            from = to;
        }
        assert_same(&whole, &joined(parts));
    }
}

#[test]
fn a_stop_hands_over_and_another_attempt_goes_on() {
    let folder = Folder::new();
    let whole = undisturbed();
    for stop in [1, 5, 19] {
        let mut first = Memory { stop_at: Some(stop), ..Memory::default() };
        let Ok(Executed::Stopped { at }) = run(0, STEPS, None, &mut first) else { panic!("it was asked to stop") };
        assert_eq!((at.step, at.purpose), (stop, Purpose::Resume));
        let state = folder.put("handover", &first.files[&(stop, Purpose::Resume)]);
        let mut second = Memory::default();
        assert!(matches!(run(0, STEPS, Some(&state), &mut second), Ok(Executed::Finished(_))));
        assert_same(&whole, &joined(vec![first, second]));
    }
}

#[test]
fn a_stop_at_the_last_step_finishes_instead() {
    let mut sink = Memory { stop_at: Some(STEPS), ..Memory::default() };
    assert!(matches!(run(0, STEPS, None, &mut sink), Ok(Executed::Finished(_))));
}

/// Three steps of a model as large as the quickstart's, so that every operation has something to share out.
fn wide() -> Memory {
    let (mut model, mut train) = (common::model(), common::train(3));
    (model.layers, model.width, model.heads, train.batch) = (3, 64, 4, 64);
    let (data, checkpoints) = (common::data(), common::checkpoints());
    let work = JobWork::Train { seed: 3, model, data, train, checkpoints, from: 0, to: 3 };
    let mut sink = Memory::default();
    execute(&work, &Inputs::default(), &Models::default(), &mut sink).unwrap();
    sink
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let runs = [1, 2, 3].map(|threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| (undisturbed(), wide()))
    });
    for run in &runs[1..] {
        assert_same(&runs[0].0, &run.0);
        assert_same(&runs[0].1, &run.1);
    }
}

#[test]
fn training_learns() {
    let sink = undisturbed();
    let (first, last) = (sink.losses[0].loss, sink.losses[5].loss);
    assert!(last < 0.9 * first, "{first} → {last}");
}

#[test]
fn divergence_is_reported_with_its_step_and_never_retried() {
    // The first rate leaves huge but finite losses, on which Adam would go on for ever; the second overflows.
    for (rate, says) in
        [(1e6, "the loss is over a million times that of predicting 0"), (1e30, "the loss is not finite")]
    {
        let mut train = common::train(1000);
        (train.optimizer.learning_rate, train.warmup, train.decay) = (rate, 0, Decay::None);
        let mut sink = Memory::default();
        let error = execute(&segment(&train, 0, 1000), &Inputs::default(), &Models::default(), &mut sink).unwrap_err();
        let ScienceError::Diverged { step, last_loss, .. } = error else { panic!("{error}") };
        let before = sink.progress.last().unwrap();
        assert_eq!((step, last_loss), (before.done + 1, before.loss));
        assert_eq!(error.retry(), Retry::Never);
        let message = error.to_string();
        let before = format!("loss before: {}", last_loss.unwrap());
        for part in [&format!("at step {step}"), says, &before, "learning_rate", "warmup", "clip_norm"] {
            assert!(message.contains(part), "{message}");
        }
        assert!(!sink.files.contains_key(&(1000, Purpose::Resume)));
    }
}

#[test]
fn a_state_that_does_not_belong_is_refused() {
    let folder = Folder::new();
    let whole = undisturbed();
    let mut half = Memory::default();
    run(0, 10, None, &mut half).unwrap();
    let refused = |from, to, bytes: &[u8], says: &str| {
        let path = folder.put("state", bytes);
        let error = run(from, to, Some(&path), &mut Memory::default()).unwrap_err();
        assert_eq!(error.retry(), Retry::Never);
        let message = error.to_string();
        assert!(message.contains(says) && message.contains(path.to_str().unwrap()), "{message}");
    };
    refused(0, STEPS, &whole.files[&(STEPS, Purpose::Resume)], "at step 20, outside the segment 0 to 20");
    refused(15, STEPS, &half.files[&(10, Purpose::Resume)], "at step 10, outside");
    refused(0, STEPS, &whole.files[&(5, Purpose::Weights)], "purpose is weights, wanted resume");
    let error = run(5, STEPS, None, &mut Memory::default()).unwrap_err();
    assert_eq!(error.to_string(), "the job was given no resume checkpoint to read");
}

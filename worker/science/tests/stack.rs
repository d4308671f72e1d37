//! Stacked is as alone: the bytes of a run do not depend on whom it shares a slot with, or on what becomes of them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use common::{Folder, Memory};
use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
};
use taskvec_model::{
    job::{CheckpointRef, JobWork, Progress, Purpose},
    metric::TrainLoss,
    spec::{Behaviour, DataSpec, Decay},
};
use taskvec_science::{
    Control, Executed, Inputs, Member, MemberSink, Models, ScienceError, Sink, WriteCheckpoint, execute, execute_stack,
};

const STEPS: u64 = 20;

/// What a member left behind, and when it ended among the others.
#[derive(Default)]
struct Seen {
    memory: Memory,
    how: Option<Result<Executed, ScienceError>>,
    place: usize,
}

#[derive(Clone)]
struct Watched {
    seen: Arc<Mutex<Seen>>,
    ends: Arc<Mutex<usize>>,
}

impl Sink for Watched {
    fn progress(&mut self, progress: Progress) -> Control {
        self.seen.lock().unwrap().memory.progress(progress)
    }

    fn checkpoint(
        &mut self,
        step: u64,
        purpose: Purpose,
        write: &mut WriteCheckpoint<'_>,
    ) -> Result<CheckpointRef, ScienceError> {
        self.seen.lock().unwrap().memory.checkpoint(step, purpose, write)
    }

    fn train_loss(&mut self, row: TrainLoss) {
        self.seen.lock().unwrap().memory.train_loss(row);
    }
}

impl MemberSink for Watched {
    fn ended(self: Box<Self>, how: Result<Executed, ScienceError>) {
        let mut seen = self.seen.lock().unwrap();
        let mut ends = self.ends.lock().unwrap();
        assert!(seen.how.replace(how).is_none(), "it ended twice");
        (seen.place, *ends) = (*ends, *ends + 1);
    }
}

/// The runs of a sweep over seeds, learning rates and what the data are like; they have one shape.
fn run(i: u64) -> JobWork {
    let (model, mut data, mut train) = (common::model(), common::data(), common::train(STEPS));
    train.optimizer.learning_rate = 1e-3 * (i + 1) as f64;
    (train.warmup, train.log_every) = (i, 3 + i);
    let DataSpec::SparseLinear(inner) = &mut data;
    (inner.noise_variance, inner.weight_mean) = (0.1 * i as f64, 1.0 - 0.3 * i as f64);
    JobWork::Train { seed: i, model, data, train, checkpoints: common::checkpoints(), from: 0, to: STEPS }
}

fn diverging() -> JobWork {
    let mut work = run(1);
    let JobWork::Train { train, .. } = &mut work else { unreachable!() };
    (train.optimizer.learning_rate, train.warmup, train.decay) = (1e30, 0, Decay::None);
    work
}

/// A job, the state that it is given, and after how many steps it is to stop.
type Given = (JobWork, Option<PathBuf>, Option<u64>);

fn stacked(jobs: Vec<Given>, threads: usize) -> Vec<Seen> {
    let ends = Arc::new(Mutex::new(0));
    let mut watched = Vec::new();
    let members = jobs.into_iter().map(|(work, resume, stop_at)| {
        let memory = Memory { stop_at, ..Memory::default() };
        let sink = Watched { seen: Arc::new(Mutex::new(Seen { memory, ..Seen::default() })), ends: ends.clone() };
        watched.push(sink.seen.clone());
        Member { work, inputs: Inputs { resume, weights: None }, sink: Box::new(sink) }
    });
    let members: Vec<Member> = members.collect();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| execute_stack(members, &Models::default()));
    watched.into_iter().map(|seen| std::mem::take(&mut *seen.lock().unwrap())).collect()
}

fn alone((work, resume, stop_at): Given) -> Seen {
    let mut memory = Memory { stop_at, ..Memory::default() };
    let inputs = Inputs { resume, weights: None };
    let how = execute(&work, &inputs, &Models::default(), &mut memory);
    Seen { memory, how: Some(how), place: 0 }
}

fn assert_same(what: &str, a: &Memory, b: &Memory) {
    assert_eq!(a.files.keys().collect::<Vec<_>>(), b.files.keys().collect::<Vec<_>>(), "{what}");
    for (key, bytes) in &a.files {
        assert!(bytes == &b.files[key], "{what}: {key:?} differs");
    }
    let rows =
        |m: &Memory| m.losses.iter().map(|r| (r.step, r.loss.to_bits(), r.learning_rate.to_bits())).collect::<Vec<_>>();
    assert_eq!(rows(a), rows(b), "{what}");
    let last = |m: &Memory| m.progress.last().map(|p| (p.done, p.total, p.loss));
    assert_eq!(last(a), last(b), "{what}");
}

fn finished(seen: &Seen) -> bool {
    matches!(&seen.how, Some(Ok(Executed::Finished(metrics))) if metrics.rows() == 0)
}

#[test]
fn every_run_writes_the_bytes_that_it_writes_alone() {
    let jobs = || (0..5).map(|i| (run(i), None, None)).collect::<Vec<Given>>();
    for threads in [1, 2, 3] {
        for (i, (seen, job)) in stacked(jobs(), threads).into_iter().zip(jobs()).enumerate() {
            assert!(finished(&seen), "run {i}: {:?}", seen.how);
            assert_same(&format!("run {i}, {threads} threads"), &seen.memory, &alone(job).memory);
            assert!(seen.memory.losses.iter().all(|row| row.sequences_per_second > 0.0));
        }
    }
}

#[test]
fn one_that_diverges_leaves_at_once_with_its_reason_and_touches_no_other() {
    let jobs = || vec![(run(0), None, None), (diverging(), None, None), (run(2), None, None)];
    let seen = stacked(jobs(), 2);
    assert_eq!(seen[1].place, 0, "it ends before the others do");
    let says = |seen: &Seen| seen.how.as_ref().unwrap().as_ref().unwrap_err().to_string();
    assert_eq!(says(&seen[1]), says(&alone(jobs().remove(1))));
    for i in [0, 2] {
        assert!(finished(&seen[i]));
        assert_same(&format!("run {i}"), &seen[i].memory, &alone(jobs().remove(i)).memory);
    }
}

#[test]
fn one_that_is_stopped_hands_over_and_goes_on_beside_others_that_are_elsewhere() {
    let folder = Folder::new();
    let jobs = || vec![(run(0), None, None), (run(1), None, Some(7)), (run(2), None, None)];
    let mut seen = stacked(jobs(), 2);
    assert_eq!(seen[1].place, 0);
    let Some(Ok(Executed::Stopped { at })) = &seen[1].how else { panic!("{:?}", seen[1].how) };
    assert!(at.purpose == Purpose::Resume && (7..STEPS).contains(&at.step), "{at:?}");
    let state = folder.put("handover", &seen[1].memory.files[&(at.step, Purpose::Resume)]);
    for i in [0, 2] {
        assert!(finished(&seen[i]));
        assert_same(&format!("run {i}"), &seen[i].memory, &alone((run(i as u64), None, None)).memory);
    }

    // The second half of run 1 beside the whole of run 3.
    let rest = stacked(vec![(run(3), None, None), (run(1), Some(state), None)], 2);
    assert!(finished(&rest[1]) && rest[1].place == 0, "it has fewer steps to go");
    assert_same("run 3", &rest[0].memory, &alone((run(3), None, None)).memory);
    let mut both = std::mem::take(&mut seen[1].memory);
    let Memory { files, losses, progress, .. } = &rest[1].memory;
    both.files.retain(|(_, purpose), _| *purpose == Purpose::Weights);
    both.files.extend(files.clone());
    both.losses.extend(losses.iter().cloned());
    both.progress.extend(progress.iter().cloned());
    assert_same("run 1 in two parts", &both, &alone((run(1), None, None)).memory);
}

#[test]
fn one_that_cannot_begin_fails_alone_and_other_work_has_its_turn() {
    let folder = Folder::new();
    let selftest = JobWork::Selftest { seed: 0, index: 0, behaviour: Behaviour::Succeed, millis: 1 };
    let broken = folder.put("broken", b"no checkpoint");
    let seen = stacked(vec![(run(0), Some(broken), None), (selftest, None, None), (run(1), None, None)], 2);
    assert!(matches!(&seen[0].how, Some(Err(ScienceError::BadCheckpoint { .. }))), "{:?}", seen[0].how);
    assert!(finished(&seen[1]) && finished(&seen[2]));
    assert_same("run 1", &seen[2].memory, &alone((run(1), None, None)).memory);
}

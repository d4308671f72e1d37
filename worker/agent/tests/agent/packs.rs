//! Several attempts in one slot.

use crate::{
    job::{attempt, finished, keep, loss, selftest, training, until_stopped},
    server::FakeServer,
    worker::{Worker, config},
};
use std::sync::{Arc, Mutex, mpsc};
use taskvec_agent::Execute;
use taskvec_model::job::{JobWork, Purpose};
use taskvec_science::{Executed, Inputs, Member, ScienceError, Sink};
use taskvec_wire::pb;
use tempfile::TempDir;

/// Computes packs as a test says.
struct Packs<F>(F);

impl<F: Fn(Vec<Member>) + Send + Sync + 'static> Execute for Packs<F> {
    fn execute(&self, _: &JobWork, _: &Inputs, _: &mut dyn Sink) -> Result<Executed, ScienceError> {
        unreachable!("all are packs here")
    }

    fn execute_stack(&self, members: Vec<Member>) {
        (self.0)(members);
    }
}

fn packs(f: impl Fn(Vec<Member>) + Send + Sync + 'static) -> Arc<dyn Execute> {
    Arc::new(Packs(f))
}

fn index(member: &Member) -> u32 {
    match &member.work {
        JobWork::Selftest { index, .. } => *index,
        other => panic!("not a selftest: {other:?}"),
    }
}

fn end(member: Member) {
    let how = finished(&member.work);
    member.sink.ended(how);
}

#[tokio::test]
async fn a_pack_computes_in_one_slot_and_each_member_is_reported_as_it_ends() {
    let mut server = FakeServer::start().await;
    let (go_on, goes_on) = mpsc::channel();
    let goes_on = Mutex::new(goes_on);
    let execute = packs(move |members| {
        assert_eq!(members.iter().map(index).collect::<Vec<_>>(), [1, 2, 3]);
        for (i, member) in members.into_iter().enumerate() {
            match i {
                0 => member.sink.ended(Err(ScienceError::Selftest(1))),
                _ => end(member),
            }
            // The next one ends only after the server has heard of this one.
            goes_on.lock().unwrap().recv().unwrap();
        }
    });
    let data = TempDir::new().unwrap();
    let mut worker = Worker::start(config(&server, &data), execute);
    assert_eq!(server.hello().await.stack, 1, "unless told otherwise");
    server.assign_pack((1..=3).map(|i| (attempt(i), selftest(i as u32))).collect()).await;
    let failed = server.failed().await;
    assert_eq!(failed.attempt, Some(attempt(1).into()));
    assert!(failed.log.contains("3 jobs in one slot"), "{}", failed.log);
    for i in [2, 3] {
        go_on.send(()).unwrap();
        assert_eq!(server.finished().await.attempt, Some(attempt(i).into()));
    }
    go_on.send(()).unwrap();
    for i in 1..=3 {
        server.accept(attempt(i)).await;
    }
    worker.leave();
    worker.result().await.unwrap();
}

#[tokio::test]
async fn members_are_stopped_and_handed_over_one_by_one() {
    let mut server = FakeServer::start().await;
    let (begun, begins) = mpsc::channel();
    let execute = packs(move |members| {
        std::thread::scope(|scope| {
            for mut member in members {
                let begun = begun.clone();
                scope.spawn(move || {
                    begun.send(()).unwrap();
                    until_stopped(&mut *member.sink);
                    member.sink.train_loss(loss(150));
                    let state = keep(&mut *member.sink, 150, Purpose::Resume, b"state");
                    member.sink.ended(state.map(|at| Executed::Stopped { at }));
                });
            }
        });
    });
    let data = TempDir::new().unwrap();
    let mut worker = Worker::start(config(&server, &data), execute);
    server.hello().await;
    server.assign_pack((1..=3).map(|i| (attempt(i), training(vec![]))).collect()).await;
    let begins = tokio::task::spawn_blocking(move || (0..3).for_each(|_| begins.recv().unwrap()));
    begins.await.unwrap();
    server.stop(attempt(2)).await;
    worker.leave();
    let mut handed_over = Vec::new();
    while handed_over.len() < 2 {
        match server.next().await {
            pb::worker_message::Message::Released(released) => {
                let handover = released.handover.expect("its state");
                assert_eq!(handover.state.expect("a checkpoint").step, 150);
                assert_eq!(handover.produced.expect("rows").metrics.expect("rows").train_loss.len(), 1);
                let of = released.attempt.expect("an attempt");
                handed_over.push(of.job_id);
                server.accept(of.into()).await;
            }
            pb::worker_message::Message::Draining(_) => {}
            other => panic!("{other:?}"),
        }
    }
    handed_over.sort_unstable();
    assert_eq!(handed_over, [1, 3], "nobody wants to hear of the one that was stopped");
    worker.result().await.unwrap();
}

#[tokio::test]
async fn a_panic_fails_those_that_have_not_ended() {
    let mut server = FakeServer::start().await;
    let execute = packs(|mut members| {
        let second = members.remove(1);
        end(second);
        panic!("odd {}", members.len());
    });
    let data = TempDir::new().unwrap();
    let mut worker = Worker::start(config(&server, &data), execute);
    server.hello().await;
    server.assign_pack((1..=3).map(|i| (attempt(i), selftest(i as u32))).collect()).await;
    let (mut done, mut failed) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        match server.next().await {
            pb::worker_message::Message::Finished(finished) => done.push(finished.attempt.unwrap().job_id),
            pb::worker_message::Message::Failed(pb::Failed { attempt, retry, reason, .. }) => {
                assert!(retry && reason.contains("panicked: odd 2"), "{reason}");
                failed.push(attempt.unwrap().job_id);
            }
            other => panic!("{other:?}"),
        }
    }
    failed.sort_unstable();
    assert_eq!((done, failed), (vec![2], vec![1, 3]));
    for i in 1..=3 {
        server.accept(attempt(i)).await;
    }
    worker.leave();
    worker.result().await.unwrap();
}

#[tokio::test]
async fn one_that_cannot_begin_is_not_waited_for() {
    let mut server = FakeServer::start().await;
    let execute = packs(|members| {
        assert_eq!(members.len(), 2);
        members.into_iter().for_each(end);
    });
    let data = TempDir::new().unwrap();
    let mut worker = Worker::start(config(&server, &data), execute);
    server.hello().await;
    let unreadable = pb::Start { attempt: Some(attempt(2).into()), work: "{}".into(), ..Default::default() };
    let start = |i: i64| taskvec_wire::start(attempt(i), selftest(i as u32)).unwrap();
    let starts = vec![start(1), unreadable, start(3)];
    server.send(pb::server_message::Message::Assign(pb::Assign { starts })).await;
    let mut ended = Vec::new();
    for _ in 0..3 {
        match server.next().await {
            pb::worker_message::Message::Finished(finished) => ended.push((finished.attempt.unwrap().job_id, true)),
            pb::worker_message::Message::Failed(failed) => ended.push((failed.attempt.unwrap().job_id, false)),
            other => panic!("{other:?}"),
        }
    }
    ended.sort_unstable();
    assert_eq!(ended, [(1, true), (2, false), (3, true)]);
    for i in 1..=3 {
        server.accept(attempt(i)).await;
    }
    worker.leave();
    worker.result().await.unwrap();
}

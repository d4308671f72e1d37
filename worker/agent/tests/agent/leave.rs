//! Leaving, politely and otherwise, and coming back.

use crate::{
    job::{attempt, baselines, finished, job, keep, loss, quick, selftest, training, until_stopped},
    server::{FakeServer, WORKER_ID},
    worker::{Worker, assert_clean, config, eventually, files, spooled},
};
use std::{
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    sync::{Arc, mpsc},
    time::Duration,
};
use taskvec_model::{
    id::AttemptRef,
    job::{Handover, Produced, Progress, Purpose},
    metric::Metrics,
};
use taskvec_science::{Control, Executed, ScienceError};
use taskvec_wire::pb::worker_message::Message;
use tempfile::tempdir;

async fn expect_draining(server: &mut FakeServer) {
    let message = server.next().await;
    assert!(matches!(message, Message::Draining(_)), "{message:?}");
}

async fn expect_leaving(server: &mut FakeServer) {
    let message = server.next().await;
    assert!(matches!(message, Message::Leaving(_)), "{message:?}");
}

#[tokio::test]
async fn training_is_handed_over_and_goes_on_elsewhere() {
    let (mut server, data) = (FakeServer::start().await, tempdir().unwrap());
    let (begun, begins) = mpsc::channel();
    let execute = job(move |_, _, sink| {
        sink.train_loss(loss(101));
        keep(sink, 150, Purpose::Weights, b"weights at 150")?;
        begun.send(()).unwrap();
        until_stopped(sink);
        let at = keep(sink, 160, Purpose::Resume, b"state at 160")?;
        Ok(Executed::Stopped { at })
    });
    let mut worker = Worker::start(config(&server, &data), execute);
    server.hello().await;
    let start = server.store(100, Purpose::Resume, b"state at 100");
    server.assign(attempt(1), training(vec![start])).await;
    tokio::task::spawn_blocking(move || begins.recv().unwrap()).await.unwrap();
    worker.leave();
    expect_draining(&mut server).await;
    let released = server.released().await;
    let handover = Handover::try_from(released.handover.unwrap()).unwrap();
    assert_eq!((handover.state.step, handover.state.purpose), (160, Purpose::Resume));
    assert_eq!(server.stored(&handover.state.blob).unwrap(), b"state at 160");
    assert_eq!(handover.produced.metrics.train_loss, [loss(101)]);
    let steps: Vec<u64> = handover.produced.checkpoints.iter().map(|c| c.step).collect();
    assert_eq!(steps, [150], "the state is no result");
    server.accept(attempt(1)).await;
    expect_leaving(&mut server).await;
    worker.result().await.unwrap();
    assert_clean(data.path());
    assert!(!data.path().join("identity.json").exists(), "nothing is left to reclaim");

    let elsewhere = tempdir().unwrap();
    let execute = job(|work, inputs, sink| {
        assert_eq!(std::fs::read(inputs.resume.as_ref().unwrap()).unwrap(), b"state at 160");
        sink.train_loss(loss(161));
        keep(sink, 200, Purpose::Resume, b"state at 200")?;
        finished(work)
    });
    let _other = Worker::start(config(&server, &elsewhere), execute);
    server.hello().await;
    let mut assignment = training(vec![start]);
    assignment.handover = Some(handover);
    let second = AttemptRef { number: 2, ..attempt(1) };
    server.assign(second, assignment).await;
    let produced = Produced::try_from(server.finished().await.produced.unwrap()).unwrap();
    assert_eq!(produced.metrics.train_loss, [loss(101), loss(161)]);
    assert_eq!(produced.checkpoints.iter().map(|c| c.step).collect::<Vec<_>>(), [150, 200]);
    assert_eq!(server.state().gets, 1 + 1, "the segment's own start is not fetched a second time");
}

#[tokio::test]
async fn an_analysis_finishes_before_the_worker_leaves() {
    let (mut server, data) = (FakeServer::start().await, tempdir().unwrap());
    let free = Arc::new(AtomicBool::new(false));
    let freed = free.clone();
    let execute = job(move |work, _, sink| {
        while !freed.load(SeqCst) {
            if sink.progress(Progress::default()) == Control::Stop {
                return Err(ScienceError::Stopped);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        finished(work)
    });
    let mut worker = Worker::start(config(&server, &data), execute);
    server.hello().await;
    server.assign(attempt(1), baselines(vec![])).await;
    while !matches!(server.any().await, Message::Heartbeat(b) if b.attempts.len() == 1) {}
    worker.leave();
    expect_draining(&mut server).await;
    // What crosses with Draining is given back, with what an earlier attempt had handed over.
    let state = server.store(150, Purpose::Resume, b"state");
    let handover = Handover { state, produced: Produced { metrics: Metrics::default(), checkpoints: vec![] } };
    let mut late = training(vec![]);
    late.handover = Some(handover.clone());
    server.assign(attempt(2), late).await;
    let released = server.released().await;
    assert_eq!(released.attempt, Some(attempt(2).into()));
    assert_eq!(Handover::try_from(released.handover.unwrap()), Ok(handover));
    free.store(true, SeqCst);
    server.finished().await;
    server.accept(attempt(1)).await;
    server.accept(attempt(2)).await;
    expect_leaving(&mut server).await;
    worker.result().await.unwrap();
}

#[tokio::test]
async fn what_outlasts_the_grace_is_given_back() {
    let (mut server, data) = (FakeServer::start().await, tempdir().unwrap());
    let mut hurried = config(&server, &data);
    hurried.drain_grace = Duration::from_millis(20);
    let execute = job(|_, _, sink| {
        until_stopped(sink);
        Err(ScienceError::Stopped)
    });
    let mut worker = Worker::start(hurried, execute);
    server.hello().await;
    server.assign(attempt(1), baselines(vec![])).await;
    while !matches!(server.any().await, Message::Heartbeat(b) if b.attempts.len() == 1) {}
    worker.leave();
    expect_draining(&mut server).await;
    assert_eq!(server.released().await.handover, None);
    server.accept(attempt(1)).await;
    expect_leaving(&mut server).await;
    worker.result().await.unwrap();
}

#[tokio::test]
async fn the_second_signal_does_not_wait_for_anything() {
    let (mut server, data) = (FakeServer::start().await, tempdir().unwrap());
    let (free, wait) = mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let execute = job(move |work, _, _| {
        // Deaf to requests.
        let _ = wait.lock().unwrap().recv();
        finished(work)
    });
    let mut worker = Worker::start(config(&server, &data), execute);
    server.hello().await;
    server.assign(attempt(1), training(vec![])).await;
    while !matches!(server.any().await, Message::Heartbeat(b) if b.attempts.len() == 1) {}
    worker.leave();
    expect_draining(&mut server).await;
    worker.leave_now();
    assert_eq!(server.released().await.handover, None);
    // Even without the server's answer it goes.
    expect_leaving(&mut server).await;
    worker.result().await.unwrap();
    assert_eq!(spooled(&data), 0, "the server drains this worker's identity, so nobody takes it over");
    assert!(!data.path().join("identity.json").exists());
    drop(free);
}

#[tokio::test]
async fn a_drained_worker_finishes_training_and_leaves() {
    let (mut server, data) = (FakeServer::start().await, tempdir().unwrap());
    let (free, wait) = mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let execute = job(move |work, _, sink| {
        wait.lock().unwrap().recv().unwrap();
        assert_eq!(sink.progress(Progress::default()), Control::Continue);
        finished(work)
    });
    let worker = Worker::start(config(&server, &data), execute);
    server.hello().await;
    server.assign(attempt(1), training(vec![])).await;
    server.drain().await;
    free.send(()).unwrap();
    server.finished().await;
    server.accept(attempt(1)).await;
    expect_leaving(&mut server).await;
    worker.result().await.unwrap();
}

#[tokio::test]
async fn a_restarted_worker_reclaims_what_its_predecessor_had_finished() {
    let (mut server, data) = (FakeServer::start().await, tempdir().unwrap());
    let worker = Worker::start(config(&server, &data), quick());
    let first = server.hello().await;
    server.assign(attempt(1), selftest(8)).await;
    server.finished().await;
    worker.kill().await;
    assert_eq!(spooled(&data), 1);

    let mut worker = Worker::start(config(&server, &data), job(|_, _, _| panic!("it is done already")));
    let hello = server.hello().await;
    assert_eq!((hello.worker_id, hello.nonce), (WORKER_ID, first.nonce));
    assert_eq!(hello.attempts, [attempt(1).into()]);
    let finished = server.finished().await;
    assert_eq!(finished.produced.unwrap().metrics.unwrap().td_bound[0].value, 8.0);
    server.accept(attempt(1)).await;
    eventually("the outcome is forgotten", || spooled(&data) == 0).await;
    worker.leave();
    worker.result().await.unwrap();
    assert_eq!(files(data.path().join("spool")), Vec::<String>::new());
}

#[tokio::test]
async fn what_a_worker_could_not_say_before_it_left_its_successor_says() {
    let (mut server, data) = (FakeServer::start().await, tempdir().unwrap());
    let (free, wait) = mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let execute = job(move |work, _, _| {
        wait.lock().unwrap().recv().unwrap();
        finished(work)
    });
    let mut worker = Worker::start(config(&server, &data), execute);
    let first = server.hello().await;
    server.assign(attempt(1), selftest(8)).await;
    while !matches!(server.any().await, Message::Heartbeat(b) if b.attempts.len() == 1) {}
    server.go_away();
    free.send(()).unwrap();
    eventually("the outcome is spooled", || spooled(&data) == 1).await;
    worker.leave_now();
    worker.result().await.unwrap();
    assert_eq!(spooled(&data), 1);

    let _successor = Worker::start(config(&server, &data), quick());
    server.come_back();
    let hello = server.hello().await;
    assert_eq!((hello.nonce, hello.attempts), (first.nonce, vec![attempt(1).into()]));
    server.finished().await;
}

#[tokio::test]
async fn the_spool_of_a_worker_that_is_gone_is_dropped() {
    let (mut server, data) = (FakeServer::start().await, tempdir().unwrap());
    std::fs::create_dir(data.path().join("spool")).unwrap();
    std::fs::write(data.path().join("spool/job-1-attempt-1"), "").unwrap();
    let _worker = Worker::start(config(&server, &data), quick());
    assert_eq!(server.hello().await.attempts, []);
    assert_eq!(spooled(&data), 0);
}

#[tokio::test]
async fn a_worker_leaves_even_without_a_server() {
    let (server, data) = (FakeServer::start().await, tempdir().unwrap());
    server.go_away();
    let mut worker = Worker::start(config(&server, &data), quick());
    eventually("the worker has begun", || data.path().join("spool").exists()).await;
    worker.leave();
    worker.result().await.unwrap();
}

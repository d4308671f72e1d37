//! The session: greeting, outcomes, the server's absence, stops.

use crate::{
    job::{self, attempt, finished, job, quick, selftest, until_stopped},
    server::{FakeServer, TOKEN, WORKER_ID},
    worker::{Worker, assert_clean, config, eventually, spooled},
};
use std::{
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    sync::{Arc, mpsc},
    time::Duration,
};
use taskvec_agent::{AgentError, Science, Secret};
use taskvec_model::{
    id::AttemptRef,
    job::{JobWork, Produced, Progress},
    spec::Behaviour,
};
use taskvec_science::ScienceError;
use taskvec_wire::pb::{self, server_message, worker_message::Message};
use tempfile::tempdir;
use tonic::Status;

fn of(attempt: Option<pb::Attempt>) -> AttemptRef {
    attempt.unwrap().into()
}

#[tokio::test]
async fn a_job_is_done_reported_and_forgotten() {
    let (mut server, data) = (FakeServer::start().await, tempdir().unwrap());
    let mut worker = Worker::start(config(&server, &data), quick());
    let hello = server.hello().await;
    assert_eq!((hello.worker_id, hello.name.as_str(), hello.slots, hello.threads_per_slot), (0, "w1", 1, 1));
    assert_eq!(
        (hello.devices, hello.version.as_str(), hello.pid),
        (vec!["cpu".to_owned()], taskvec_wire::VERSION, std::process::id())
    );
    assert!(hello.attempts.is_empty() && hello.nonce != 0 && !hello.host.is_empty());

    server.assign(attempt(1), selftest(5)).await;
    let told = server.finished().await;
    assert_eq!(of(told.attempt), attempt(1));
    let produced = Produced::try_from(told.produced.unwrap()).unwrap();
    assert_eq!((produced.metrics.rows(), produced.metrics.td_bound[0].value), (1, 5.0));
    for word in ["job 1 attempt 1", "selftest", "w1", "computing", "finished with 1 rows"] {
        assert!(told.log.contains(word), "{word} is not in {}", told.log);
    }
    assert_eq!(spooled(&data), 1, "kept until it is answered");
    server.accept(attempt(1)).await;
    eventually("the outcome is forgotten", || spooled(&data) == 0).await;

    worker.leave();
    assert!(matches!(server.next().await, Message::Draining(_)));
    assert!(matches!(server.next().await, Message::Leaving(_)));
    worker.result().await.unwrap();
    assert_clean(data.path());
}

#[tokio::test]
async fn heartbeats_tell_progress_and_its_rate() {
    let (mut server, data) = (FakeServer::start().await, tempdir().unwrap());
    let _worker = Worker::start(
        config(&server, &data),
        job(|_, _, sink| {
            sink.progress(Progress { done: 7, total: 10, per_second: 0.0, loss: Some(0.25) });
            until_stopped(sink);
            Err(ScienceError::Stopped)
        }),
    );
    server.hello().await;
    server.assign(attempt(3), selftest(0)).await;
    loop {
        let Message::Heartbeat(beat) = server.any().await else { panic!("only heartbeats are due") };
        let Some(told) = beat.attempts.first() else { continue };
        assert_eq!((beat.attempts.len(), of(told.attempt)), (1, attempt(3)));
        if told.done > 50 && told.total == 1_000_000 {
            assert!(told.per_second > 10.0 && told.per_second < 1001.0, "{}", told.per_second);
            break;
        }
    }
    server.stop(attempt(3)).await;
}

#[tokio::test]
async fn an_outcome_outlives_the_servers_absence_and_is_sent_once() {
    let (mut server, data) = (FakeServer::start().await, tempdir().unwrap());
    let (free, wait) = mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let execute = job(move |work, _, _| {
        wait.lock().unwrap().recv().unwrap();
        finished(work)
    });
    let _worker = Worker::start(config(&server, &data), execute);
    let first = server.hello().await;
    server.assign(attempt(1), selftest(1)).await;
    // Known to be there before the server goes.
    while !matches!(server.any().await, Message::Heartbeat(b) if b.attempts.len() == 1) {}
    server.go_away();
    free.send(()).unwrap();
    eventually("the outcome is spooled", || spooled(&data) == 1).await;
    server.come_back();
    let again = server.hello().await;
    assert_eq!((again.worker_id, again.nonce), (WORKER_ID, first.nonce));
    assert_eq!(again.attempts, [attempt(1).into()]);
    assert_eq!(of(server.finished().await.attempt), attempt(1));
    server.accept(attempt(1)).await;

    free.send(()).unwrap();
    server.assign(attempt(2), selftest(2)).await;
    assert_eq!(of(server.finished().await.attempt), attempt(2), "the first is not sent again");
}

#[tokio::test]
async fn a_running_job_goes_on_while_the_server_is_away() {
    let (mut server, data) = (FakeServer::start().await, tempdir().unwrap());
    let (begun, begins) = mpsc::channel();
    let free = Arc::new(AtomicBool::new(false));
    let freed = free.clone();
    let execute = job(move |work, _, _| {
        begun.send(()).unwrap();
        while !freed.load(SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        finished(work)
    });
    let _worker = Worker::start(config(&server, &data), execute);
    server.hello().await;
    server.assign(attempt(1), selftest(1)).await;
    tokio::task::spawn_blocking(move || begins.recv().unwrap()).await.unwrap();
    server.go_away();
    server.come_back();
    assert_eq!(server.hello().await.attempts, [attempt(1).into()], "it reattaches");
    free.store(true, SeqCst);
    server.finished().await;
}

#[tokio::test]
async fn a_stopped_attempt_is_thrown_away_in_silence_and_its_slot_is_free() {
    let (mut server, data) = (FakeServer::start().await, tempdir().unwrap());
    let execute = job(|work, _, sink| {
        if matches!(work, JobWork::Selftest { index: 1, .. }) {
            until_stopped(sink);
        }
        finished(work)
    });
    let _worker = Worker::start(config(&server, &data), execute);
    server.hello().await;
    server.assign(attempt(1), selftest(1)).await;
    server.stop(attempt(1)).await;
    server.assign(attempt(2), selftest(2)).await;
    assert_eq!(of(server.finished().await.attempt), attempt(2));
    assert_eq!(spooled(&data), 1);
    // A stop for an outcome that waits for its answer takes it back, too.
    server.stop(attempt(2)).await;
    eventually("the outcome is forgotten", || spooled(&data) == 0).await;
}

#[tokio::test]
async fn a_panic_fails_its_job_alone() {
    let (mut server, data) = (FakeServer::start().await, tempdir().unwrap());
    let line = line!() + 3;
    let execute = job(|work, _, _| {
        if matches!(work, JobWork::Selftest { index: 1, .. }) {
            panic!("poisoned");
        }
        finished(work)
    });
    let _worker = Worker::start(config(&server, &data), execute);
    server.hello().await;
    server.assign(attempt(1), selftest(1)).await;
    let failed = server.failed().await;
    assert_eq!((failed.retry, failed.reason), (true, format!("panicked: poisoned at {}:{line}", file!())));
    assert!(failed.log.contains("poisoned"), "{}", failed.log);
    server.accept(attempt(1)).await;
    server.assign(attempt(2), selftest(2)).await;
    server.finished().await;
}

#[tokio::test]
async fn a_failure_says_whether_another_try_may_help() {
    let (mut server, data) = (FakeServer::start().await, tempdir().unwrap());
    let execute = job(|work, _, _| match work {
        JobWork::Selftest { index: 1, .. } => Err(ScienceError::Diverged { step: 9, what: "loss", last_loss: None }),
        _ => Err(ScienceError::Selftest(2)),
    });
    let _worker = Worker::start(config(&server, &data), execute);
    server.hello().await;
    server.assign(attempt(1), selftest(1)).await;
    let diverged = server.failed().await;
    assert!(!diverged.retry && diverged.reason.contains("step 9"), "{}", diverged.reason);
    server.assign(attempt(2), selftest(2)).await;
    assert!(server.failed().await.retry);
    // What this worker cannot even read is an answer, too.
    let unreadable = pb::Start { attempt: Some(attempt(3).into()), work: "{}".into(), ..Default::default() };
    server.send(server_message::Message::Assign(pb::Assign { starts: vec![unreadable] })).await;
    let failed = server.failed().await;
    assert!(failed.reason.contains("malformed"), "{}", failed.reason);
}

#[tokio::test]
async fn a_wrong_token_or_version_ends_the_worker_with_the_reason() {
    let (server, data) = (FakeServer::start().await, tempdir().unwrap());
    let mut wrong = config(&server, &data);
    wrong.token = Secret::new("open-says-me");
    let error = Worker::start(wrong, quick()).result().await.unwrap_err();
    assert!(matches!(error, AgentError::Unauthorized { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("TASKVEC_TOKEN") && !text.contains("open-says-me") && !text.contains(TOKEN), "{text}");

    server.state().refuse_hello = Some(Status::failed_precondition("server 9.9.9, worker 0.1.0"));
    let error = Worker::start(config(&server, &data), quick()).result().await.unwrap_err();
    assert!(matches!(&error, AgentError::Refused { reason, .. } if reason.contains("9.9.9")), "{error:?}");
}

#[tokio::test]
async fn an_unreachable_server_is_waited_for_or_given_up_as_asked() {
    let (mut server, data) = (FakeServer::start().await, tempdir().unwrap());
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut hurried = config(&server, &data);
    hurried.server = format!("http://{closed}");
    hurried.fail_fast = Some(Duration::from_millis(30));
    let error = Worker::start(hurried, quick()).result().await.unwrap_err();
    assert!(matches!(&error, AgentError::Unreachable { reason, .. } if reason.contains("refused")), "{error:?}");

    server.go_away();
    let _patient = Worker::start(config(&server, &data), quick());
    eventually("the worker has begun", || data.path().join("spool").exists()).await;
    server.come_back();
    server.hello().await;
}

#[tokio::test]
async fn two_workers_do_not_share_a_data_folder() {
    let (mut server, data) = (FakeServer::start().await, tempdir().unwrap());
    let _first = Worker::start(config(&server, &data), quick());
    server.hello().await;
    let error = Worker::start(config(&server, &data), quick()).result().await.unwrap_err();
    assert!(matches!(error, AgentError::DataDirInUse(_)), "{error:?}");
}

#[tokio::test]
async fn slots_run_side_by_side() {
    let (mut server, data) = (FakeServer::start().await, tempdir().unwrap());
    let together = Arc::new(std::sync::Barrier::new(2));
    let mut two = config(&server, &data);
    (two.slots, two.threads) = (2, Some(2));
    let _worker = Worker::start(
        two,
        job(move |work, _, _| {
            together.wait();
            finished(work)
        }),
    );
    assert_eq!(server.hello().await.slots, 2);
    server.assign(attempt(1), selftest(1)).await;
    server.assign(attempt(2), job::selftest(2)).await;
    let mut done = [of(server.finished().await.attempt), of(server.finished().await.attempt)];
    done.sort_unstable();
    assert_eq!(done, [attempt(1), attempt(2)]);
}

#[tokio::test]
async fn the_production_worker_computes_with_the_science_crate() {
    let (mut server, data) = (FakeServer::start().await, tempdir().unwrap());
    let _worker = Worker::start(config(&server, &data), Arc::new(Science::default()));
    server.hello().await;
    let with = |behaviour| {
        let mut assignment = selftest(4);
        assignment.work = JobWork::Selftest { seed: 1, index: 4, behaviour, millis: 1 };
        assignment
    };
    server.assign(attempt(1), with(Behaviour::Succeed)).await;
    assert_eq!(of(server.finished().await.attempt), attempt(1));
    server.assign(attempt(2), with(Behaviour::Fail)).await;
    assert!(server.failed().await.reason.contains("behaviour: fail"));
    server.assign(attempt(3), with(Behaviour::Panic)).await;
    let panicked = server.failed().await.reason;
    assert!(panicked.starts_with("panicked: ") && panicked.contains(".rs:"), "{panicked}");
}

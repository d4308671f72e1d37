//! What dies comes back, and nothing is stored twice or lost.

use crate::common::{Client, Identity, Stack, Worker, attempts, eventually, kill, selftest, within};
use taskvec_model::id::AttemptRef;
use taskvec_server::data_dir::DataDir;
use taskvec_wire::pb::{self, control_sweep_request::Action, server_message::Message as FromServer};

#[tokio::test]
async fn a_worker_outlives_its_server_and_hands_in_exactly_once() {
    let mut stack = Stack::start().await;
    let client = stack.client().await;
    let sweep = client.submit(&selftest("restart", 2)).await.unwrap().sweep_id;
    let mut who = Identity::new("one", 1);
    let mut worker = Worker::connect(&client, &who).await.unwrap();
    who.id = worker.id;
    let running = worker.assigned().await;
    assert_eq!(DataDir::find_server(stack.folder()).unwrap().unwrap().address, stack.server().address());

    stack.stop().await;
    assert_eq!(DataDir::find_server(stack.folder()).unwrap(), None);
    let told = worker.next().await.unwrap_err();
    assert!(told.message().contains("reconnect"), "{told:?}");
    stack.start_again().await;

    let mut worker = Worker::reconnect_patiently(&client, &who, &[running]).await;
    assert_eq!(worker.id, who.id, "the same process is the same worker");
    worker.finish(running).await;
    assert!(worker.answer().await.accepted);
    let next = worker.assigned().await;
    // The answer might have been lost: it hands in again, and may forget.
    worker.finish(running).await;
    let answer = worker.answer().await;
    assert!(answer.accepted && answer.reason.contains("before"), "{answer:?}");

    stack.crash();
    while worker.next().await.is_ok() {}
    stack.start_again().await;
    let mut worker = Worker::reconnect_patiently(&client, &who, &[next]).await;
    worker.finish(next).await;
    assert!(worker.answer().await.accepted);
    assert_eq!(client.wait(sweep).await.state, "done");
    let attempts = client.sql("SELECT attempts FROM results.jobs").await.unwrap();
    assert_eq!(attempts, [serde_json::json!([1]), serde_json::json!([1])]);
    stack.stop().await;
}

#[tokio::test]
async fn what_comes_too_late_or_from_the_wrong_worker_is_refused() {
    let mut stack = Stack::start().await;
    let client = stack.client().await;
    let sweep = client.submit(&selftest("late", 1)).await.unwrap().sweep_id;
    let who = Identity::new("first", 1);
    let mut first = Worker::connect(&client, &who).await.unwrap();
    let lost = first.assigned().await;
    // It comes back as a process that forgot: the attempt is over.
    drop(first);
    let mut first = Worker::connect(&client, &who).await.unwrap();
    let second = Worker::connect(&client, &Identity::new("second", 1)).await.unwrap();
    let retried = first.assigned().await;
    assert_eq!((retried.job, retried.number), (lost.job, 2));

    first.finish(lost).await;
    let answer = first.answer().await;
    assert!(!answer.accepted && answer.reason.contains("attempt 2 is running"), "{answer:?}");
    let mut second = second;
    second.finish(retried).await;
    let answer = second.answer().await;
    assert!(!answer.accepted && answer.reason.contains("belongs to worker"), "{answer:?}");
    first.finish(retried).await;
    assert!(first.answer().await.accepted);
    assert_eq!(client.wait(sweep).await.state, "done");
    stack.stop().await;
}

#[tokio::test]
async fn a_killed_postmaster_is_survived() {
    let mut stack = Stack::start().await;
    let client = stack.client().await;
    let sweep = client.submit(&selftest("postgres", 5)).await.unwrap().sweep_id;
    let who = Identity::new("one", 1);
    let mut worker = Worker::connect(&client, &who).await.unwrap();
    let mut states = client.watch(sweep).await;
    let running = worker.assigned().await;

    let pid = stack.server().postgres().unwrap().pid();
    kill(pid);
    let mut work = tokio::spawn(persist(client.clone(), who, worker, running));
    loop {
        let state = tokio::select! {
            ended = &mut work => panic!("the worker ended: {ended:?}"),
            state = within(states.message()) => state.unwrap(),
        };
        if state.expect("watching goes on until the sweep has ended").state == "done" {
            break;
        }
    }
    work.abort();
    let jobs = client.sql("SELECT state, count(*) FROM results.jobs GROUP BY state").await.unwrap();
    assert_eq!(jobs, [serde_json::json!(["done", 5])]);
    let first = client.sql(&format!("SELECT attempts FROM results.jobs WHERE job_id = {}", running.job)).await.unwrap();
    assert_eq!(first, [serde_json::json!([1])], "the worker held its lease all the time");
    eventually(|| stack.server().postgres().unwrap().pid() != pid).await;
    stack.stop().await;
}

/// Works as workers do: keeps an outcome until it is answered, and reconnects with it.
async fn persist(client: Client, who: Identity, mut worker: Worker, first: AttemptRef) {
    let mut held = Some(first);
    worker.finish(first).await;
    loop {
        match worker.next().await {
            Ok(FromServer::Assign(assign)) => {
                let attempt = attempts(assign)[0];
                held = Some(attempt);
                worker.finish(attempt).await;
            }
            Ok(FromServer::Answer(answer)) => {
                if answer.attempt.map(AttemptRef::from) == held {
                    held = None;
                }
            }
            // What it held was stored, and the answer was lost with the session.
            Ok(FromServer::Stop(_)) => {}
            Ok(other) => panic!("unexpected: {other:?}"),
            Err(_) => {
                worker = Worker::reconnect_patiently(&client, &who, held.as_slice()).await;
                if let Some(attempt) = held {
                    worker.finish(attempt).await;
                }
            }
        }
    }
}

#[tokio::test]
async fn a_result_that_cannot_be_stored_fails_alone() {
    let mut stack = Stack::start().await;
    let client = stack.client().await;
    let sweep = client.submit(&selftest("poison", 2)).await.unwrap().sweep_id;
    let mut worker = Worker::connect(&client, &Identity::new("one", 2)).await.unwrap();
    let (poisoned, healthy) = (worker.assigned().await, worker.assigned().await);
    let row = |step| pb::TrainLoss { step, loss: f64::NAN, learning_rate: 0.1, sequences_per_second: 1.0 };
    let metrics = pb::Metrics { train_loss: vec![row(1), row(1)], ..Default::default() };
    worker.finish_with(poisoned, pb::Produced { metrics: Some(metrics), checkpoints: Vec::new() }).await;
    worker.finish(healthy).await;
    for _ in 0..2 {
        assert!(worker.answer().await.accepted);
    }
    let status = client.wait(sweep).await;
    assert_eq!((status.state.as_str(), status.jobs[3], status.jobs[4]), ("failed", 1, 1));
    let error = client.sql(&format!("SELECT error FROM results.jobs WHERE job_id = {}", poisoned.job)).await.unwrap();
    assert!(error[0][0].as_str().unwrap().contains("train_loss"), "{error:?}");
    stack.stop().await;
}

#[tokio::test]
async fn a_second_stack_on_the_same_folder_is_refused() {
    let mut stack = Stack::start().await;
    let config = taskvec_server::ServerConfig::new(taskvec_server::Database::Embedded(stack.folder().to_owned()));
    let refused = taskvec_server::start(config).await.err().unwrap().to_string();
    assert!(refused.contains(&format!("in use by process {}", std::process::id())), "{refused}");

    let url = stack.server().database_url().clone();
    let mut config = taskvec_server::ServerConfig::new(taskvec_server::Database::Url(url));
    config.token = Some(taskvec_server::Secret::random().unwrap());
    let refused = taskvec_server::start(config).await.err().unwrap().to_string();
    assert!(refused.contains("another server leads"), "{refused}");
    // The first one never noticed.
    let client = stack.client().await;
    let sweep = client.submit(&selftest("still", 1)).await.unwrap().sweep_id;
    client.control(sweep, Action::Cancel(pb::Empty {})).await.unwrap();
    stack.stop().await;
}

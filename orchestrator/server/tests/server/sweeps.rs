//! Sweeps through a real server and a real PostgreSQL.

use crate::common::{Client, Identity, Stack, Worker, selftest, within};
use taskvec_server::Secret;
use taskvec_wire::pb::{self, control_sweep_request::Action, server_message::Message as FromServer};
use tonic::Code;

const NOTHING: pb::Empty = pb::Empty {};

#[tokio::test]
async fn a_sweep_is_computed_once_and_found_again() {
    let mut stack = Stack::start().await;
    let client = stack.client().await;
    let yaml = selftest("twice", 3);
    let first = client.submit(&yaml).await.unwrap();
    assert_eq!((first.runs, first.jobs, first.cached), (1, 3, 0));

    let mut worker = Worker::connect(&client, &Identity::new("one", 1)).await.unwrap();
    for _ in 0..3 {
        let attempt = worker.assigned().await;
        assert_eq!(attempt.number, 1);
        worker.heartbeat(attempt, 5).await;
        worker.finish(attempt).await;
        let answer = worker.answer().await;
        assert!(answer.accepted, "{}", answer.reason);
    }
    let status = client.wait(first.sweep_id).await;
    assert_eq!((status.state.as_str(), status.jobs[3]), ("done", 3));
    let counted = client.sql("SELECT count(*) FROM results.jobs WHERE state = 'done' AND attempts = 1").await.unwrap();
    assert_eq!(counted, [serde_json::json!([3])]);

    let planned =
        client.sweeps.clone().plan(pb::PlanRequest { yaml: yaml.clone(), file: String::new() }).await.unwrap();
    assert_eq!(planned.into_inner().cached, [true; 3]);
    let again = client.submit(&yaml).await.unwrap();
    assert_eq!((again.jobs, again.cached), (3, 3));
    assert_eq!(client.wait(again.sweep_id).await.state, "done");
    stack.stop().await;
}

#[tokio::test]
async fn a_submission_sent_again_makes_no_second_sweep() {
    let mut stack = Stack::start().await;
    let yaml = selftest("once", 3);
    let first = stack.client().await.submit_as(&yaml, &[7; 16]).await.unwrap();
    stack.stop().await;
    stack.start_again().await;
    let client = stack.client().await;
    assert_eq!(client.submit_as(&yaml, &[7; 16]).await.unwrap(), first);
    assert_eq!(client.submit_as(&yaml, &[8; 16]).await.unwrap().sweep_id, first.sweep_id + 1);
    assert_eq!(client.sql("SELECT count(*) FROM results.sweeps").await.unwrap(), [serde_json::json!([2])]);
    let refused = client.submit_as(&yaml, &[7; 3]).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    stack.stop().await;
}

#[tokio::test]
async fn requests_that_make_no_sense_are_refused_with_what_to_do() {
    let mut stack = Stack::start().await;
    let client = stack.client().await;
    let address = stack.server().address();

    let stranger = Client::connect(address, &Secret::new("guess")).await;
    let refused = stranger.submit(&selftest("x", 1)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().contains("TASKVEC_TOKEN"), "{}", refused.message());
    assert_eq!(
        Worker::connect(&stranger, &Identity::new("w", 1)).await.map(|w| w.id).unwrap_err().code(),
        Code::Unauthenticated
    );

    let faulty = "version: 1\nname: x\nkind: selftest\nselftest: { jobs: 0, milis: 3 }\n";
    let faults = client.submit(faulty).await.unwrap_err();
    assert_eq!(faults.code(), Code::InvalidArgument);
    assert_eq!(faults.message().lines().count(), 2, "{}", faults.message());
    assert!(faults.message().starts_with("test.yaml:4:"), "{}", faults.message());

    let unknown = client.control(99, Action::Pause(NOTHING)).await.unwrap_err();
    assert_eq!((unknown.code(), unknown.message()), (Code::NotFound, "there is no sweep 99"));
    assert_eq!(client.explain(99).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(client.sweeps.clone().watch(pb::SweepRequest { sweep_id: 9 }).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(client.sweeps.clone().retry_job(pb::JobRequest { job_id: 9 }).await.unwrap_err().code(), Code::NotFound);
    let drained = client.admin.clone().drain_worker(pb::WorkerRequest { worker_id: 9 }).await.unwrap_err();
    assert_eq!(drained.code(), Code::NotFound);
    let listed = client.list(pb::ListRequest { listing: "sweps".into(), ..Default::default() }).await.unwrap_err();
    assert!(listed.message().contains("sweeps, runs, jobs"), "{}", listed.message());

    let old = Identity { version: "0.0.1", ..Identity::new("old", 1) };
    let refused = Worker::connect(&client, &old).await.map(|w| w.id).unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("version 0.0.1"), "{}", refused.message());
    stack.stop().await;
}

#[tokio::test]
async fn failures_are_tried_again_then_told_and_can_be_retried_by_hand() {
    let mut stack = Stack::start().await;
    let client = stack.client().await;
    let sweep = client.submit(&selftest("fails", 2)).await.unwrap().sweep_id;
    let mut worker = Worker::connect(&client, &Identity::new("one", 1)).await.unwrap();
    let broken = worker.assigned().await;
    let explained = client.explain(broken.job.0).await.unwrap();
    assert!(explained.contains("worker 1"), "{explained}");

    // Never again: it has failed, and the sweep goes on.
    worker.fail(broken, false).await;
    assert!(worker.answer().await.accepted);
    let other = worker.assigned().await;
    assert_ne!(other.job, broken.job);
    // Three tries.
    for number in 1..=3 {
        let attempt = if number == 1 { other } else { worker.assigned().await };
        assert_eq!(attempt.number, number);
        worker.fail(attempt, true).await;
        assert!(worker.answer().await.accepted);
    }
    let status = client.wait(sweep).await;
    assert_eq!((status.state.as_str(), status.jobs[4]), ("failed", 2));
    let errors = client.sql("SELECT error FROM results.jobs ORDER BY job_id").await.unwrap();
    assert!(errors.iter().all(|row| row[0].as_str().unwrap().contains("it broke")), "{errors:?}");
    let explained = client.explain(broken.job.0).await.unwrap();
    assert!(explained.contains("failed"), "{explained}");

    client.sweeps.clone().retry_job(pb::JobRequest { job_id: broken.job.0 }).await.unwrap();
    let retried = worker.assigned().await;
    assert_eq!((retried.job, retried.number), (broken.job, 2));
    worker.finish(retried).await;
    assert!(worker.answer().await.accepted);
    client.wait(sweep).await;
    client.control(sweep, Action::Retry(NOTHING)).await.unwrap();
    let retried = worker.assigned().await;
    assert_eq!((retried.job, retried.number), (other.job, 4));
    worker.finish(retried).await;
    assert!(worker.answer().await.accepted);
    assert_eq!(client.wait(sweep).await.state, "done");

    let logs = pb::ListRequest { listing: "job_logs".into(), job_id: broken.job.0, ..Default::default() };
    let (columns, rows) = client.list(logs).await.unwrap();
    let log = columns.iter().position(|c| c == "log").unwrap();
    assert_eq!(rows.iter().map(|row| row[log].as_str().unwrap()).collect::<Vec<_>>(), ["oh no\n", "fine\n"]);
    stack.stop().await;
}

#[tokio::test]
async fn sweeps_are_paused_resumed_cancelled_and_workers_drained() {
    let mut stack = Stack::start().await;
    let client = stack.client().await;
    let sweep = client.submit(&selftest("steered", 3)).await.unwrap().sweep_id;
    client.control(sweep, Action::Pause(NOTHING)).await.unwrap();
    client.control(sweep, Action::Priority(7)).await.unwrap();
    let mut worker = Worker::connect(&client, &Identity::new("one", 1)).await.unwrap();
    assert!(client.explain(1).await.unwrap().contains("paused"));
    assert_eq!(client.until(sweep, |status| status.state == "paused").await.jobs[1], 3);
    client.control(sweep, Action::Resume(NOTHING)).await.unwrap();
    let running = worker.assigned().await;

    // A heartbeat reaches whoever watches.
    let mut states = client.watch(sweep).await;
    assert_eq!(within(states.message()).await.unwrap().unwrap().jobs[2], 1);
    worker.heartbeat(running, 3).await;

    client.control(sweep, Action::Cancel(NOTHING)).await.unwrap();
    match worker.next().await.unwrap() {
        FromServer::Stop(stop) => assert!(stop.reason.contains("cancelled"), "{}", stop.reason),
        other => panic!("not stopped: {other:?}"),
    }
    // It was already done.
    worker.finish(running).await;
    assert!(!worker.answer().await.accepted);
    let status = client.wait(sweep).await;
    assert_eq!((status.state.as_str(), status.jobs[6]), ("cancelled", 3));
    let late = client.control(sweep, Action::Pause(NOTHING)).await.unwrap_err();
    assert_eq!(late.code(), Code::FailedPrecondition);
    assert!(late.message().contains("has ended (cancelled)"), "{}", late.message());

    client.admin.clone().drain_worker(pb::WorkerRequest { worker_id: worker.id }).await.unwrap();
    assert!(matches!(worker.next().await.unwrap(), FromServer::Drain(_)));
    client.control(sweep, Action::Retry(NOTHING)).await.unwrap();
    let explained = client.explain(running.job.0).await.unwrap();
    assert!(explained.contains("drain"), "{explained}");
    worker.say(pb::worker_message::Message::Leaving(NOTHING)).await;
    assert_eq!(worker.next().await.unwrap_err().code(), Code::Aborted);
    assert_eq!(client.admin.clone().health(NOTHING).await.unwrap().into_inner().workers, 0);
    stack.stop().await;
}

/// `models/tiny`, and whatever else this server sees, is in `proto/sweep/tests/common/files.rs`.
fn evaluate(model: &str) -> String {
    format!(
        "version: 1\nname: words\nkind: evaluate\nmodel: {model}\ndata: {{ family: bitwise, shots: [1, 4] }}\n\
         analyses: [{{ kind: icl }}, {{ kind: td }}, {{ kind: interventions, shots: [4] }}]\n"
    )
}

#[tokio::test]
async fn pretrained_models_are_those_that_the_server_sees() {
    let mut stack = Stack::start().await;
    let client = stack.client().await;
    let refused = client.submit(&evaluate("{ path: models/none }")).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(
        refused.message(),
        "test.yaml:4:16: `model.path`: there is no folder or file models/none; place it there"
    );

    let first = client.submit(&evaluate("{ path: models/tiny }")).await.unwrap();
    assert_eq!((first.runs, first.jobs, first.cached), (1, 3, 0));
    let mut worker = Worker::connect(&client, &Identity::new("one", 1)).await.unwrap();
    for _ in 0..3 {
        let attempt = worker.assigned().await;
        worker.finish(attempt).await;
        assert!(worker.answer().await.accepted);
    }
    client.wait(first.sweep_id).await;
    let elsewhere = client.submit(&evaluate("{ path: models/copy }")).await.unwrap();
    assert_eq!((elsewhere.jobs, elsewhere.cached), (3, 3), "the same files in another place");

    let revisions = client.submit(&evaluate("{ path: models/steps, revision: step* }")).await.unwrap();
    assert_eq!((revisions.runs, revisions.jobs), (3, 9));
    let rows = "SELECT r.params, min(step), max(step), r.spec->'model'->'identity'->>'arch' FROM results.runs r \
                JOIN results.jobs USING (run_id) WHERE r.sweep_id = 3 GROUP BY 1, 4 ORDER BY 2";
    let row = |step: u64| serde_json::json!([{ "model.revision": format!("step{step}") }, step, step, "olmo"]);
    assert_eq!(client.sql(rows).await.unwrap(), [0, 1000, 20_000].map(row));
    stack.stop().await;
}

//! Several runs in one slot, through a real server and a real PostgreSQL.

use crate::common::{Identity, Stack, Worker};
use taskvec_model::id::AttemptRef;
use taskvec_wire::pb::{control_sweep_request::Action, server_message::Message as FromServer};

/// Runs of one shape: one segment of training each, and nothing else.
fn seeds(name: &str, seeds: &str) -> String {
    format!(
        "version: 1\nname: {name}\nkind: pretrain\nmodel: {{ arch: gpt2, layers: 1, width: 16, heads: 2 }}\n\
         data: {{ family: sparse_linear, dim: 4, bases: 2, rank: 2, examples: 4 }}\n\
         train: {{ steps: 20, batch: 8 }}\ncheckpoints: {{ schedule: linear, count: 2, resume_every: 20 }}\n\
         analyses: []\ngrid: {{ seed: {seeds} }}\n"
    )
}

fn stacking(name: &'static str, stack: u32) -> Identity {
    Identity { stack, ..Identity::new(name, 1) }
}

#[tokio::test]
async fn a_pack_is_assigned_and_explained_and_keeps_its_one_slot_through_a_restart() {
    let mut stack = Stack::start().await;
    let client = stack.client().await;
    let sweep = client.submit(&seeds("five", "[0, 1, 2, 3, 4]")).await.unwrap().sweep_id;
    let mut who = stacking("one", 3);
    let mut worker = Worker::connect(&client, &who).await.unwrap();
    let pack = worker.assigned_pack().await;
    assert_eq!(pack.len(), 3);
    let listed: Vec<i64> = pack.iter().map(|a| a.job.0).collect();
    let text = client.explain(listed[1]).await.unwrap();
    assert!(text.ends_with(&format!("in one slot with jobs {}, {}", listed[0], listed[2])), "{text}");

    stack.stop().await;
    stack.start_again().await;
    let client = stack.client().await;
    who.id = worker.id;
    let mut worker = Worker::reconnect_patiently(&client, &who, &pack).await;
    // If the server thought that two slots were taken or none, the answer would not come first.
    worker.finish(pack[0]).await;
    assert!(worker.answer().await.accepted);
    worker.fail(pack[2], false).await;
    assert!(worker.answer().await.accepted);
    worker.finish(pack[1]).await;
    assert!(worker.answer().await.accepted);
    let rest = worker.assigned_pack().await;
    assert_eq!(rest.len(), 2, "the slot was free after the last of the three");
    for attempt in rest {
        worker.finish(attempt).await;
        assert!(worker.answer().await.accepted);
    }
    let status = client.wait(sweep).await;
    assert_eq!((status.state.as_str(), status.jobs[3], status.jobs[4]), ("failed", 4, 1));
    let why = client.sql("SELECT job_id, error FROM results.jobs WHERE state = 'failed'").await.unwrap();
    assert_eq!((why.len(), &why[0][0]), (1, &serde_json::json!(pack[2].job.0)));
    assert!(why[0][1].as_str().unwrap().contains("it broke"), "{why:?}");
    stack.stop().await;
}

#[tokio::test]
async fn a_cancelled_sweep_takes_its_runs_out_of_a_pack() {
    let mut stack = Stack::start().await;
    let client = stack.client().await;
    let first = client.submit(&seeds("first", "[0]")).await.unwrap().sweep_id;
    let second = client.submit(&seeds("second", "[1]")).await.unwrap().sweep_id;
    let mut worker = Worker::connect(&client, &stacking("one", 8)).await.unwrap();
    let pack = worker.assigned_pack().await;
    assert_eq!(pack.len(), 2);
    client.control(first, Action::Cancel(taskvec_wire::pb::Empty {})).await.unwrap();
    match worker.next().await.unwrap() {
        FromServer::Stop(stop) => assert_eq!(stop.attempt.map(AttemptRef::from), Some(pack[0])),
        other => panic!("not a stop: {other:?}"),
    }
    worker.finish(pack[1]).await;
    assert!(worker.answer().await.accepted);
    assert_eq!(client.wait(first).await.state, "cancelled");
    assert_eq!(client.wait(second).await.state, "done");
    stack.stop().await;
}

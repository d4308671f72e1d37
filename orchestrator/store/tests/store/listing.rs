//! Listings.

use crate::fixture::*;
use serde_json::{Value, json};
use taskvec_model::id::{JobId, RunId, SweepId};
use taskvec_model::job::Purpose;
use taskvec_store::{ListQuery, Listing};

/// Columns of a listing's rows, by name.
async fn list(db: &Db, query: ListQuery, columns: &[&str]) -> Vec<Value> {
    let table = db.store.list(&query).await.expect("lists");
    let at = |name: &str| table.columns.iter().position(|c| c == name).unwrap_or_else(|| panic!("no column {name}"));
    table.rows.iter().map(|row| columns.iter().map(|c| row[at(c)].clone()).collect()).collect()
}

#[tokio::test]
async fn listings_show_and_filter() {
    let db = db().await;
    let mut leader = db.lead().await;
    leader.submit(&plan(vec![idle(1), idle(2)]), "", 0, None).await.expect("submits");
    leader.submit(&plan(vec![idle(3)]), "", 0, None).await.expect("submits");
    let blob = db.upload("weights").await;
    finish(&db, &mut leader, 2, outcome(metrics(1.0), vec![checkpoint(10, Purpose::Weights, blob)])).await;
    let all = ListQuery::all;

    let sweeps = list(&db, all(Listing::Sweeps), &["sweep_id", "name", "state", "finished_at"]).await;
    assert_eq!(sweeps, [json!([2, "small", "active", null]), json!([1, "small", "active", null])]);
    let newest = ListQuery { limit: 1, ..all(Listing::Sweeps) };
    assert_eq!(list(&db, newest, &["sweep_id"]).await, [json!([2])]);
    let runs = list(&db, all(Listing::Runs), &["run_id", "state", "seed", "params"]).await;
    assert_eq!(runs, [json!([1, "running", 3, { "seed": 3 }]), json!([2, "waiting", 3, { "seed": 3 }])]);
    let waiting = ListQuery { state: Some("waiting".into()), ..all(Listing::Runs) };
    assert_eq!(list(&db, waiting, &["run_id"]).await, [json!([2])]);
    let jobs = ListQuery { sweep: Some(SweepId(1)), ..all(Listing::Jobs) };
    let columns = ["job_id", "state", "attempts", "worker", "error"];
    let done = json!([2, "done", 1, "w99", null]);
    assert_eq!(list(&db, jobs.clone(), &columns).await, [json!([1, "ready", 0, null, null]), done.clone()]);
    assert_eq!(list(&db, ListQuery { state: Some("done".into()), ..jobs }, &columns).await, [done]);
    let workers =
        list(&db, all(Listing::Workers), &["name", "host", "state", "devices", "slots", "stack", "running"]).await;
    assert_eq!(workers, [json!(["w99", "lab", "connected", ["cpu"], 2, 4, 0])]);
    let of_run = ListQuery { run: Some(RunId(1)), ..all(Listing::Checkpoints) };
    let shown = list(&db, of_run, &["checkpoint_id", "step", "bytes", "digest", "purpose"]).await;
    assert_eq!(shown, [json!([1, 10, 7, blob.digest.to_string(), "weights"])]);
    assert!(list(&db, ListQuery { sweep: Some(SweepId(2)), ..all(Listing::Checkpoints) }, &["step"]).await.is_empty());
    let attempts = list(&db, all(Listing::Attempts), &["job_id", "number", "state", "worker", "reason"]).await;
    assert_eq!(attempts, [json!([2, 1, "succeeded", "w99", null])]);
    let logs = ListQuery { job: Some(JobId(2)), ..all(Listing::JobLogs) };
    assert_eq!(list(&db, logs, &["number", "log"]).await, [json!([1, "worked\n"])]);
}

#[test]
fn names_round_trip() {
    for listing in Listing::ALL {
        assert_eq!(listing.as_str().parse(), Ok(listing));
    }
    assert!("task".parse::<Listing>().is_err());
}

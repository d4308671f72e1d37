//! The views' columns are a promise, and each explains itself.

use crate::fixture::*;
use std::collections::BTreeMap;

/// What users rely on; columns that were added stand after `|`.
const PROMISED: &[(&str, &str)] = &[
    ("baselines", "run_id latent_task position estimator mse"),
    ("checkpoints", "checkpoint_id run_id step bytes digest created_at | purpose"),
    ("icl", "run_id step latent_task shots position metric value stderr n"),
    (
        "interventions",
        "run_id step layer site positions mode source_task target_task metric baseline patched replicate n | shots",
    ),
    ("jobs", "job_id run_id sweep_id kind step state attempts worker started_at finished_at error | cached worker_id"),
    ("lens", "run_id step layer latent_task shots accuracy log_prob rank n"),
    ("runs", "run_id sweep_id kind state seed params spec"),
    ("sweeps", "sweep_id name state submitted_at finished_at spec | priority"),
    ("td", "run_id step layer site latent_task shots k n value stderr"),
    ("td_bound", "run_id latent_task shots value"),
    ("td_pairs", "run_id step layer site latent_task_a latent_task_b shots value"),
    ("td_vs_icl", "run_id step layer site latent_task shots td metric icl | k"),
    ("td_vs_icl_fit", "run_id step layer site metric slope intercept r2 n | k"),
    ("train_loss", "run_id step loss learning_rate sequences_per_second"),
];

#[tokio::test]
async fn views_have_the_promised_columns_and_every_one_is_explained() {
    let db = db().await;
    let columns: Vec<(String, String, Option<String>)> = db
        .rows(
            "SELECT c.relname::text, a.attname::text, col_description(c.oid, a.attnum)
             FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
             WHERE c.relnamespace = 'results'::regnamespace AND a.attnum > 0 ORDER BY c.relname, a.attnum",
        )
        .await;
    let mut found: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (view, column, comment) in &columns {
        found.entry(view).or_default().push(column);
        assert!(comment.as_ref().is_some_and(|c| c.ends_with('.')), "results.{view}.{column}: {comment:?}");
    }
    let promised: Vec<(&str, Vec<&str>)> =
        PROMISED.iter().map(|(v, c)| (*v, c.split_whitespace().filter(|c| *c != "|").collect())).collect();
    assert_eq!(found.into_iter().collect::<Vec<_>>(), promised);
    let unexplained: i64 = db
        .one(
            "SELECT count(*) FROM pg_class c WHERE relnamespace = 'results'::regnamespace
             AND (relkind <> 'v' OR obj_description(oid) IS NULL)",
        )
        .await;
    assert_eq!(unexplained, 0);
}

#[tokio::test]
async fn task_decodability_stands_beside_icl_of_the_same_checkpoint() {
    let db = db().await;
    let mut leader = db.lead().await;
    leader.submit(&pretrain(), "", 0, None).await.expect("submits");
    finish(&db, &mut leader, 2, outcome(metrics(9.0), vec![])).await;
    leader.commit(&[ready(4), ready(5), ready(7)], &BTreeMap::new()).await.expect("commits");
    finish(&db, &mut leader, 4, outcome(metrics(0.25), vec![])).await;
    finish(&db, &mut leader, 5, outcome(metrics(0.75), vec![])).await;
    // TD at step 20 without ICL there: no row.
    finish(&db, &mut leader, 7, outcome(metrics(0.5), vec![])).await;
    let rows: Vec<(i64, i64, i32, String, f64, String, f64)> =
        db.rows("SELECT run_id, step, layer, latent_task, td, metric, icl FROM results.td_vs_icl").await;
    assert_eq!(rows, [(1, 10, 2, "B1".into(), 0.75, "mse".into(), 0.25)]);
    let loss: Vec<(i64, i64, f64)> = db.rows("SELECT run_id, step, loss FROM results.train_loss").await;
    assert_eq!(loss, [(1, 10, 9.0)]);
}

#[tokio::test]
async fn the_state_of_a_run_follows_from_its_jobs() {
    let db = db().await;
    let mut leader = db.lead().await;
    leader.submit(&plan(vec![idle(1), idle(2)]), "", 0, None).await.expect("submits");
    for (states, run) in [
        (["waiting", "ready"], "waiting"),
        (["failed", "ready"], "running"),
        (["waiting", "skipped"], "running"),
        (["failed", "skipped"], "failed"),
        (["cancelled", "cancelled"], "cancelled"),
        (["cancelled", "skipped"], "cancelled"),
        (["cancelled", "failed"], "failed"),
    ] {
        let set = |i: usize| taskvec_model::schedule::Change::SetJobs {
            jobs: vec![taskvec_model::id::JobId(i as i64 + 1)],
            state: states[i].parse().expect("a state"),
            reason: None,
        };
        leader.commit(&[set(0), set(1)], &BTreeMap::new()).await.expect("commits");
        assert_eq!(db.one::<String>("SELECT state FROM results.runs").await, run, "{states:?}");
    }
    leader.commit(&[ready(1), ready(2)], &BTreeMap::new()).await.expect("commits");
    finish(&db, &mut leader, 1, Default::default()).await;
    finish(&db, &mut leader, 2, Default::default()).await;
    assert_eq!(db.one::<String>("SELECT state FROM results.runs").await, "done");
}

#[tokio::test]
async fn every_query_of_the_users_guide_is_answered() {
    let db = db().await;
    let guide = include_str!("../../../../docs/users.md");
    let blocks = guide.split("```sql\n").skip(1).filter_map(|rest| rest.split("```").next());
    let mut asked = 0;
    for block in blocks {
        for query in block.split(';').map(str::trim).filter(|q| !q.is_empty()) {
            sqlx::raw_sql(sqlx::AssertSqlSafe(query.to_owned()))
                .fetch_all(&mut db.sql().await)
                .await
                .unwrap_or_else(|e| panic!("{query}: {e}"));
            asked += 1;
        }
    }
    assert!(asked >= 10, "only {asked} queries found");
}

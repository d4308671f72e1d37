//! The reader: what it may ask, how answers look, and that it can change nothing.

use crate::fixture::*;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use taskvec_store::{Reader, SqlError, StoreError};

const PASSWORD: &str = "it's a \"secret\"/%";

/// The role is the whole cluster's: one test at a time sets it up.
async fn reader(db: &Db) -> (Reader, String) {
    static ROLE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _one = ROLE.lock().await;
    let url = db.store.ensure_reader(PASSWORD).await.expect("sets up the role");
    db.store.ensure_reader(PASSWORD).await.expect("may be repeated");
    (Reader::connect(&url, 2).await.expect("connects"), url)
}

async fn all(reader: &Reader, query: &str) -> Result<(Vec<String>, Vec<Value>), StoreError> {
    let mut rows = reader.sql(query).await?;
    let columns = rows.columns().to_vec();
    let mut out = Vec::new();
    while let Some(part) = rows.next().await? {
        out.extend(part.iter().map(|row| serde_json::from_str::<Value>(row).expect("JSON")));
    }
    Ok((columns, out))
}

async fn refused(reader: &Reader, query: &str) -> SqlError {
    match all(reader, query).await {
        Err(StoreError::Sql(error)) => error,
        other => panic!("{query}: {other:?}"),
    }
}

#[tokio::test]
async fn values_of_any_type_come_as_json_in_order() {
    let db = db().await;
    let (reader, _) = reader(&db).await;
    let (columns, rows) = all(
        &reader,
        "SELECT 1 AS a, 2.50::numeric AS a, NULL, 'é\"' AS text, true AS b, '{\"x\": [1]}'::jsonb AS j,
             ARRAY[1, NULL] AS l, 'NaN'::float8 AS nan, 0.1::float8 AS f, timestamptz '2024-01-02 03:04:05Z' AS t,
             '\\xff'::bytea AS bytes, ROW(1, 'z') AS r, interval '1 h' AS i, 9007199254740993 AS big;  -- that is all",
    )
    .await
    .expect("answers");
    assert_eq!(columns, ["a", "a", "?column?", "text", "b", "j", "l", "nan", "f", "t", "bytes", "r", "i", "big"]);
    let row = json!([
        1, 2.5, null, "é\"", true, { "x": [1] }, [1, null], "NaN", 0.1, "2024-01-02T03:04:05+00:00", "\\xff",
        { "f1": 1, "f2": "z" }, "01:00:00", 9007199254740993i64
    ]);
    assert_eq!(rows, [row]);
}

#[tokio::test]
async fn queries_of_every_form_and_length_are_answered() {
    let db = db().await;
    let mut leader = db.lead().await;
    leader.submit(&pretrain(), "", 0, None).await.expect("submits");
    let (reader, _) = reader(&db).await;
    for (query, rows) in [
        ("SELECT count(*) FROM results.jobs", vec![json!([7])]),
        ("TABLE results.td_bound", vec![]),
        ("TABLE results.td_pairs", vec![]),
        ("TABLE results.interventions", vec![]),
        ("TABLE results.lens", vec![]),
        ("TABLE results.td_vs_icl_fit", vec![]),
        ("VALUES (1, 'a'), (2, 'b') ;", vec![json!([1, "a"]), json!([2, "b"])]),
        ("WITH t AS (SELECT 3 AS x) SELECT x FROM t -- comment", vec![json!([3])]),
        ("SELECT n FROM generate_series(3, 1, -1) AS n ORDER BY n DESC LIMIT 2", vec![json!([3]), json!([2])]),
        ("/* a */ SELECT ';' /* ; */ ;;", vec![json!([";"])]),
    ] {
        assert_eq!(all(&reader, query).await.expect(query).1, rows, "{query}");
    }
    let (_, many) =
        all(&reader, "SELECT n, repeat('x', n % 500) FROM generate_series(1, 30000) AS n").await.expect("answers");
    assert!(many.iter().zip(1..).all(|(row, n)| row[0] == n) && many.len() == 30_000);
    let wide: Vec<String> = (0..300).map(|i| format!("{i} AS c{i}")).collect();
    let (columns, rows) = all(&reader, &format!("SELECT {}", wide.join(", "))).await.expect("more than 100 columns");
    assert_eq!((columns.len(), &rows[0][299]), (300, &json!(299)));
}

#[tokio::test]
async fn an_answer_may_be_left_unread() {
    let db = db().await;
    let (reader, _) = reader(&db).await;
    for _ in 0..5 {
        let mut rows = reader.sql("SELECT repeat('x', 1000) FROM generate_series(1, 10000000)").await.expect("starts");
        let part = rows.next().await.expect("answers").expect("rows");
        assert!(part.len() < 100);
        let second: usize = rows.next().await.expect("answers").expect("rows").iter().map(String::len).sum();
        assert!((100_000..1_000_000).contains(&second), "{second} bytes at once");
    }
    assert_eq!(all(&reader, "SELECT 1").await.expect("the connections are free again").1, [json!([1])]);
}

#[tokio::test]
async fn errors_are_in_terms_of_the_users_own_text() {
    let db = db().await;
    let (reader, _) = reader(&db).await;
    let error = refused(&reader, "SELECT lss FROM results.train_loss").await;
    assert_eq!((error.message.as_str(), error.position), ("column \"lss\" does not exist", Some(8)));
    assert_eq!(error.hint.as_deref(), Some("Perhaps you meant to reference the column \"train_loss.loss\"."));
    assert_eq!(error.code.as_deref(), Some("42703"));
    let error = refused(&reader, "SELECT 1 / (n - 40) FROM generate_series(1, 50) AS n").await;
    assert_eq!(error.message, "division by zero");
    assert_eq!(refused(&reader, "SELEC 1").await.position, Some(1));
    assert!(refused(&reader, "").await.message.starts_with("only queries can be run here"));
    assert!(refused(&reader, "SELECT $1::int").await.message.starts_with("queries take no parameters"));
}

#[tokio::test]
async fn nothing_but_one_query_is_run() {
    let db = db().await;
    let (reader, _) = reader(&db).await;
    for statement in [
        "SELECT 1; SELECT 2",
        "SELECT 1) AS q(c1); DELETE FROM taskvec.jobs; --",
        "SELECT 1; COMMIT; DROP SCHEMA results CASCADE",
        "INSERT INTO taskvec.sweeps DEFAULT VALUES",
        "INSERT INTO results.sweeps (name) VALUES ('x') RETURNING name",
        "UPDATE results.sweeps SET name = 'x'",
        "WITH gone AS (DELETE FROM results.sweeps RETURNING 1) SELECT * FROM gone",
        "SELECT 1 INTO results.x",
        "CREATE TEMP TABLE x (a int)",
        "CREATE TABLE public.x (a int)",
        "DROP VIEW results.td",
        "TRUNCATE taskvec.jobs",
        "COPY (SELECT 1) TO PROGRAM 'touch /tmp/taskvec-was-here'",
        "COPY results.sweeps TO '/tmp/taskvec-was-here'",
        "SET ROLE taskvec",
        "SET SESSION AUTHORIZATION taskvec",
        "RESET ROLE",
        "COMMIT",
        "EXPLAIN ANALYZE SELECT 1",
        "SHOW all",
        "DO $$ BEGIN DELETE FROM taskvec.jobs; END $$",
        "CALL x()",
        "LISTEN x",
        "NOTIFY x",
        "LOCK TABLE results.sweeps",
        "VACUUM",
    ] {
        refused(&reader, statement).await;
    }
}

#[tokio::test]
async fn functions_with_effects_and_the_tables_are_closed() {
    let db = db().await;
    let (reader, _) = reader(&db).await;
    for query in [
        "SELECT * FROM taskvec.jobs",
        "SELECT * FROM taskvec.td_pairs",
        "SELECT * FROM taskvec.interventions",
        "SELECT * FROM taskvec.lens",
        "SELECT * FROM taskvec._sqlx_migrations",
        "SELECT nextval('taskvec.results_result_id_seq')",
        "SELECT setval('taskvec.results_result_id_seq', 9)",
        "SELECT lo_create(0)",
        "SELECT lo_from_bytea(0, 'x')",
        "SELECT lo_unlink(1)",
        "SELECT pg_advisory_lock(1)",
        "SELECT pg_try_advisory_lock(32758245650490723)",
        "SELECT pg_try_advisory_xact_lock_shared(1, 2)",
        "SELECT pg_notify('a', 'b')",
        "SELECT pg_logical_emit_message(true, 'a', 'b')",
        "SELECT pg_terminate_backend(pg_backend_pid())",
        "SELECT pg_read_file('/etc/passwd')",
        "SELECT pg_ls_dir('.')",
        "SELECT lo_get(1)",
        "SELECT pg_reload_conf()",
        "SELECT pg_switch_wal()",
        "SELECT set_config('transaction_read_only', 'off', true)",
        "SELECT set_config('role', 'taskvec', false)",
        "SELECT * FROM results.sweeps FOR UPDATE",
        "SELECT rolpassword FROM pg_authid",
        "SELECT query_to_xml('DELETE FROM taskvec.jobs', true, true, '')",
    ] {
        let error = refused(&reader, query).await;
        let code = error.code.clone().unwrap_or_default();
        // Not allowed, or not in a read-only transaction; not by accident of some other error.
        assert!(["42501", "25006", "25001"].contains(&code.as_str()), "{query}: {code} {error}");
    }
}

#[tokio::test]
async fn the_role_itself_cannot_write_in_any_kind_of_transaction() {
    let db = db().await;
    let (_, url) = reader(&db).await;
    let mut psql = PgConnection::connect(&url).await.expect("as psql would");
    let run = |sql: &'static str| sqlx::raw_sql(sql);
    let error = run("CREATE TEMP TABLE x (a int)").execute(&mut psql).await.expect_err("read-only by default");
    assert!(error.to_string().contains("read-only transaction"), "{error}");
    run("SET default_transaction_read_only = off").execute(&mut psql).await.expect("anyone may");
    for statement in [
        "CREATE TEMP TABLE x (a int)",
        "CREATE TABLE public.x (a int)",
        "CREATE TABLE results.x (a int)",
        "CREATE SCHEMA x",
        "INSERT INTO results.sweeps (sweep_id, name, state, submitted_at, spec, priority) VALUES (1, '', 'done', now(), '{}', 0)",
        "UPDATE results.sweeps SET name = 'x'",
        "DELETE FROM results.sweeps",
        "DELETE FROM taskvec.jobs",
        "TRUNCATE taskvec.jobs",
        "SELECT nextval('taskvec.results_result_id_seq')",
        "SELECT lo_create(0)",
        "SELECT lo_creat(-1)",
        "SELECT pg_advisory_lock(1)",
        "COPY (SELECT 1) TO PROGRAM 'true'",
        "SET ROLE taskvec",
        "ALTER ROLE taskvec_reader SUPERUSER",
        "CREATE ROLE x",
        "GRANT taskvec TO taskvec_reader",
        "DROP VIEW results.td",
        "ALTER VIEW results.td RENAME TO x",
    ] {
        let error = run(statement).execute(&mut psql).await.expect_err(statement);
        let code = error.as_database_error().and_then(|e| e.code()).unwrap_or_default().into_owned();
        assert_eq!(code, "42501", "{statement}: {error}");
    }
    let wrong = url.replace("it%27s", "wrong");
    assert!(PgConnection::connect(&wrong).await.is_err(), "the password counts");
}

#[tokio::test]
async fn what_one_query_sets_does_not_reach_the_next() {
    let db = db().await;
    let (_, url) = reader(&db).await;
    let reader = Reader::connect(&url, 1).await.expect("connects");
    for setting in ["statement_timeout", "search_path", "default_transaction_read_only"] {
        let value = if setting.ends_with("only") { "off" } else { "0" };
        all(&reader, &format!("SELECT set_config('{setting}', '{value}', false)")).await.expect("allowed");
        let (_, rows) = all(&reader, &format!("SELECT current_setting('{setting}')")).await.expect("asks");
        assert_ne!(rows[0][0], value, "{setting}");
    }
}

#[tokio::test]
async fn an_owner_who_may_not_create_roles_is_told_what_to_do() {
    let db = db().await;
    let mut admin = db.sql().await;
    for statement in [
        "DROP ROLE IF EXISTS plain",
        "CREATE ROLE plain LOGIN PASSWORD 'plain'",
        "GRANT CREATE ON SCHEMA public TO plain",
    ] {
        sqlx::raw_sql(statement).execute(&mut admin).await.expect(statement);
    }
    let url = db.url.replace(&format!("{}:{}", crate::postgres::OWNER, crate::postgres::PASSWORD), "plain:plain");
    let plain = taskvec_store::Store::connect(&url, 1).await.expect("connects");
    let error = plain.ensure_reader("x").await.expect_err("it may not");
    assert!(matches!(error, StoreError::ReaderRole(_)), "{error}");
    assert!(error.to_string().contains("CREATEROLE"), "{error}");
}

#[tokio::test]
async fn an_owner_with_createrole_suffices() {
    let db = db().await;
    // The role must not exist yet for its owner to be its maker, so it gets a cluster-wide name of its own here.
    let mut admin = db.sql().await;
    sqlx::raw_sql("CREATE ROLE maker LOGIN CREATEROLE CREATEDB PASSWORD 'maker'")
        .execute(&mut admin)
        .await
        .expect("creates");
    sqlx::raw_sql("CREATE DATABASE made OWNER maker").execute(&mut admin).await.expect("creates");
    let made = |url: &str| {
        let (head, _) = url.rsplit_once('/').expect("a database");
        format!("{head}/made")
            .replace(&format!("{}:{}", crate::postgres::OWNER, crate::postgres::PASSWORD), "maker:maker")
    };
    let store = taskvec_store::Store::connect(&made(&db.url), 2).await.expect("connects");
    store.migrate().await.expect("migrates");
    let (_, _) = reader(&db).await;
    let url = store.ensure_reader(PASSWORD).await;
    // From PostgreSQL 16 on, CREATEROLE alone does not reach a role that someone else made.
    let version: i32 = db.one("SELECT current_setting('server_version_num')::integer").await;
    if version < 160_000 {
        let reader = Reader::connect(&url.expect("sets up"), 1).await.expect("connects");
        assert_eq!(all(&reader, "SELECT count(*) FROM results.jobs").await.expect("reads").1, [json!([0])]);
        assert_eq!(refused(&reader, "SELECT * FROM taskvec.jobs").await.code.as_deref(), Some("42501"));
    } else {
        assert!(matches!(url, Err(StoreError::ReaderRole(_))));
    }
}

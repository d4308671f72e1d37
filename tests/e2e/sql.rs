//! `taskvec sql` reads and can do nothing else, whatever it is given.

use crate::support::{Stack, sweep_file};
use serde_json::json;

#[test]
fn sql_reads_results_and_cannot_write() {
    let stack = Stack::start(1);
    stack.submit(&sweep_file("panic.yaml"));
    stack.wait();
    for query in [
        "DELETE FROM results.runs",
        "DELETE FROM taskvec.runs",
        "UPDATE taskvec.sweeps SET name = 'x'",
        "INSERT INTO taskvec.runs DEFAULT VALUES",
        "WITH gone AS (DELETE FROM taskvec.runs RETURNING *) SELECT * FROM gone",
        "SELECT * FROM taskvec.runs",
        "CREATE TABLE public.t (a int)",
        "CREATE TEMP TABLE t (a int)",
        "DROP VIEW results.runs",
        "TRUNCATE taskvec.runs",
        "COPY results.runs TO PROGRAM 'cat'",
        "COPY results.runs TO '/tmp/taskvec-must-not-exist'",
        "SELECT lo_create(0)",
        "SELECT nextval('taskvec.runs_run_id_seq')",
        "SELECT pg_advisory_lock(1)",
        "SELECT set_config('default_transaction_read_only', 'off', false), * FROM taskvec.runs",
        "SELECT pg_read_file('/etc/passwd')",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename <> 'taskvec_reader'",
        "SET ROLE postgres",
        "SELECT 1; DELETE FROM taskvec.runs",
        "SELECT 1) AS q(a); DELETE FROM taskvec.runs; --",
        "",
    ] {
        let ran = stack.client(&["sql", query]);
        let harmless = query.contains("pg_terminate_backend") && !ran.stdout.contains("true");
        assert!(ran.code == 2 || harmless, "`{query}` ended with {}:\n{}{}", ran.code, ran.stdout, ran.stderr);
    }
    assert_eq!(stack.one("SELECT count(*) FROM results.runs"), json!(2));
    assert_eq!(stack.one("SELECT 1 AS a, 2 AS a -- a comment"), json!(2), "a query of two columns of one name");
}

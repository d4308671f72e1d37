//! `taskvec local`: one command from nothing, and again without computing anything.

use crate::support::{Ran, folder, sweep_file, taskvec};
use std::path::Path;

fn local(data: &Path, sweep: &Path) -> Ran {
    let mut command = taskvec();
    command.arg("local").arg(sweep).args(["--workers", "2", "--data"]).arg(data);
    command.output().expect("it runs").into()
}

fn on_folder(data: &Path, args: &[&str]) -> Ran {
    taskvec().args(args).arg("--data").arg(data).output().expect("it runs").into()
}

#[test]
fn a_sweep_runs_from_nothing_and_the_second_time_computes_nothing() {
    let dir = folder();
    let data = dir.path().join("data");
    let first = local(&data, &sweep_file("tiny.yaml"));
    let report = first.ok();
    for expected in ["TD", "ridge", "oracle", "emergence.svg", "sql --url"] {
        assert!(report.contains(expected), "`{expected}` is not in:\n{report}");
    }
    assert!(!data.join("server.json").exists(), "the server said goodbye");

    let jobs = "SELECT count(*) AS n, sum(attempts) AS attempts FROM results.jobs";
    let before = on_folder(&data, &["sql", "-o", "json", jobs]).ok();
    let again = local(&data, &sweep_file("tiny.yaml")).ok();
    assert!(again.contains("nothing was computed"), "{again}");
    let sums = "SELECT sum(attempts) AS attempts, count(*) FILTER (WHERE state <> 'done') AS open FROM results.jobs";
    let after = on_folder(&data, &["sql", "-o", "json", sums]).ok();
    let field = |text: &str, name: &str| {
        let rows: serde_json::Value = serde_json::from_str(text).expect("JSON");
        rows[0][name].clone()
    };
    assert_eq!(field(&before, "attempts"), field(&after, "attempts"), "no new attempt");
    assert_eq!(field(&after, "open"), 0);
    assert!(dir.path().join("data/report").exists(), "the report is in the data folder");
}

#[test]
fn a_sweep_that_fails_ends_with_exit_code_one() {
    let dir = folder();
    let ran = local(&dir.path().join("data"), &sweep_file("panic.yaml"));
    assert_eq!(ran.code, 1, "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stderr.contains("failed"), "{}", ran.stderr);
}

//! Every file in `tests/bad` is refused, with exactly the messages in the `.expected` file beside it. Those whose names
//! begin with `seen-` are planned where models and data can be looked at (`tests/common/files.rs`).
//!
//! `UPDATE_EXPECTED=1 cargo test -p taskvec-sweep --test bad` writes what the code says now; read the difference.

#[path = "common/files.rs"]
mod files;

use files::Told;
use std::{fs, path::Path};
use taskvec_sweep::{Limits, plan, plan_with};

#[test]
fn bad_files_are_refused_with_complete_messages() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bad");
    let update = std::env::var_os("UPDATE_EXPECTED").is_some();
    let mut wrong = Vec::new();
    let mut count = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "yaml") {
            continue;
        }
        count += 1;
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let (text, limits) = (fs::read_to_string(&path).unwrap(), Limits::default());
        let planned = match name.starts_with("seen-") {
            true => plan_with(&text, &name, &limits, &Told),
            false => plan(&text, &name, &limits),
        };
        let got = match planned {
            Ok(_) => "accepted\n".to_owned(),
            Err(faults) => format!("{faults}\n"),
        };
        let expected = path.with_extension("expected");
        if update {
            fs::write(&expected, &got).unwrap();
        }
        let want = fs::read_to_string(&expected).unwrap_or_default();
        if got != want || got == "accepted\n" {
            wrong.push(format!("--- {name}, expected\n{want}--- got\n{got}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count >= 160, "only {count} bad files found in {}", folder.display());
}

#[test]
fn faults_come_in_the_order_of_the_file() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bad/everything.yaml")).unwrap();
    let faults = plan(&text, "everything.yaml", &Limits::default()).unwrap_err();
    let places: Vec<_> = faults.iter().map(|f| f.at).collect();
    assert!(places.len() > 10 && places.is_sorted(), "{places:?}");
}

#[test]
fn limits_are_the_callers() {
    let yaml = "version: 1\nname: s\nkind: selftest\nselftest: { jobs: 5 }\ngrid: { seed: [1, 2, 3] }\n";
    let refused = |limits: Limits| plan(yaml, "s.yaml", &limits).unwrap_err().to_string();
    let limits = Limits::default;
    assert_eq!(refused(Limits { runs: 2, ..limits() }), "s.yaml:5:9: the grid has 3 runs; a sweep may have 2");
    assert_eq!(
        refused(Limits { jobs: 14, ..limits() }),
        "s.yaml:1:1: the sweep has 15 jobs; a sweep may have 14: use fewer runs or checkpoints, or a larger `resume_every`"
    );
    assert_eq!(refused(Limits { file_bytes: 9, ..limits() }), "s.yaml:1:1: the file has 82 bytes; the limit is 9");
    assert_eq!(refused(Limits { depth: 1, ..limits() }), "s.yaml:4:11: nested more than 1 levels deep");
    assert!(plan(yaml, "s.yaml", &Limits { runs: 3, jobs: 15, file_bytes: 82, depth: 3, ..limits() }).is_ok());
}

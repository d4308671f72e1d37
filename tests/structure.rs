//! The rules of the house, read off `cargo metadata`: which room may use which, and where the heavy crates live.

use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
};

/// Workspace crate → workspace crates that it may use.
const ROOMS: [(&str, &[&str]); 11] = [
    ("taskvec-model", &[]),
    ("taskvec-kernels", &[]),
    ("taskvec-sweep", &["taskvec-model"]),
    ("taskvec-wire", &["taskvec-model"]),
    ("taskvec-sched", &["taskvec-model"]),
    ("taskvec-store", &["taskvec-model"]),
    ("taskvec-science", &["taskvec-model", "taskvec-kernels"]),
    ("taskvec-hub", &["taskvec-model"]),
    ("taskvec-agent", &["taskvec-hub", "taskvec-model", "taskvec-science", "taskvec-wire"]),
    ("taskvec-server", &["taskvec-model", "taskvec-sched", "taskvec-store", "taskvec-sweep", "taskvec-wire"]),
    (
        "taskvec",
        &[
            "taskvec-agent",
            "taskvec-hub",
            "taskvec-model",
            "taskvec-science",
            "taskvec-server",
            "taskvec-sweep",
            "taskvec-wire",
        ],
    ),
];

/// Outside crate → workspace crates that may use it.
const OUTSIDE: [(&str, &[&str]); 7] = [
    ("sqlx", &["taskvec-store"]),
    ("tonic", &["taskvec-wire", "taskvec-server", "taskvec-agent", "taskvec"]),
    ("tokio", &["taskvec-store", "taskvec-server", "taskvec-agent", "taskvec"]),
    ("candle-core", &["taskvec-kernels", "taskvec-science"]),
    ("cudarc", &["taskvec-kernels"]),
    ("ureq", &["taskvec-hub"]),
    ("hf-hub", &["taskvec-hub"]),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Normal and build dependencies of every workspace crate.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo metadata runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let metadata: Value = serde_json::from_slice(&out.stdout).expect("cargo metadata is JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let name = |v: &Value| v["name"].as_str().expect("a name").to_owned();
    packages
        .iter()
        .map(|p| {
            let normal = p["dependencies"].as_array().expect("dependencies").iter().filter(|d| d["kind"] != "dev");
            (name(p), normal.map(name).collect())
        })
        .collect()
}

#[test]
fn rooms_import_only_whom_they_may() {
    let found = dependencies();
    let known: BTreeMap<&str, &[&str]> = ROOMS.into_iter().collect();
    for (room, uses) in &found {
        let allowed = known.get(room.as_str()).unwrap_or_else(|| panic!("{room} has no rule: add it to ROOMS"));
        for used in uses.iter().filter(|u| found.contains_key(*u)) {
            assert!(allowed.contains(&used.as_str()), "{room} must not use {used}");
        }
    }
}

#[test]
fn heavy_crates_stay_in_their_rooms() {
    let found = dependencies();
    for (outside, allowed) in OUTSIDE {
        for (room, uses) in &found {
            assert!(!uses.contains(outside) || allowed.contains(&room.as_str()), "{room} must not use {outside}");
        }
    }
}

/// Every Rust file of the workspace, with its text.
fn sources(dir: &Path, out: &mut Vec<(PathBuf, String)>) {
    for entry in std::fs::read_dir(dir).expect("readable") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            sources(&path, out);
        } else if name.ends_with(".rs") {
            out.push((path.clone(), std::fs::read_to_string(&path).expect("text")));
        }
    }
}

#[test]
fn unsafe_code_and_silent_gradients_stay_out() {
    let mut files = Vec::new();
    sources(&root(), &mut files);
    assert!(files.len() > 50, "the walk found only {} files", files.len());
    let here = root().join("tests/structure.rs");
    // candle's fused layers have no backward and say nothing: parameters under them would silently not train.
    let silent = ["softmax_last_dim", "ops::layer_norm", "ops::rms_norm", "rotary_emb::rope("];
    for (path, text) in files.iter().filter(|(p, _)| *p != here) {
        let kernels = path.starts_with(root().join("worker/kernels"));
        for (number, line) in text.lines().enumerate().filter(|(_, l)| !l.trim_start().starts_with("//")) {
            let at = || format!("{}:{}", path.display(), number + 1);
            let is_unsafe = ["unsafe {", "unsafe fn", "unsafe impl"].iter().any(|u| line.contains(u));
            assert!(kernels || !is_unsafe, "{}: unsafe outside worker/kernels", at());
            for op in silent {
                assert!(!line.contains(op), "{}: candle's `{op}` loses gradients silently", at());
            }
        }
    }
}

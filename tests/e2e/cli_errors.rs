//! What the program says when it is used wrongly: complete messages, kept in one snapshot.

use crate::support::{Ran, Stack, folder, sweep_file, taskvec};
use std::{fmt::Write, path::Path};

const BAD_SWEEP: &str = "\
version: 1
name: bad
kind: pretrain
model: { arch: gpt2, layers: 2, widht: 16, heads: 3 }
data: { family: sparse_linear, dim: 4, bases: 4, rank: 2 }
train: { steps: -5, batch: sixteen }
grid: { seed: [], train.stepz: [1] }
";

/// Everything that differs from machine to machine, under fixed names.
fn normalised(text: &str, dir: &Path) -> String {
    let text = text.replace(&dir.display().to_string(), "DIR");
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

fn record(out: &mut String, shown: &str, ran: &Ran, dir: &Path) {
    let stderr = normalised(&ran.stderr, dir);
    let stdout = normalised(&ran.stdout, dir);
    writeln!(out, "$ taskvec {shown}\n[exit {}]", ran.code).expect("writes");
    for text in [stdout, stderr].iter().filter(|t| !t.is_empty()) {
        writeln!(out, "{text}").expect("writes");
    }
    out.push('\n');
}

#[test]
fn wrong_usage_without_a_server() {
    let dir = folder();
    let bad = dir.path().join("bad.yaml");
    std::fs::write(&bad, BAD_SWEEP).expect("writes");
    let bad = bad.display().to_string();
    let nowhere = dir.path().join("nowhere").display().to_string();
    let mut out = String::new();
    let cases: &[&[&str]] = &[
        &["swep", "list"],
        &["sweep", "status"],
        &["sweep", "status", "abc"],
        &["sweep", "list", "-o", "xml"],
        &["local", "missing.yaml"],
        &["local", &bad],
        &["sweep", "plan", &bad],
        &["sweep", "submit", &bad],
        &["sweep", "list"],
        &["sweep", "list", "--server", "http://127.0.0.1:9", "--token", "t"],
        &["sweep", "list", "--server", "not an address", "--token", "t"],
        &["sql"],
        &["sql", "SELECT 1", "--data", &nowhere],
        &["worker", "start", "--data", &nowhere],
        &["worker", "start", "--server", "http://127.0.0.1:9", "--token", "t", "--device", "gpu:0"],
        &["worker", "start", "--server", "http://127.0.0.1:9", "--token", "t", "--slots", "0"],
        &["server", "start", "--data", &nowhere, "--listen", "0.0.0.0:0"],
        &["server", "start", "--data", &nowhere, "--lease", "0"],
        &["server", "start", "--data", &nowhere, "--tls-cert", "cert.pem"],
    ];
    for args in cases {
        let ran: Ran = taskvec().args(*args).current_dir(dir.path()).output().expect("it runs").into();
        record(&mut out, &normalised(&args.join(" "), dir.path()), &ran, dir.path());
    }
    insta::assert_snapshot!("without_a_server", out);
}

/// A folder with a copy of a model of the fixtures, to be damaged.
fn copy_of(name: &str, into: &Path) {
    std::fs::create_dir(into).expect("makes a folder");
    for (file, bytes) in crate::fake_hub::files(&crate::forward::fixture("language").join(name)) {
        std::fs::write(into.join(file), bytes).expect("writes");
    }
}

/// Models that cannot be used, by their folder's name.
fn damaged_models(dir: &Path) {
    copy_of("llama", &dir.join("whole"));
    copy_of("llama", &dir.join("unknown"));
    let config = std::fs::read_to_string(dir.join("unknown/config.json")).expect("reads");
    let config = config.replace("\"model_type\": \"llama\"", "\"model_type\": \"rwkv\"");
    std::fs::write(dir.join("unknown/config.json"), config).expect("writes");
    copy_of("llama", &dir.join("short"));
    let weights = std::fs::File::options().write(true).open(dir.join("short/model.safetensors")).expect("opens");
    weights.set_len(50_000).expect("cuts");
    copy_of("llama_tied", &dir.join("shards"));
    std::fs::remove_file(dir.join("shards/model-00002-of-00003.safetensors")).expect("removes");
    std::fs::create_dir(dir.join("empty")).expect("makes a folder");
}

#[test]
fn models_that_cannot_be_used() {
    let dir = folder();
    let at = dir.path();
    damaged_models(at);
    std::fs::write(at.join("ids.json"), r#"{"input_ids": [[1, 2, 3]]}"#).expect("writes");
    std::fs::write(at.join("beyond.json"), r#"{"input_ids": [[1, 61]]}"#).expect("writes");
    std::fs::write(at.join("broken.json"), r#"{"input_ids": [[1, 2], [3]]}"#).expect("writes");
    let mut out = String::new();
    let mut run = |args: &[&str]| {
        let mut command = taskvec();
        // So that no cache of this machine is listed.
        command.args(args).current_dir(at).env("HOME", at);
        record(&mut out, &args.join(" "), &command.output().expect("it runs").into(), at);
    };
    for model in ["missing", "somebody/missing", "empty", "unknown", "short", "shards"] {
        run(&["model", "forward", "--model", model, "--input", "ids.json", "-o", "out.safetensors"]);
    }
    for input in ["missing.json", "beyond.json", "broken.json"] {
        run(&["model", "forward", "--model", "whole", "--input", input, "-o", "out.safetensors"]);
    }
    run(&["model", "forward", "--model", "whole", "--revision", "v2", "--input", "ids.json", "-o", "out.safetensors"]);
    for model in ["short", "shards", "missing"] {
        let sweep = format!(
            "version: 1\nname: w\nkind: evaluate\nmodel: {{ path: {model} }}\ndata: {{ family: bitwise }}\n\
             analyses: [{{ kind: icl }}]\n"
        );
        std::fs::write(at.join("sweep.yaml"), sweep).expect("writes");
        run(&["sweep", "plan", "sweep.yaml"]);
    }
    run(&["model", "fetch", "gpt2"]);
    run(&["model", "fetch", "somebody/missing"]);
    assert!(!at.join("out.safetensors").exists());
    insta::assert_snapshot!("models", out);
}

#[test]
fn wrong_usage_of_a_server() {
    let stack = Stack::start(0);
    let mut out = String::new();
    let panic = sweep_file("panic.yaml").display().to_string();
    stack.client(&["sweep", "submit", &panic]).ok();
    let cases: &[&[&str]] = &[
        &["sweep", "list", "--token", "wrong"],
        &["sweep", "status", "99"],
        &["sweep", "wait", "99"],
        &["sweep", "cancel", "99"],
        &["sweep", "pause", "1"],
        &["sweep", "pause", "1"],
        &["sweep", "resume", "1"],
        &["sweep", "retry", "1"],
        &["sweep", "cancel", "1"],
        &["sweep", "resume", "1"],
        &["run", "show", "99"],
        &["run", "list", "--state", "runing"],
        &["job", "explain", "99"],
        &["job", "explain", "1"],
        &["job", "logs", "1"],
        &["job", "logs", "99"],
        &["job", "retry", "99"],
        &["checkpoint", "download", "99"],
        &["checkpoint", "download", "last"],
        &["worker", "drain", "99"],
        &["worker", "drain", "last"],
        &["report", "99"],
        &["sql", "SELEC 1"],
        &["sql", "SELECT nothing FROM results.runs"],
        &["sql", "SELECT 1; SELECT 2"],
        &["sql", "DELETE FROM taskvec.runs"],
    ];
    for args in cases {
        record(&mut out, &args.join(" "), &stack.client(args), &stack.data());
    }
    insta::assert_snapshot!("of_a_server", out);
}

//! Models from a hub: fetched by hand, by `taskvec local`, and by the worker that needs one.

use crate::{
    fake_hub::{self, FakeHub, Faults, Files, Repository},
    forward::{assert_as_transformers, fixture, inputs},
    support::{LEASE_SECONDS, Ran, Stack, folder, taskvec},
};
use serde_json::json;
use std::{
    fs,
    path::{Path, PathBuf},
};

fn repository(revisions: &[(&str, Files)]) -> Repository {
    let revisions = revisions.iter().map(|(name, files)| ((*name).to_owned(), files.clone())).collect();
    Repository { revisions, gated: false }
}

fn language(name: &str) -> Files {
    fake_hub::files(&fixture("language").join(name))
}

const WIDTH: usize = 16;
const INNER: usize = 24;
const VOCABULARY: usize = 424;
const LAYERS: usize = 2;

/// A llama of two layers with a real tokenizer: enough for a sweep to measure something. Its weights follow from `seed`.
pub fn tiny(seed: u64) -> Files {
    let mut files = fake_hub::files(&fixture("tokenizer/llama3"));
    let config = json!({
        "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": INNER,
        "num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 512, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": true,
    });
    files.insert("config.json".to_owned(), config.to_string().into_bytes());
    let mut shapes =
        vec![("model.embed_tokens".to_owned(), vec![VOCABULARY, WIDTH]), ("model.norm".to_owned(), vec![WIDTH])];
    for layer in 0..LAYERS {
        let mut add =
            |name: &str, shape: &[usize]| shapes.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
        for name in ["q", "k", "v", "o"] {
            add(&format!("self_attn.{name}_proj"), &[WIDTH, WIDTH]);
        }
        for (name, shape) in [("gate", [INNER, WIDTH]), ("up", [INNER, WIDTH]), ("down", [WIDTH, INNER])] {
            add(&format!("mlp.{name}_proj"), &shape);
        }
        add("input_layernorm", &[WIDTH]);
        add("post_attention_layernorm", &[WIDTH]);
    }
    files.insert("model.safetensors".to_owned(), weights(&shapes, seed));
    files
}

/// A safetensors file with arbitrary small numbers.
fn weights(shapes: &[(String, Vec<usize>)], seed: u64) -> Vec<u8> {
    let (mut header, mut data, mut state) = (serde_json::Map::new(), Vec::new(), seed);
    for (name, shape) in shapes {
        let begin = data.len();
        for _ in 0..shape.iter().product() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            data.extend(((state >> 40) as f32 / (1 << 24) as f32 - 0.5).to_le_bytes());
        }
        let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()]});
        header.insert(format!("{name}.weight"), entry);
    }
    let header = serde_json::Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()
}

/// What leads to a hub and a cache.
fn environment(hub: &str, home: &Path) -> [(&'static str, String); 3] {
    [("HF_ENDPOINT", hub.to_owned()), ("HF_HOME", home.display().to_string()), ("HF_HUB_OFFLINE", "0".to_owned())]
}

fn fetch(hub: &FakeHub, home: &Path, args: &[&str]) -> Ran {
    let mut command = taskvec();
    command.args(["model", "fetch"]).args(args).envs(environment(&hub.endpoint(), home));
    command.output().expect("it runs").into()
}

/// Where nothing listens.
fn nowhere() -> String {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    format!("http://{}", socket.local_addr().expect("an address"))
}

const SWEEP: &str = "version: 1
name: words
kind: evaluate
model: { path: somebody/tiny }
data: { family: bitwise, digits: 2, shots: [1], tasks: [AND, XOR, Null] }
analyses: [{ kind: icl, samples_per_task: 8 }]
";

fn sweep(dir: &Path, model: &str) -> PathBuf {
    let path = dir.join("words.yaml");
    fs::write(&path, SWEEP.replace("somebody/tiny", model)).expect("writes");
    path
}

#[test]
fn a_model_is_fetched_and_then_runs_without_the_hub() {
    let dir = folder();
    let hub = FakeHub::with("somebody/llama", repository(&[("main", language("llama"))]));
    let home = dir.path().join("home");
    let first = fetch(&hub, &home, &["somebody/llama"]).ok();
    let snapshot = home.join("hub/models--somebody--llama/snapshots").join(fake_hub::commit(&language("llama")));
    assert!(first.contains(&snapshot.display().to_string()), "{first}");
    assert!(first.contains("model.safetensors  81.90 kB, fetched"), "{first}");
    assert!(fetch(&hub, &home, &["somebody/llama"]).ok().contains("model.safetensors  81.90 kB, was here"));
    drop(hub);
    let (input, output) = (dir.path().join("input.json"), dir.path().join("out.safetensors"));
    fs::write(&input, inputs("llama").0.to_string()).expect("writes");
    let mut command = taskvec();
    command.args(["model", "forward", "--model", "somebody/llama", "--input"]).arg(&input).arg("-o").arg(&output);
    let ran: Ran = command.env("HF_HOME", &home).output().expect("it runs").into();
    ran.ok();
    assert_as_transformers("llama", &output);
}

#[test]
fn revisions_are_fetched_by_pattern() {
    let dir = folder();
    let revisions = [("main", language("llama")), ("step20", language("olmo")), ("step1000", language("llama_tied"))];
    let hub = FakeHub::with("somebody/steps", repository(&revisions));
    let text = fetch(&hub, dir.path(), &["somebody/steps", "--revision", "step*"]).ok();
    assert!(
        text.contains("somebody/steps step20, commit") && text.contains("somebody/steps step1000, commit"),
        "{text}"
    );
    assert!(!text.contains("main"), "{text}");
    let refused = fetch(&hub, dir.path(), &["somebody/steps", "--revision", "stage*"]);
    assert_eq!(refused.code, 2);
    assert!(refused.stderr.contains("matches `stage*`; there are `main`, `step1000`, `step20`"), "{}", refused.stderr);
}

/// A hub with the models `somebody/tiny` and `other`, a server beside whose cache both are, and a worker whose cache, in
/// `dir/worker`, has none.
fn worker_without_models(dir: &Path, other: &str) -> (FakeHub, Stack) {
    let hub = FakeHub::with("somebody/tiny", repository(&[("main", tiny(1))]));
    hub.state.lock().expect("the state").models.insert(other.to_owned(), repository(&[("main", tiny(2))]));
    let planner = dir.join("planner");
    for name in ["somebody/tiny", other] {
        fetch(&hub, &planner, &[name]).ok();
    }
    let mut stack = Stack::idle();
    stack.set_environment(&[("HF_HOME", planner.display().to_string())]);
    stack.start_server();
    stack.set_environment(&environment(&hub.endpoint(), &dir.join("worker")));
    stack.start_worker();
    (hub, stack)
}

#[test]
fn a_worker_fetches_the_model_that_it_lacks() {
    let dir = folder();
    let (hub, stack) = worker_without_models(dir.path(), "somebody/gone");
    stack.submit(&sweep(dir.path(), "somebody/tiny"));
    stack.wait().ok();
    assert!(dir.path().join("worker/hub/models--somebody--tiny/refs/main").is_file());
    assert!(stack.one("SELECT count(*) FROM results.icl").as_i64() > Some(0));
    // What the hub does not have fails at once, with both reasons.
    hub.state.lock().expect("the state").models.remove("somebody/gone");
    stack.submit(&sweep(dir.path(), "somebody/gone"));
    assert_eq!(stack.wait().code, 1);
    let rows = stack.sql("SELECT error, attempts FROM results.jobs WHERE sweep_id = 2 AND state = 'failed'");
    let error = rows[0]["error"].as_str().expect("an error");
    assert!(error.contains("`somebody/gone` is neither a file nor a folder here"), "{error}");
    assert!(
        error.contains("Fetching it failed: the hub at") && error.contains("has no model `somebody/gone`"),
        "{error}"
    );
    assert_eq!(rows[0]["attempts"], 1, "another try would not help");
}

/// The content of weights is held back, or comes.
fn hold(hub: &FakeHub, hold: bool) {
    hub.faults(Faults { held: hold.then(|| "model.safetensors".to_owned()), ..Faults::default() });
}

#[test]
fn a_fetch_outlives_the_lease_and_ends_when_nobody_wants_it() {
    let dir = folder();
    let (hub, stack) = worker_without_models(dir.path(), "somebody/other");
    hold(&hub, true);
    stack.submit(&sweep(dir.path(), "somebody/tiny"));
    let long = LEASE_SECONDS * 2.0;
    let old = format!(
        "SELECT count(*) FROM results.jobs WHERE state = 'running' AND started_at < now() - interval '{long} seconds'"
    );
    stack.wait_for("an attempt older than two leases", |stack| stack.one(&old).as_i64() > Some(0));
    hold(&hub, false);
    stack.wait().ok();
    assert_eq!(stack.one("SELECT max(attempts) FROM results.jobs"), 1, "its lease was renewed");
    // What a cancelled job was waiting for is not fetched to its end.
    hold(&hub, true);
    stack.submit(&sweep(dir.path(), "somebody/other"));
    let asked = |hub: &FakeHub, path: &str| hub.asked().iter().filter(|asked| asked.path.starts_with(path)).count();
    let before = asked(&hub, "/stored/somebody/other/");
    stack.wait_for("the weights to be asked for", |_| asked(&hub, "/stored/somebody/other/") > before);
    stack.client(&["sweep", "cancel", "last"]).ok();
    // The worker has one slot: once it does something else, it has heard.
    let work_on = |digits: u32| {
        let file = sweep(dir.path(), "somebody/tiny");
        let text = fs::read_to_string(&file).expect("reads").replace("digits: 2", &format!("digits: {digits}"));
        fs::write(&file, text).expect("writes");
        stack.submit(&file);
        stack.wait().ok();
    };
    work_on(3);
    hold(&hub, false);
    work_on(4);
    assert!(!dir.path().join("worker/hub/models--somebody--other/refs/main").exists());
}

#[test]
fn local_fetches_all_revisions_that_match_and_does_with_those_here_when_the_hub_is_away() {
    let dir = folder();
    let revisions = [("main", tiny(1)), ("step20", tiny(2)), ("step1000", tiny(3))];
    let hub = FakeHub::with("somebody/tiny", repository(&revisions));
    fetch(&hub, &dir.path().join("home"), &["somebody/tiny", "--revision", "step20"]).ok();
    let steps = "somebody/tiny, revision: \"step*\"";
    let without = local(dir.path(), steps, &nowhere());
    assert_eq!(without.code, 0, "{}{}", without.stdout, without.stderr);
    assert!(
        without.stderr.contains("going on with the 1 revisions of somebody/tiny that are here"),
        "{}",
        without.stderr
    );
    let ran = local(dir.path(), steps, &hub.endpoint());
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stderr.contains("fetching 1 of the 2 revisions of somebody/tiny"), "{}", ran.stderr);
    let home = dir.path().join("home/hub/models--somebody--tiny/refs");
    assert!(home.join("step1000").is_file() && !home.join("main").exists());
}

fn local(dir: &Path, model: &str, hub: &str) -> Ran {
    let file = sweep(dir, model);
    let mut command = taskvec();
    command.arg("local").arg(file).args(["--workers", "1", "--data"]).arg(dir.join("data"));
    command.envs(environment(hub, &dir.join("home"))).output().expect("it runs").into()
}

#[test]
fn local_fetches_what_is_missing_before_it_plans() {
    let dir = folder();
    let refused = local(dir.path(), "somebody/tiny", &nowhere());
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    for part in ["`somebody/tiny` is neither a file nor a folder here", "Place config.json", "cannot be reached"] {
        assert!(refused.stderr.contains(part), "`{part}` is not in:\n{}", refused.stderr);
    }
    assert!(!dir.path().join("data").exists(), "nothing was started");
    let hub = FakeHub::with("somebody/tiny", repository(&[("main", tiny(1))]));
    let ran = local(dir.path(), "somebody/tiny", &hub.endpoint());
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stderr.contains("fetching model.safetensors"), "{}", ran.stderr);
    // The second time the hub is not needed.
    drop(hub);
    let again = local(dir.path(), "somebody/tiny", &nowhere()).ok();
    assert!(again.contains("nothing was computed"), "{again}");
}

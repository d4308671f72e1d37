//! A worker with a GPU trains on it; where there is none, on a stand-in for NVIDIA's libraries (`make test`).

use crate::support::{Ran, Stack, folder, sweep_file, taskvec};
use serde_json::json;
use taskvec_science::gpu;

#[test]
fn a_worker_trains_on_its_gpu_and_a_worker_without_one_goes_on_with_its_states() {
    if let Err(why) = gpu::free_bytes(0) {
        return skipped(&format!("no run is trained on a GPU: {why}"));
    }
    let mut on_gpu = Stack::start(0);
    on_gpu.start_worker_with(&["--device", "cuda:0", "--stack", "2"]);
    let mut on_cpu = Stack::start(0);
    on_cpu.start_worker_with(&["--device", "cpu"]);
    for stack in [&on_gpu, &on_cpu] {
        stack.submit(&sweep_file("tiny-seeds.yaml"));
        stack.wait().ok();
        assert_eq!(stack.one("SELECT count(*) FROM results.jobs WHERE state <> 'done'"), json!(0));
    }
    assert!(on_gpu.client(&["worker", "list"]).ok().contains("cuda:0"));
    let jobs = on_gpu.sql("SELECT job_id FROM results.jobs WHERE kind = 'train'");
    let log = |job: &serde_json::Value| on_gpu.client(&["job", "logs", &job["job_id"].to_string()]).ok();
    assert!(jobs.iter().all(|job| log(job).contains("2 jobs in one slot")));
    let losses = "SELECT run_id, step, loss FROM results.train_loss ORDER BY 1, 2";
    let (ours, theirs) = (on_gpu.sql(losses), on_cpu.sql(losses));
    assert!(ours.len() == theirs.len() && !ours.is_empty());
    let mut same = true;
    for (ours, theirs) in ours.iter().zip(&theirs) {
        let [a, b] = [ours, theirs].map(|row| row["loss"].as_f64().expect("a loss"));
        assert!((a / b - 1.0).abs() < 1e-4, "{ours} and {theirs}");
        same &= a == b;
    }
    assert!(!same, "sums are taken in another order on a GPU");
}

/// One worker for each GPU, each on its own; a device that is none is refused before anything starts.
#[test]
fn a_local_stack_deals_out_the_gpus() {
    let dir = folder();
    let local = |device: &str| -> Ran {
        let mut command = taskvec();
        command
            .arg("local")
            .arg(sweep_file("tiny.yaml"))
            .args(["--device", device, "--data"])
            .arg(dir.path().join("data"));
        command.output().expect("it runs").into()
    };
    let refused = local("cuda:0,x");
    assert!(refused.code == 2 && refused.stderr.contains("`x` is not a device"), "{}", refused.stderr);
    assert!(!dir.path().join("data").exists(), "nothing was begun");
    if let Err(why) = gpu::free_bytes(1) {
        return skipped(&format!("no stack has two GPUs: {why}"));
    }
    let told = local("cuda:0,1");
    assert!(told.code == 0 && told.stderr.contains("2 workers"), "{}", told.stderr);
    let list = ["worker", "list", "--data"];
    let workers = Ran::from(taskvec().args(list).arg(dir.path().join("data")).output().expect("it runs")).ok();
    assert!(workers.contains("cuda:0") && workers.contains("cuda:1"), "{workers}");
}

fn skipped(why: &str) {
    std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("\nSKIPPED: {why}\n")).expect("it says so");
}

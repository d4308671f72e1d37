//! Jobs that compute nothing, through server and PostgreSQL: how many a second, and how soon one starts.
//!
//! `cargo bench -p taskvec-server`. Two workers of one slot each speak the real protocol over loopback from this process;
//! they answer at once, so what is measured is the server's and PostgreSQL's time. `TASKVEC_BENCH_JOBS` changes the
//! number of jobs (10 000).

#[allow(clippy::unwrap_used, reason = "the stack of the tests")]
#[path = "../tests/server/common/mod.rs"]
mod common;

use common::{Identity, Stack, Worker, selftest};
use std::time::{Duration, Instant};

const STARTS: usize = 200;

fn main() {
    let jobs = std::env::var("TASKVEC_BENCH_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(10_000);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut stack = Stack::start().await;
        start_latency(&stack).await;
        throughput(&stack, jobs).await;
        stack.stop().await;
    });
}

/// From the call of `Submit` to the assignment's arrival at an idle worker.
async fn start_latency(stack: &Stack) {
    let client = stack.client().await;
    let mut worker = Worker::connect(&client, &Identity::new("idle", 1)).await.expect("connects");
    let mut taken = Vec::new();
    for seed in 0..STARTS {
        let yaml = selftest("latency", 1).replace("seed: 1", &format!("seed: {seed}"));
        let start = Instant::now();
        let submit = tokio::spawn({
            let client = client.clone();
            async move { client.submit(&yaml).await }
        });
        let attempt = worker.assigned().await;
        taken.push(start.elapsed());
        submit.await.expect("no panic").expect("is stored");
        worker.finish(attempt).await;
        assert!(worker.answer().await.accepted);
    }
    taken.sort();
    let at = |part: f64| taken[((taken.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e3;
    println!("submit to start, idle: p50 {:.1} ms, p99 {:.1} ms ({STARTS} sweeps)", at(0.5), at(0.99));
}

async fn throughput(stack: &Stack, jobs: u32) {
    let client = stack.client().await;
    let start = Instant::now();
    let yaml = selftest("throughput", jobs).replace("seed: 1", "seed: 1000000");
    let request = taskvec_wire::pb::SubmitRequest { yaml, file: "bench.yaml".into(), priority: 0, request: Vec::new() };
    let sweep = client.sweeps.clone().submit(request).await.expect("is stored").into_inner().sweep_id;
    let submitted = start.elapsed();
    let mut workers = Vec::new();
    for name in ["one", "two"] {
        let worker = Worker::connect(&client, &Identity::new(name, 1)).await.expect("connects");
        workers.push(tokio::spawn(worker.work()));
    }
    let mut states = client.watch(sweep).await;
    while let Some(state) = states.message().await.expect("a state") {
        if state.state == "done" {
            break;
        }
    }
    let total = start.elapsed();
    for worker in workers {
        worker.abort();
    }
    let rate = f64::from(jobs) / (total - submitted).max(Duration::from_millis(1)).as_secs_f64();
    println!(
        "{jobs} jobs that do nothing, 2 workers: {:.2} s in total (submission {:.2} s), {rate:.0} jobs/s",
        total.as_secs_f64(),
        submitted.as_secs_f64()
    );
}

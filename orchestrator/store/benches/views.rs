//! A sweep of 1 000 runs × 24 checkpoints × 13 layers × 2 sites × 5 latent tasks, stored as the server stores it, and
//! then asked what users ask. `cargo bench -p taskvec-store`; a second argument sets the number of runs.

#[path = "../tests/store/postgres.rs"]
mod postgres;

use sqlx::{AssertSqlSafe, Connection, PgConnection};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};
use taskvec_model::{
    id::{AttemptRef, Digest, JobId, SweepId},
    job::{JobWork, Produced},
    metric::{Baseline, Estimator, Icl, IclMetric, Metrics, Td, TdBound, TrainLoss},
    plan::{Plan, PlannedJob, PlannedRun},
    schedule::{Change, SlotRef},
    spec::{
        Arch, At, Behaviour, CheckpointSpec, DataSpec, Decay, InitSpec, Layers, ModelSpec, OptimizerKind,
        OptimizerSpec, Overlap, Precision, RunSpec, Schedule, Selftest, SelftestSpec, Site, SparseLinear, TdSpec,
        TrainSpec, YChannel,
    },
    state::JobState,
};
use taskvec_store::{ListQuery, Listing, Outcome, Store, WorkerRecord};

const CHECKPOINTS: u64 = 24;
const LAYERS: u32 = 13;
const TASKS: u32 = 5;
const POSITIONS: u32 = 20;
const LAST: u64 = 80_000;
/// Jobs that end in one transaction.
const BATCH: usize = 200;

#[tokio::main]
async fn main() {
    let runs = std::env::args().skip(1).find_map(|a| a.parse().ok()).unwrap_or(1000);
    // Durable, unlike the tests.
    let cluster = postgres::start("-c max_wal_size=4GB -c shared_buffers=512MB");
    let url = cluster.url("postgres");
    let store = Store::connect(&url, 2).await.expect("connects");
    store.migrate().await.expect("migrates");
    fill(&store, runs).await;
    let mut sql = PgConnection::connect(&url).await.expect("connects");
    sqlx::raw_sql("VACUUM ANALYZE").execute(&mut sql).await.expect("analyses");
    bare_copy(&mut sql).await;
    ask(&mut sql, &store, runs as i64 / 2).await;
}

fn report(what: &str, count: usize, unit: &str, took: Duration) {
    println!("{what:<58} {:>9.2} s  {:>10.0} {unit}/s", took.as_secs_f64(), count as f64 / took.as_secs_f64());
}

async fn fill(store: &Store, runs: usize) {
    let mut leader = store.try_lead().await.expect("leads");
    leader.set_lease(Duration::from_secs(3600));
    let plan = plan(runs);
    let from = Instant::now();
    let submitted = leader.submit(&plan, "", 0, None).await.expect("submits");
    report(&format!("submit {} jobs of {runs} runs", plan.jobs.len()), plan.jobs.len(), "jobs", from.elapsed());
    let from = Instant::now();
    leader.load().await.expect("loads");
    report("load them into the scheduler", plan.jobs.len(), "jobs", from.elapsed());

    let record = WorkerRecord {
        name: "bench".into(),
        host: "here".into(),
        devices: vec!["cpu".into()],
        slots: 1,
        threads_per_slot: 1,
        stack: 1,
        pid: 1,
        version: "0".into(),
        nonce: 1,
    };
    let worker = store.register_worker(&record).await.expect("registers");
    let slot = SlotRef { worker, number: 0 };
    let (mut start, mut complete, mut rows) = (Duration::ZERO, Duration::ZERO, 0);
    let jobs: Vec<(JobId, &PlannedJob)> = submitted.jobs.iter().map(|j| j.id).zip(&plan.jobs).collect();
    for part in jobs.chunks(BATCH) {
        let attempt = |job: JobId| AttemptRef { job, number: 1 };
        let starts: Vec<Change> = part.iter().map(|(job, _)| Change::Start { attempt: attempt(*job), slot }).collect();
        let ends: Vec<Change> =
            part.iter().map(|(job, _)| Change::Complete { attempt: attempt(*job), jobs: vec![*job] }).collect();
        let outcomes: BTreeMap<AttemptRef, Outcome> = part
            .iter()
            .map(|(job, planned)| {
                let produced = Produced { metrics: metrics(planned), checkpoints: Vec::new() };
                rows += produced.metrics.rows();
                (attempt(*job), Outcome { produced, handover: None, log: "done\n".into() })
            })
            .collect();
        let from = Instant::now();
        leader.commit(&starts, &BTreeMap::new()).await.expect("starts");
        start += from.elapsed();
        let from = Instant::now();
        leader.commit(&ends, &outcomes).await.expect("completes");
        complete += from.elapsed();
    }
    report(&format!("start {} jobs, {BATCH} at once", jobs.len()), jobs.len(), "jobs", start);
    report(&format!("complete them, with {rows} metric rows"), rows, "rows", complete);
}

/// The same rows of results.td, with nothing around them.
async fn bare_copy(sql: &mut PgConnection) {
    let text: String = sqlx::query_scalar(
        "SELECT string_agg(format(E'%s\\t%s\\t%s\\t%s\\t%s\\t%s\\t%s\\t%s\\t%s', result_id + 1000000, value, stderr,
             layer, shots, k, n, site, latent_task), E'\\n') || E'\\n'
         FROM (SELECT * FROM taskvec.td LIMIT 500000) AS t",
    )
    .fetch_one(&mut *sql)
    .await
    .expect("reads");
    let rows = text.lines().count();
    sqlx::raw_sql("CREATE TABLE bare (LIKE taskvec.td); CREATE TABLE indexed (LIKE taskvec.td INCLUDING INDEXES)")
        .execute(&mut *sql)
        .await
        .expect("creates");
    for table in ["bare", "indexed"] {
        let from = Instant::now();
        let mut copy = sql.copy_in_raw(&format!("COPY {table} FROM STDIN")).await.expect("starts");
        for part in text.as_bytes().chunks(1 << 20) {
            copy.send(part).await.expect("sends");
        }
        copy.finish().await.expect("copies");
        report(&format!("COPY {rows} rows of td, {table}"), rows, "rows", from.elapsed());
    }
    sqlx::raw_sql("DROP TABLE bare, indexed").execute(sql).await.expect("drops");
}

async fn ask(sql: &mut PgConnection, store: &Store, run: i64) {
    let questions = [
        (
            "best layer at each checkpoint of one run",
            format!(
                "SELECT step, max(td) FROM (SELECT step, layer, avg(value) AS td FROM results.td
                 WHERE run_id = {run} AND site = 'x' GROUP BY step, layer) AS l GROUP BY step ORDER BY step"
            ),
        ),
        ("all TD of one run", format!("SELECT * FROM results.td WHERE run_id = {run} ORDER BY step, layer")),
        (
            "one layer at the last step, mean over tasks, by run",
            format!(
                "SELECT run_id, avg(value) FROM results.td WHERE step = {LAST} AND layer = 6 AND site = 'x' GROUP BY run_id"
            ),
        ),
        (
            "the same, for one sweep, by seed",
            format!(
                "SELECT r.seed, avg(t.value) FROM results.td t JOIN results.runs r USING (run_id)
             WHERE r.sweep_id = 1 AND t.step = {LAST} AND t.layer = 6 AND t.site = 'x' GROUP BY r.seed"
            ),
        ),
        (
            "one layer at each step, mean over tasks, of one run",
            format!(
                "SELECT step, avg(value) FROM results.td WHERE run_id = {run} AND layer = 6 AND site = 'x' GROUP BY step"
            ),
        ),
        (
            "ICL by step of one run",
            format!(
                "SELECT step, avg(value) FROM results.icl WHERE run_id = {run} AND position IS NULL GROUP BY step ORDER BY step"
            ),
        ),
        (
            "ICL by position at the last step of one run",
            format!(
                "SELECT position, avg(value) FROM results.icl WHERE run_id = {run} AND step = {LAST} GROUP BY position"
            ),
        ),
        (
            "ICL at the last step of every run",
            format!(
                "SELECT run_id, avg(value) FROM results.icl WHERE step = {LAST} AND position IS NULL GROUP BY run_id"
            ),
        ),
        ("TD against ICL of one run", format!("SELECT * FROM results.td_vs_icl WHERE run_id = {run}")),
        (
            "TD against ICL, one layer, last step, every run",
            format!(
                "SELECT run_id, latent_task, td, icl FROM results.td_vs_icl WHERE step = {LAST} AND layer = 6 AND site = 'x'"
            ),
        ),
        (
            "TD beside its bound, one run, last step",
            format!(
                "SELECT t.layer, avg(t.value), avg(b.value) FROM results.td t
             JOIN results.td_bound b USING (run_id, latent_task, shots)
             WHERE run_id = {run} AND step = {LAST} AND site = 'x' GROUP BY t.layer"
            ),
        ),
        (
            "ICL beside the oracle, one run",
            format!(
                "SELECT i.step, avg(i.value), avg(b.mse) FROM results.icl i
             JOIN results.baselines b USING (run_id, latent_task, position)
             WHERE run_id = {run} AND b.estimator = 'oracle' GROUP BY i.step"
            ),
        ),
        (
            "training loss of one run",
            format!("SELECT step, loss FROM results.train_loss WHERE run_id = {run} ORDER BY step"),
        ),
        (
            "jobs of a sweep by state",
            "SELECT state, count(*) FROM results.jobs WHERE sweep_id = 1 GROUP BY state".into(),
        ),
        ("failed jobs of a sweep", "SELECT * FROM results.jobs WHERE sweep_id = 1 AND state = 'failed'".into()),
        ("jobs of one run", format!("SELECT * FROM results.jobs WHERE run_id = {run} ORDER BY job_id")),
        (
            "runs of a sweep by state",
            "SELECT state, count(*) FROM results.runs WHERE sweep_id = 1 GROUP BY state".into(),
        ),
        ("sweeps", "SELECT * FROM results.sweeps".into()),
        (
            "one layer by step, mean over all runs",
            "SELECT step, avg(value) FROM results.td WHERE layer = 6 AND site = 'x' GROUP BY step ORDER BY step".into(),
        ),
        (
            "ICL by step, mean over all runs",
            "SELECT step, avg(value) FROM results.icl WHERE position IS NULL GROUP BY step ORDER BY step".into(),
        ),
        (
            "ICL at the last position by step, mean over all runs",
            "SELECT step, avg(value) FROM results.icl WHERE position = 20 GROUP BY step ORDER BY step".into(),
        ),
        (
            "step at which each run's TD passes 0.5",
            "SELECT run_id, min(step) FROM (SELECT run_id, step, avg(value) AS td FROM results.td
                 WHERE layer = 6 AND site = 'x' GROUP BY run_id, step) AS t WHERE td > 0.5 GROUP BY run_id"
                .into(),
        ),
    ];
    for (what, query) in questions {
        let mut times = Vec::new();
        let mut rows = 0;
        for _ in 0..7 {
            let from = Instant::now();
            rows = sqlx::raw_sql(AssertSqlSafe(query.clone())).fetch_all(&mut *sql).await.expect(what).len();
            times.push(from.elapsed());
        }
        median(what, times, rows);
    }
    let mut times = Vec::new();
    for _ in 0..7 {
        let from = Instant::now();
        store.sweep_progress(SweepId(1)).await.expect("asks");
        times.push(from.elapsed());
    }
    median("progress of the sweep (Store::sweep_progress)", times, 1);
    let jobs = ListQuery { sweep: Some(SweepId(1)), limit: 100, ..ListQuery::all(Listing::Jobs) };
    let jobs = ListQuery { state: Some(JobState::Done.to_string()), ..jobs };
    let mut times = Vec::new();
    for _ in 0..7 {
        let from = Instant::now();
        store.list(&jobs).await.expect("lists");
        times.push(from.elapsed());
    }
    median("a listing of 100 jobs (Store::list)", times, 100);
}

fn median(what: &str, mut times: Vec<Duration>, rows: usize) {
    times.sort();
    println!("{what:<58} {:>8.1} ms  ({rows} rows)", times[times.len() / 2].as_secs_f64() * 1e3);
}

fn plan(runs: usize) -> Plan {
    let spec = |seed| {
        RunSpec::Selftest(Selftest {
            seed,
            selftest: SelftestSpec { jobs: 1, behaviour: Behaviour::Succeed, millis: 0 },
        })
    };
    let run = |i| PlannedRun { spec: spec(i as u64), params: serde_json::json!({ "seed": i }) };
    let mut jobs: Vec<PlannedJob> = Vec::new();
    for run in 0..runs {
        let seed = run as u64;
        let mut add = |work: JobWork, step| {
            let key = Digest(*blake3::hash(format!("{} {work:?} {step:?}", jobs.len()).as_bytes()).as_bytes());
            jobs.push(PlannedJob { run, step, work, key, needs: Vec::new(), flops: 1.0 });
        };
        add(JobWork::Baselines { seed, data: data(), sequences: 1000, td_samples_per_task: Some(100) }, None);
        for step in (1..=CHECKPOINTS).map(|i| LAST * i / CHECKPOINTS) {
            add(JobWork::Icl { seed, model: model(), data: data(), sequences: 1000 }, Some(step));
            let td = TdSpec {
                layers: Layers::All,
                sites: vec![Site::X, Site::Y],
                k: 10,
                samples_per_task: 100,
                at: At::All,
            };
            add(JobWork::Td { seed, model: model(), data: data(), td }, Some(step));
        }
        add(train(seed), Some(LAST));
    }
    Plan { name: "bench".into(), spec: serde_json::json!({}), runs: (0..runs).map(run).collect(), jobs }
}

fn metrics(job: &PlannedJob) -> Metrics {
    let tasks = || (1..=TASKS).map(|t| format!("B{t}"));
    let positions = || std::iter::once(None).chain((1..=POSITIONS).map(Some));
    let value = f64::from(job.key.0[0]) / 255.0;
    let shots = POSITIONS - 1;
    let mut out = Metrics::default();
    match &job.work {
        JobWork::Icl { .. } => {
            let row = |(latent_task, position)| Icl {
                latent_task,
                shots,
                position,
                metric: IclMetric::Mse,
                value,
                stderr: 0.01,
                n: 1000,
            };
            out.icl = tasks().flat_map(|t| positions().map(move |p| (t.clone(), p))).map(row).collect();
        }
        JobWork::Td { .. } => {
            for layer in 0..LAYERS {
                for site in [Site::X, Site::Y] {
                    out.td.extend(tasks().map(|latent_task| Td {
                        layer,
                        site,
                        latent_task,
                        shots,
                        k: 10,
                        n: 100,
                        value,
                        stderr: 0.04,
                    }));
                }
            }
        }
        JobWork::Baselines { .. } => {
            for estimator in Estimator::ALL {
                let row = |(latent_task, position)| Baseline { latent_task, position, estimator, mse: value };
                out.baselines.extend(tasks().flat_map(|t| positions().map(move |p| (t.clone(), p))).map(row));
            }
            out.td_bound = tasks().map(|latent_task| TdBound { latent_task, shots, value }).collect();
        }
        _ => {
            let row = |i| TrainLoss { step: i * 100, loss: value, learning_rate: 1e-4, sequences_per_second: 1e3 };
            out.train_loss = (1..=LAST / 100).map(row).collect();
        }
    }
    out
}

fn data() -> DataSpec {
    DataSpec::SparseLinear(SparseLinear {
        dim: 16,
        bases: 4,
        rank: 4,
        overlap: Overlap::Disjoint,
        examples: 20,
        noise_variance: 0.01,
        weight_mean: 0.0,
        y_channel: YChannel::Shared,
    })
}

fn train(seed: u64) -> JobWork {
    let train = TrainSpec {
        steps: LAST,
        batch: 128,
        optimizer: OptimizerSpec {
            kind: OptimizerKind::Adam,
            learning_rate: 1e-4,
            betas: [0.9, 0.9999],
            epsilon: 1e-8,
            weight_decay: 0.0,
        },
        warmup: 0,
        decay: Decay::None,
        clip_norm: None,
        precision: Precision::F32,
        log_every: 100,
    };
    let checkpoints = CheckpointSpec { schedule: Schedule::Linear, count: 25, resume_every: LAST };
    JobWork::Train { seed, model: model(), data: data(), train, checkpoints, from: 0, to: LAST }
}

fn model() -> ModelSpec {
    let init = InitSpec { std: 0.02, read_in_std: 0.144, position_std: 0.02 };
    ModelSpec { arch: Arch::Gpt2, layers: 12, width: 256, heads: 8, init }
}

//! A database of its own for each test, and small sweeps to put into it.

use crate::postgres::{self, Cluster};
use sqlx::{Connection, PgConnection, postgres::PgRow};
use std::{
    collections::BTreeMap,
    sync::OnceLock,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};
use taskvec_model::{
    id::{AttemptRef, Digest, JobId, WorkerId},
    job::{BlobRef, CheckpointRef, JobWork, Produced, Purpose},
    metric::{Baseline, Estimator, Icl, IclMetric, Intervention, Lens, Metrics, Td, TdBound, TdPair, TrainLoss},
    plan::{Need, Plan, PlannedJob, PlannedRun},
    schedule::{Change, SlotRef},
    spec::{
        Arch, Behaviour, CheckpointSpec, DataSpec, Decay, InitSpec, Layers, ModelSpec, OptimizerKind, OptimizerSpec,
        Overlap, PatchMode, PatchPositions, Precision, RunSpec, Schedule, Selftest, SelftestSpec, Site, SparseLinear,
        TdSpec, TrainSpec, YChannel,
    },
};
use taskvec_store::{BlobManifest, Leader, Outcome, Store, StoreError, WorkerRecord};

/// The connection string to a database of the one cluster that all tests share.
pub fn url(database: &str) -> String {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| postgres::start("-c fsync=off -c max_connections=200")).url(database)
}

pub struct Db {
    pub store: Store,
    pub url: String,
}

pub async fn db() -> Db {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let mut admin = PgConnection::connect(&url("postgres")).await.expect("connects");
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&mut admin).await.expect("creates");
    let url = url(&name);
    let store = Store::connect(&url, 4).await.expect("connects");
    store.migrate().await.expect("migrates");
    Db { store, url }
}

impl Db {
    pub async fn sql(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.expect("connects")
    }

    /// Executes as the owner.
    pub async fn run(&self, statement: &'static str) {
        sqlx::raw_sql(statement).execute(&mut self.sql().await).await.expect(statement);
    }

    pub async fn rows<T>(&self, query: &'static str) -> Vec<T>
    where
        T: for<'r> sqlx::FromRow<'r, PgRow> + Send + Unpin,
    {
        sqlx::query_as(query).fetch_all(&mut self.sql().await).await.expect(query)
    }

    pub async fn one<T>(&self, query: &'static str) -> T
    where
        (T,): for<'r> sqlx::FromRow<'r, PgRow>,
        T: Send + Unpin,
    {
        let (value,) = sqlx::query_as(query).fetch_one(&mut self.sql().await).await.expect(query);
        value
    }

    /// Waits for the connection of an earlier leader to be gone.
    pub async fn lead(&self) -> Leader {
        for _ in 0..500 {
            match self.store.try_lead().await {
                Err(StoreError::AnotherLeader) => tokio::time::sleep(Duration::from_millis(10)).await,
                led => return led.expect("leads"),
            }
        }
        panic!("another leader stays")
    }

    pub async fn worker(&self, nonce: u64) -> WorkerId {
        self.store.register_worker(&worker(nonce)).await.expect("registers")
    }

    pub async fn upload(&self, content: &str) -> BlobRef {
        upload(&self.store, &[content.as_bytes()]).await
    }
}

pub fn worker(nonce: u64) -> WorkerRecord {
    WorkerRecord {
        name: format!("w{nonce}"),
        host: "lab".into(),
        devices: vec!["cpu".into()],
        slots: 2,
        threads_per_slot: 1,
        stack: 4,
        pid: 7,
        version: "0.1.0".into(),
        nonce,
    }
}

pub fn hash(bytes: &[u8]) -> Digest {
    Digest(*blake3::hash(bytes).as_bytes())
}

pub fn manifest(chunks: &[&[u8]]) -> BlobManifest {
    let all = chunks.concat();
    BlobManifest {
        blob: BlobRef { digest: hash(&all), bytes: all.len() as u64 },
        chunks: chunks.iter().map(|c| hash(c)).collect(),
    }
}

pub async fn upload(store: &Store, chunks: &[&[u8]]) -> BlobRef {
    let manifest = manifest(chunks);
    for i in store.missing_chunks(&manifest.chunks).await.expect("asks") {
        store.put_chunk(manifest.chunks[i], chunks[i]).await.expect("stores");
    }
    store.put_blob(&manifest).await.expect("declares");
    manifest.blob
}

pub fn data() -> DataSpec {
    DataSpec::SparseLinear(SparseLinear {
        dim: 8,
        bases: 2,
        rank: 2,
        overlap: Overlap::Disjoint,
        examples: 6,
        noise_variance: 0.01,
        weight_mean: 0.0,
        y_channel: YChannel::Shared,
    })
}

pub fn model() -> ModelSpec {
    let init = InitSpec { std: 0.02, read_in_std: 0.2041241452319315, position_std: 0.02 };
    ModelSpec { arch: Arch::Gpt2, layers: 2, width: 16, heads: 2, init }
}

pub fn train(from: u64, to: u64) -> JobWork {
    let train = TrainSpec {
        steps: 20,
        batch: 4,
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
        log_every: 1,
    };
    let checkpoints = CheckpointSpec { schedule: Schedule::Linear, count: 3, resume_every: 10 };
    JobWork::Train { seed: u64::MAX, model: model(), data: data(), train, checkpoints, from, to }
}

pub fn job(work: JobWork, step: Option<u64>, key: u8, needs: Vec<Need>) -> PlannedJob {
    PlannedJob { run: 0, step, work, key: Digest([key; 32]), needs, flops: 10.0 }
}

pub fn idle(key: u8) -> PlannedJob {
    let work = JobWork::Selftest { seed: 1, index: u32::from(key), behaviour: Behaviour::Succeed, millis: 0 };
    job(work, None, key, vec![])
}

/// A sweep of one run.
pub fn plan(jobs: Vec<PlannedJob>) -> Plan {
    let selftest = SelftestSpec { jobs: 1, behaviour: Behaviour::Succeed, millis: 0 };
    let run = PlannedRun {
        spec: RunSpec::Selftest(Selftest { seed: 3, selftest }),
        params: serde_json::json!({ "seed": 3 }),
    };
    Plan { name: "small".into(), spec: serde_json::json!({ "version": 1, "kind": "selftest" }), runs: vec![run], jobs }
}

/// Baselines; two segments of training; both analyses of the checkpoints at steps 10 and 20. Keys 1 to 7.
pub fn pretrain() -> Plan {
    let need = |job, step, purpose| Need { job, step, purpose };
    let weights = |job, step| vec![need(job, step, Purpose::Weights)];
    let icl = || JobWork::Icl { seed: 3, model: model(), data: data(), sequences: 10 };
    let at = taskvec_model::spec::At::All;
    let td = TdSpec { layers: Layers::All, sites: vec![Site::X], k: 10, samples_per_task: 100, at };
    let td = || JobWork::Td { seed: 3, model: model(), data: data(), td: td.clone() };
    let baselines = JobWork::Baselines { seed: 3, data: data(), sequences: 10, td_samples_per_task: Some(100) };
    plan(vec![
        job(baselines, None, 1, vec![]),
        job(train(0, 10), Some(10), 2, vec![]),
        job(train(10, 20), Some(20), 3, vec![need(1, 10, Purpose::Resume)]),
        job(icl(), Some(10), 4, weights(1, 10)),
        job(td(), Some(10), 5, weights(1, 10)),
        job(icl(), Some(20), 6, weights(2, 20)),
        job(td(), Some(20), 7, weights(2, 20)),
    ])
}

pub fn attempt(job: i64, number: i32) -> AttemptRef {
    AttemptRef { job: JobId(job), number }
}

pub fn start(job: i64, number: i32, worker: WorkerId) -> Change {
    start_in(0, job, number, worker)
}

pub fn start_in(slot: u32, job: i64, number: i32, worker: WorkerId) -> Change {
    Change::Start { attempt: attempt(job, number), slot: SlotRef { worker, number: slot } }
}

pub fn complete(job: i64, number: i32) -> Change {
    Change::Complete { attempt: attempt(job, number), jobs: vec![JobId(job)] }
}

pub fn checkpoint(step: u64, purpose: Purpose, blob: BlobRef) -> CheckpointRef {
    CheckpointRef { step, purpose, blob }
}

pub fn outcome(metrics: Metrics, checkpoints: Vec<CheckpointRef>) -> Outcome {
    Outcome { produced: Produced { metrics, checkpoints }, handover: None, log: "worked\n".into() }
}

pub type Outcomes = BTreeMap<AttemptRef, Outcome>;

pub fn outcomes<const N: usize>(list: [(i64, i32, Outcome); N]) -> Outcomes {
    list.into_iter().map(|(job, number, outcome)| (attempt(job, number), outcome)).collect()
}

/// One row of every kind; `x` tells them apart.
pub fn metrics(x: f64) -> Metrics {
    let task = || "B1".to_owned();
    let icl = |position| Icl {
        latent_task: task(),
        shots: 5,
        position,
        metric: IclMetric::Mse,
        value: x,
        stderr: 0.5,
        n: 10,
    };
    Metrics {
        train_loss: vec![TrainLoss { step: 10, loss: x, learning_rate: 1e-4, sequences_per_second: 9.0 }],
        icl: vec![icl(None), icl(Some(6))],
        baselines: vec![Baseline { latent_task: task(), position: None, estimator: Estimator::Oracle, mse: x }],
        td: vec![Td { layer: 2, site: Site::X, latent_task: task(), shots: 5, k: 10, n: 100, value: x, stderr: 0.25 }],
        td_bound: vec![TdBound { latent_task: task(), shots: 5, value: x }],
        td_pairs: vec![TdPair {
            layer: 2,
            site: Site::X,
            latent_task_a: task(),
            latent_task_b: "B2".into(),
            shots: 5,
            value: x,
        }],
        interventions: vec![Intervention {
            layer: 2,
            site: Site::X,
            positions: PatchPositions::Last,
            mode: PatchMode::Replace,
            source_task: task(),
            target_task: "B2".into(),
            shots: 5,
            metric: IclMetric::Mse,
            baseline: 0.5,
            patched: x,
            replicate: 1,
            n: 100,
        }],
        lens: vec![Lens { layer: 2, latent_task: task(), shots: 5, accuracy: x, log_prob: -1.5, rank: 2.5, n: 100 }],
    }
}

/// Starts and completes a ready job at its first attempt.
pub async fn finish(db: &Db, leader: &mut Leader, job: i64, outcome: Outcome) {
    let worker = db.worker(99).await;
    let changes = [start(job, 1, worker), complete(job, 1)];
    leader.commit(&changes, &outcomes([(job, 1, outcome)])).await.expect("commits");
}

pub fn ready(job: i64) -> Change {
    Change::SetJobs { jobs: vec![JobId(job)], state: taskvec_model::state::JobState::Ready, reason: None }
}

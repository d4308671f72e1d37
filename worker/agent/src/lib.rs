//! The inside of a worker process: it keeps a session with the server, computes the jobs that the server assigns, and
//! makes sure that no finished work is lost on the way back.
//!
//! [`agent`](self) is organised around one decider (`agent.rs`) that hears from the connection (`link.rs`), from the
//! attempts (`attempt.rs`) and from the operating system. An attempt fetches its inputs (`blobs.rs`, `cache.rs`) and its
//! model (`models.rs`), computes in a slot, alone or with others (`pack.rs`, `slots.rs`, `sink.rs`), uploads its checkpoints meanwhile and leaves its
//! outcome in the `spool.rs`, where it stays until the server has answered. Losing the connection changes nothing for what
//! is being computed.
//!
//! A worker on a data folder whose last process was killed takes over that process' identity and unconfirmed outcomes.

mod agent;
mod attempt;
mod blobs;
mod cache;
mod config;
mod connect;
mod control;
mod cores;
mod data_dir;
mod error;
mod execute;
mod link;
mod log;
mod models;
mod pack;
mod phase;
mod sink;
mod slots;
mod spool;

pub use config::{Backoff, Secret, WorkerConfig, host, machine_bytes, usable};
pub use error::AgentError;
pub use execute::{Execute, Science};
pub use taskvec_science::prepare_process;

use crate::{
    agent::Agent, attempt::Workshop, blobs::Blobs, cache::Cache, connect::Server, cores::Claim, data_dir::DataDir,
    link::Link, slots::Slots, spool::Spool,
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinSet,
};

/// Events between the connection and the decider.
const EVENTS: usize = 16;

/// Works until the server drains this worker or `shutdown` resolves, then leaves politely: training is handed over,
/// other jobs finish within the grace time, everything is reported.
pub async fn run(config: WorkerConfig, shutdown: impl Future<Output = ()>) -> Result<(), AgentError> {
    let science = Science::on(config.device()?);
    run_with(config, Arc::new(science), shutdown, std::future::pending()).await
}

/// As [`run`], leaving politely at the first SIGTERM or SIGINT (or when `leave` resolves) and at once at the second.
pub async fn run_until_signalled(config: WorkerConfig, leave: impl Future<Output = ()>) -> Result<(), AgentError> {
    let science = Science::on(config.device()?);
    let refused = |e: std::io::Error| AgentError::System(format!("no signal handler: {e}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(refused)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(refused)?;
    let (count, seen) = watch::channel(0_u32);
    let counting = async {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            count.send_modify(|n| *n += 1);
        }
    };
    let first = async {
        tokio::select! {
            () = at_least(seen.clone(), 1) => {}
            () = leave => {}
        }
    };
    tokio::select! {
        result = run_with(config, Arc::new(science), first, at_least(seen.clone(), 2)) => result,
        () = counting => Ok(()),
    }
}

async fn at_least(mut seen: watch::Receiver<u32>, wanted: u32) {
    let _ = seen.wait_for(|n| *n >= wanted).await;
}

/// As [`run`], with a choice of what computes, and of a second, impatient request to leave: then what runs is given
/// back as it is.
pub async fn run_with(
    config: WorkerConfig,
    execute: Arc<dyn Execute>,
    leave: impl Future<Output = ()>,
    leave_now: impl Future<Output = ()>,
) -> Result<(), AgentError> {
    config.check()?;
    let server = Server::new(&config)?;
    let dir = DataDir::open(&config.data_dir)?;
    // Held until this function returns.
    let (_claim, threads) = claim_threads(&config)?;
    let slots = config.slots.min(threads);
    if slots < config.slots {
        tracing::warn!("only {threads} CPU cores are free: {slots} slots instead of {}", config.slots);
    }
    let threads_per_slot = threads / slots;
    slots::warn_of_environment(threads_per_slot);
    let (spool, spooled) = Spool::open(&dir.spool())?;
    let cache = Cache::open(&dir.cache(), config.cache_bytes)?;
    let workshop = Workshop {
        name: config.name.clone(),
        blobs: Blobs::new(server.blobs(), cache, config.backoff),
        slots: Slots::new(slots, threads_per_slot)?,
        spool,
        execute,
    };
    let agent = Agent::new(&config, dir, workshop, spooled, (slots, threads_per_slot))?;
    let (events, heard) = mpsc::channel(EVENTS);
    let link = Link { server, backoff: config.backoff, fail_fast: config.fail_fast, events };
    // A set ends its tasks when it is dropped, however this function is left.
    let mut linked = JoinSet::new();
    linked.spawn(link.run());
    agent.work(heard, leave, leave_now).await
}

fn claim_threads(config: &WorkerConfig) -> Result<(Option<Claim>, usize), AgentError> {
    if let Some(threads) = config.threads {
        return Ok((None, threads));
    }
    let cores = std::thread::available_parallelism()
        .map_err(|e| AgentError::System(format!("the number of CPU cores is unknown ({e}); say it with --threads")))?;
    let claim = Claim::free_cores(&cores::machine_folder(), cores.get())?;
    let count = claim.count();
    Ok((Some(claim), count))
}

/// A lock that a panic elsewhere does not spoil: what it guards is whole between any two statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

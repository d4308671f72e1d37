//! `taskvec worker start|list|drain`.

use crate::{
    args::{Global, Id, WorkerCommand, WorkerStart},
    client::{Address, Client},
    config::{self, Target},
    error::CliError,
    stack::Stack,
};
use std::path::{Path, PathBuf};
use taskvec_agent::{Secret, WorkerConfig};
use taskvec_wire::pb;
use tokio::io::AsyncReadExt;

pub async fn run(global: &Global, args: WorkerCommand) -> Result<(), CliError> {
    match args {
        WorkerCommand::Start(args) => start(global, args).await,
        WorkerCommand::List(args) => {
            let client = Client::connect(global).await?;
            let done = super::list(&client, "workers", args).await;
            client.close().await.and(done)
        }
        WorkerCommand::Drain { id } => {
            let client = Client::connect(global).await?;
            let done = drain(&client, id).await;
            client.close().await.and(done)
        }
    }
}

async fn drain(client: &Client, id: Id) -> Result<(), CliError> {
    let Id::Number(worker_id) = id else {
        return Err(CliError::Usage("name the worker by its number: `taskvec worker list` shows it".to_owned()));
    };
    client.admin().drain_worker(pb::WorkerRequest { worker_id }).await.map_err(|s| client.fault(s))?;
    println!("worker {worker_id} finishes what it has and leaves");
    Ok(())
}

async fn start(global: &Global, args: WorkerStart) -> Result<(), CliError> {
    let (address, data) = match config::target(global)? {
        Target::Address(address) => (address, None),
        Target::Folder(data) => (of_folder(&data)?, Some(data)),
    };
    let name = args.name.unwrap_or_else(|| format!("{}-{}", taskvec_agent::host(), std::process::id()));
    // Without a folder of its own the worker keeps nothing beyond its end.
    let temporary = args.scratch.is_none().then(|| scratch(data.as_deref(), &name));
    let folder = args.scratch.or_else(|| temporary.clone()).unwrap_or_default();
    let mut worker = WorkerConfig::new(address.url, Secret::new(address.token), folder);
    worker.name = name;
    worker.tls_ca = address.tls_ca;
    worker.slots = args.slots.map_or(args.device.len(), |slots| slots as usize);
    worker.devices = args.device;
    worker.stack = args.stacking.stack;
    worker.stack_bytes = args.stacking.stack_memory;
    worker.threads = args.threads.map(|n| n as usize);
    let parent_is_gone = async move {
        match args.exit_with_parent {
            true => input_has_ended().await,
            false => std::future::pending().await,
        }
    };
    let left = taskvec_agent::run_until_signalled(worker, parent_is_gone).await;
    if let (Ok(()), Some(folder)) = (&left, temporary) {
        // It may never have been made.
        let _ = std::fs::remove_dir_all(folder);
    }
    Ok(left?)
}

fn of_folder(data: &Path) -> Result<Address, CliError> {
    Stack::running(data).ok_or_else(|| {
        CliError::Usage(format!("no server runs on {0}: start it with `taskvec up --data {0}`", data.display()))
    })
}

fn scratch(data: Option<&Path>, name: &str) -> PathBuf {
    match data {
        Some(data) => data.join("workers").join(name),
        None => std::env::temp_dir().join("taskvec").join(name),
    }
}

/// Standard input ends when the process that holds its other end does.
async fn input_has_ended() {
    let mut input = tokio::io::stdin();
    let mut byte = [0];
    while let Ok(1..) = input.read(&mut byte).await {}
}

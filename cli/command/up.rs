//! `taskvec up`: the local stack, kept running.

use crate::{
    args::{Global, Up},
    config::DEFAULT_DATA,
    error::CliError,
    stack::{Options, Stack},
};
use std::path::{Path, PathBuf};
use tokio::signal::unix::{SignalKind, signal};

pub async fn run(global: &Global, args: Up) -> Result<(), CliError> {
    let data = global.data.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_DATA));
    let mut options = Options::new(args.workers, args.device, args.stacking)?;
    options.listen = args.listen;
    let stack = Stack::start(&data, options).await?;
    println!("{}", how_to_reach(&stack, &data));
    interrupted().await?;
    eprintln!("taskvec: stopping …");
    stack.stop().await
}

pub fn how_to_reach(stack: &Stack, data: &Path) -> String {
    format!(
        "The stack is up at {url}.\n  here:       taskvec --data {data} sweep list\n  elsewhere:  TASKVEC_SERVER={url} \
         TASKVEC_TOKEN=$(cat {data}/token) taskvec sweep list\nCtrl-C stops it; nothing is lost.",
        url = stack.address().url,
        data = data.display(),
    )
}

/// Ctrl-C or SIGTERM.
pub async fn interrupted() -> Result<(), CliError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(CliError::io("SIGTERM"))?;
    tokio::select! {
        done = tokio::signal::ctrl_c() => done.map_err(CliError::io("SIGINT")),
        _ = terminate.recv() => Ok(()),
    }
}

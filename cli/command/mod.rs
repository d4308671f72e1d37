//! One file per command.

pub mod checkpoint;
pub mod completions;
pub mod job;
pub mod local;
pub mod model;
pub mod report;
pub mod run;
pub mod server;
pub mod sql;
pub mod sweep;
pub mod up;
pub mod worker;

use crate::{
    args::ListArgs,
    client::Client,
    error::CliError,
    output::{self, Format},
};
use taskvec_model::{
    state::{JobState, SweepState, WorkerState},
    table::Table,
};
use taskvec_wire::pb;

/// Prints a named listing, narrowed by the common flags.
async fn list(client: &Client, listing: &str, args: ListArgs) -> Result<(), CliError> {
    let mut request = pb::ListRequest {
        listing: listing.to_owned(),
        state: args.state.clone().unwrap_or_default(),
        limit: args.limit,
        ..Default::default()
    };
    if let Some(id) = args.sweep {
        request.sweep_id = client.sweep_id(id).await?;
    }
    if let Some(id) = args.run {
        request.run_id = client.run_id(id).await?;
    }
    known_state(listing, &request.state)?;
    let mut table = client.list(request).await?;
    if args.out.format == Format::Table {
        // A full configuration does not fit a line; `show` and `-o json` have it.
        without(&mut table, "spec");
    }
    if table.rows.len() as u64 == u64::from(args.limit) {
        eprintln!("taskvec: the first {} rows; --limit shows more", args.limit);
    }
    output::print(&table, args.out.format).map_err(CliError::io("stdout"))
}

/// A misspelt state would quietly match nothing.
fn known_state(listing: &str, state: &str) -> Result<(), CliError> {
    let names: Vec<&str> = match listing {
        "sweeps" => SweepState::ALL.iter().map(|s| s.as_str()).collect(),
        "jobs" => JobState::ALL.iter().map(|s| s.as_str()).collect(),
        "workers" => WorkerState::ALL.iter().map(|s| s.as_str()).collect(),
        "runs" => vec!["waiting", "running", "done", "failed", "cancelled"],
        _ => Vec::new(),
    };
    if state.is_empty() || names.contains(&state) {
        return Ok(());
    }
    Err(CliError::Usage(match names.is_empty() {
        true => format!("{listing} have no state to choose by"),
        false => format!("`{state}` is not a state of {listing}; they are {}", names.join(", ")),
    }))
}

fn without(table: &mut Table, column: &str) {
    if let Some(i) = table.columns.iter().position(|c| c == column) {
        table.columns.remove(i);
        for row in &mut table.rows {
            row.remove(i);
        }
    }
}

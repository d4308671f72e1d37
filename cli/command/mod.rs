//! One file per command.

pub mod checkpoint;
pub mod completions;
pub mod job;
pub mod local;
pub mod report;
pub mod run;
pub mod server;
pub mod sql;
pub mod sweep;
pub mod up;
pub mod worker;

use crate::{args::ListArgs, client::Client, error::CliError, output};
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
    let table = client.list(request).await?;
    if table.rows.len() as u64 == u64::from(args.limit) {
        eprintln!("taskvec: the first {} rows; --limit shows more", args.limit);
    }
    output::print(&table, args.out.format).map_err(CliError::io("stdout"))
}

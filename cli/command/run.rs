//! `taskvec run list|show`.

use crate::{
    args::{Global, Id, RunCommand},
    client::Client,
    error::CliError,
    output::{self, Format},
};

pub async fn run(global: &Global, args: RunCommand) -> Result<(), CliError> {
    let client = Client::connect(global).await?;
    let done = match args {
        RunCommand::List(args) => super::list(&client, "runs", args).await,
        RunCommand::Show { id, out } => show(&client, id, out.format).await,
    };
    client.close().await.and(done)
}

async fn show(client: &Client, id: Id, format: Format) -> Result<(), CliError> {
    let id = client.run_id(id).await?;
    let table = client.sql(&format!("SELECT * FROM results.runs WHERE run_id = {id}")).await?;
    let row = table.rows.into_iter().next().ok_or_else(|| CliError::Usage(format!("there is no run {id}")))?;
    let facts: Vec<(&str, serde_json::Value)> = table.columns.iter().map(String::as_str).zip(row).collect();
    output::print_facts(&facts, format).map_err(CliError::io("stdout"))
}

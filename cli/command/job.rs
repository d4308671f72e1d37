//! `taskvec job list|explain|logs|retry`.

use crate::{
    args::{Global, Id, JobCommand},
    client::Client,
    error::CliError,
    output::{self, Format},
};
use taskvec_wire::pb;

pub async fn run(global: &Global, args: JobCommand) -> Result<(), CliError> {
    let client = Client::connect(global).await?;
    let done = dispatch(&client, args).await;
    client.close().await.and(done)
}

async fn dispatch(client: &Client, args: JobCommand) -> Result<(), CliError> {
    match args {
        JobCommand::List(args) => super::list(client, "jobs", args).await,
        JobCommand::Explain { id } => {
            let job = request(client, id).await?;
            let reply = client.sweeps().explain_job(job).await.map_err(|s| client.fault(s))?;
            println!("job {} {}", job.job_id, reply.into_inner().text);
            Ok(())
        }
        JobCommand::Logs { id, out } => logs(client, id, out.format).await,
        JobCommand::Retry { id } => {
            let job = request(client, id).await?;
            client.sweeps().retry_job(job).await.map_err(|s| client.fault(s))?;
            println!("job {} will be tried again", job.job_id);
            Ok(())
        }
    }
}

async fn request(client: &Client, id: Id) -> Result<pb::JobRequest, CliError> {
    Ok(pb::JobRequest { job_id: client.job_id(id).await? })
}

async fn logs(client: &Client, id: Id, format: Format) -> Result<(), CliError> {
    let job_id = client.job_id(id).await?;
    let request = pb::ListRequest { listing: "job_logs".into(), job_id, limit: 1000, ..Default::default() };
    let table = client.list(request).await?;
    if format != Format::Table {
        return output::print(&table, format).map_err(CliError::io("stdout"));
    }
    if table.rows.is_empty() {
        // An unknown job has no attempts either, and is refused here.
        client.sweeps().explain_job(pb::JobRequest { job_id }).await.map_err(|s| client.fault(s))?;
        println!("job {job_id} has no attempts yet");
    }
    for row in &table.rows {
        for (column, value) in table.columns.iter().zip(row).filter(|(_, v)| !v.is_null()) {
            match value.as_str() {
                Some(text) if column == "log" => println!("{text}"),
                Some(text) => println!("{column}: {text}"),
                None => println!("{column}: {value}"),
            }
        }
        println!();
    }
    Ok(())
}

//! `taskvec sql`: read-only queries of the result views.

use crate::{
    args::{Global, Sql},
    client::Client,
    error::CliError,
    output::{self, Format},
};
use taskvec_wire::pb;

pub async fn run(global: &Global, args: Sql) -> Result<(), CliError> {
    let client = Client::connect(global).await?;
    let done = match args.query {
        Some(query) => query_table(&client, args.out.format, &query).await,
        None => url(&client).await,
    };
    client.close().await.and(done)
}

async fn query_table(client: &Client, format: Format, query: &str) -> Result<(), CliError> {
    output::print(&client.sql(query).await?, format).map_err(CliError::io("stdout"))
}

async fn url(client: &Client) -> Result<(), CliError> {
    let reply = client.queries().sql_url(pb::Empty {}).await.map_err(|s| client.fault(s))?.into_inner();
    println!("{}", reply.url);
    if client.is_temporary() {
        eprintln!("taskvec: this database stops with this command; `taskvec up` keeps it running");
    }
    Ok(())
}

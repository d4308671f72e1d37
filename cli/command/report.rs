//! `taskvec report`: a sweep's summary and pictures as files.

use crate::{
    args::{Global, Report},
    client::Client,
    error::CliError,
    report,
};

pub async fn run(global: &Global, args: Report) -> Result<(), CliError> {
    let client = Client::connect(global).await?;
    let done = write(&client, &args).await;
    client.close().await.and(done)
}

async fn write(client: &Client, args: &Report) -> Result<(), CliError> {
    let sweep = client.sweep_id(args.id).await?;
    let found = report::collect(client, sweep).await?;
    println!("{}", report::summary(&found));
    for path in report::write(&found, &args.dir)? {
        println!("{}", path.display());
    }
    Ok(())
}

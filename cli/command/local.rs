//! `taskvec local`: a sweep on this machine, from nothing to its results.

use super::{sweep, up};
use crate::{
    args::{Global, Id, Local},
    client::{Address, Client},
    config::DEFAULT_DATA,
    error::CliError,
    hub, live, report,
    stack::{Options, Stack},
};
use std::{
    path::{Path, PathBuf},
    time::Instant,
};
use taskvec_model::plan::Plan;

pub async fn run(global: &Global, args: Local) -> Result<(), CliError> {
    let (yaml, plan) = sweep::read(&args.sweep)?;
    fetched(plan.clone()).await?;
    let data = global.data.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_DATA));
    let options = Options::new(args.workers, args.device.clone(), args.stacking)?;
    eprintln!("taskvec: starting the database, the server and {} workers in {} …", options.workers, data.display());
    let mut stack = Stack::start(&data, options).await?;
    let how = up::how_to_reach(&stack, &data);
    let worked = tokio::select! {
        worked = work(stack.address(), &args, (yaml, &plan), &data, &how) => worked,
        () = stack.out_of_workers() => Err(CliError::Failed(format!(
            "every worker died again and again; their logs are in {}",
            data.join("logs").display()
        ))),
        interrupted = up::interrupted() => interrupted.and(Err(CliError::Failed(format!(
            "interrupted; all that was finished is kept: `taskvec local {} --data {}` goes on from there",
            args.sweep.display(),
            data.display()
        )))),
    };
    eprintln!("taskvec: stopping …");
    stack.stop().await.and(worked)
}

/// Models of the hub that the sweep names and that are not here. This may take long, and needs no stack.
async fn fetched(plan: Plan) -> Result<(), CliError> {
    let fetching = tokio::task::spawn_blocking(move || hub::fetch_missing(&plan));
    fetching.await.unwrap_or_else(|e| Err(CliError::Failed(format!("fetching models ended early: {e}"))))
}

async fn work(address: Address, args: &Local, sweep: (String, &Plan), data: &Path, how: &str) -> Result<(), CliError> {
    let client = Client::at(address).await?.of(data);
    let began = Instant::now();
    let sweep_id = submit_or_continue(&client, &args.sweep, sweep).await?;
    let outcome = live::watch(&client, sweep_id).await;
    let found = report::collect(&client, sweep_id).await?;
    println!("{}\n", report::summary(&found));
    let dir = data.join("report").join(format!("sweep-{sweep_id}"));
    let written = report::write(&found, &dir)?;
    println!("{}", next_steps(&written, data, sweep_id, &found));
    let last = outcome?;
    let total: u32 = last.jobs.iter().sum();
    match total - last.cached.min(total) {
        0 => println!("\nEvery result was there already: nothing was computed."),
        new => println!("\n{new} jobs computed in {}.", live::span(began.elapsed().as_secs_f64())),
    }
    if args.keep {
        println!("\n{how}");
        up::interrupted().await?;
    }
    Ok(())
}

/// An interrupted `local` left its sweep unfinished: the same file goes on with that one.
async fn submit_or_continue(client: &Client, file: &Path, (yaml, plan): (String, &Plan)) -> Result<i64, CliError> {
    let spec = plan.spec.to_string().replace('\'', "''");
    let unfinished = format!(
        "SELECT max(sweep_id) FROM results.sweeps WHERE state IN ('active', 'paused') AND spec = '{spec}'::jsonb"
    );
    let found = client.sql(&unfinished).await?;
    if let Some(id) = found.rows.first().and_then(|row| row.first()?.as_i64()) {
        eprintln!("taskvec: going on with sweep {id}");
        return client.sweep_id(Id::Number(id)).await;
    }
    let reply = sweep::submit(client, file, yaml, 0).await?;
    eprintln!("taskvec: sweep {}: {} runs, {} jobs, {} cached", reply.sweep_id, reply.runs, reply.jobs, reply.cached);
    Ok(reply.sweep_id)
}

fn next_steps(written: &[PathBuf], data: &Path, sweep: i64, found: &report::Findings) -> String {
    let files: Vec<String> = written.iter().map(|p| format!("  {}", p.display())).collect();
    let data = data.display();
    let language = found.natural.first().map(|state| state.run_id);
    let run = found.runs.first().map(|run| run.run_id).or(language).unwrap_or(1);
    format!(
        "Written:\n{}\nLook further:\n  taskvec --data {data} run list --sweep {sweep}\n  \
         taskvec --data {data} sql \"SELECT step, layer, site, avg(value) AS td FROM results.td WHERE run_id = {run} \
         GROUP BY 1, 2, 3 ORDER BY 1, 2, 3\"\n  taskvec --data {data} checkpoint list --run {run}\n  \
         taskvec --data {data} sql --url     # for psql, pandas, Grafana",
        files.join("\n")
    )
}

//! `taskvec`: the local stack, the server, the worker and the client, in one program.

mod args;
mod client;
mod command;
mod config;
mod error;
mod files;
mod hub;
mod live;
mod output;
mod report;
mod stack;

use args::{Cli, Command};
use clap::Parser;
use error::CliError;
use std::{io::IsTerminal, process::ExitCode};

fn main() -> ExitCode {
    let cli = Cli::parse();
    if matches!(cli.command, Command::Worker(args::WorkerCommand::Start(_))) {
        // Before any thread exists: it changes the allocator and the environment.
        taskvec_agent::prepare_process();
    }
    log_to_stderr(&cli);
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("taskvec: cannot start: {e}");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(run(cli));
    // A thread that still reads standard input cannot be interrupted and must not keep the process.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("taskvec: {e}");
            ExitCode::from(e.exit_code())
        }
    }
}

async fn run(cli: Cli) -> Result<(), CliError> {
    let global = &cli.global;
    match cli.command {
        Command::Local(args) => command::local::run(global, args).await,
        Command::Up(args) => command::up::run(global, args).await,
        Command::Server(args) => command::server::run(global, args).await,
        Command::Worker(args) => command::worker::run(global, args).await,
        Command::Sweep(args) => command::sweep::run(global, args).await,
        Command::Run(args) => command::run::run(global, args).await,
        Command::Job(args) => command::job::run(global, args).await,
        Command::Checkpoint(args) => command::checkpoint::run(global, args).await,
        Command::Model(command) => command::model::run(command),
        Command::Sql(args) => command::sql::run(global, args).await,
        Command::Report(args) => command::report::run(global, args).await,
        Command::Completions { shell } => {
            command::completions::run(shell);
            Ok(())
        }
    }
}

/// Results go to stdout, logs to stderr: warnings, unless `-v` or `RUST_LOG` ask for more. Long-running roles say more.
fn log_to_stderr(cli: &Cli) {
    let service = matches!(cli.command, Command::Server(_) | Command::Worker(args::WorkerCommand::Start(_)));
    let level = match (cli.global.verbose, service) {
        (0, false) => "warn",
        (0, true) | (1, _) => "info,sqlx=warn",
        _ => "debug,h2=info,hyper=info,tower=info,sqlx=info",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}

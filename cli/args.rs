//! The command line.

mod model;

pub use model::{Float, ModelCommand, ModelFetch, ModelForward};

use crate::output::Format;
use clap::{Args, Parser, Subcommand};
use std::{net::SocketAddr, path::PathBuf, str::FromStr};

#[derive(Parser)]
#[command(
    name = "taskvec",
    version,
    about = "Study how in-context learning emerges in transformers: train, measure, compare, checkpoint by checkpoint",
    after_help = "Examples:
  taskvec local sweeps/quickstart.yaml          run a sweep on this machine, from nothing
  taskvec sweep plan sweeps/quickstart.yaml     what would it do? changes nothing
  taskvec --data .taskvec sql 'SELECT * FROM results.td WHERE run_id = 1 LIMIT 5'
Exit codes: 0 done, 1 failed work, 2 wrong usage or invalid sweep, 3 server unreachable.",
    propagate_version = true
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Args)]
pub struct Global {
    /// The server, as http://HOST:PORT or https://HOST:PORT
    #[arg(long, global = true, env = "TASKVEC_SERVER", value_name = "URL", help_heading = "Connection")]
    pub server: Option<String>,
    /// The server's token (better given as TASKVEC_TOKEN: other users see command lines)
    #[arg(long, global = true, env = "TASKVEC_TOKEN", hide_env_values = true, help_heading = "Connection")]
    pub token: Option<String>,
    /// Certificate authority (PEM) that signed the server's certificate
    #[arg(long, global = true, env = "TASKVEC_TLS_CA", value_name = "FILE", help_heading = "Connection")]
    pub tls_ca: Option<PathBuf>,
    /// Folder of a local stack: its server is used, and started for this command when it is not running
    #[arg(long, global = true, env = "TASKVEC_DATA", value_name = "DIR", help_heading = "Connection")]
    pub data: Option<PathBuf>,
    /// More log lines on stderr (-v info, -vv debug); RUST_LOG refines
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

#[derive(Subcommand)]
pub enum Command {
    /// Run a sweep on this machine: database, server, workers, progress and results
    #[command(after_help = "Examples:
  taskvec local sweeps/quickstart.yaml
  taskvec local sweeps/laptop.yaml --data ~/icl --workers 4
The same file again computes nothing that is already stored. Ctrl-C keeps all that was finished;
the same command goes on from there.")]
    Local(Local),
    /// Keep a local stack running: database, server and workers, without a sweep
    Up(Up),
    /// Run the server alone
    #[command(subcommand)]
    Server(ServerCommand),
    /// Run, list and drain workers
    #[command(subcommand)]
    Worker(WorkerCommand),
    /// Plan, submit and steer sweeps
    #[command(subcommand)]
    Sweep(SweepCommand),
    /// Look at runs
    #[command(subcommand)]
    Run(RunCommand),
    /// Look at jobs
    #[command(subcommand)]
    Job(JobCommand),
    /// List, download and clean up checkpoints
    #[command(subcommand)]
    Checkpoint(CheckpointCommand),
    /// Run models by hand
    #[command(subcommand)]
    Model(ModelCommand),
    /// Query the result views (schema `results`), read-only
    #[command(after_help = "Examples:
  taskvec sql 'SELECT step, layer, avg(value) AS td FROM results.td WHERE run_id = 1 GROUP BY 1, 2 ORDER BY 1, 2'
  taskvec sql --url                   a connection string for psql, pandas, Grafana
  taskvec sql -o json 'SELECT * FROM results.sweeps'")]
    Sql(Sql),
    /// Write a sweep's summary and pictures
    #[command(after_help = "Example:\n  taskvec report last -o report")]
    Report(Report),
    /// Print a completion script for your shell
    #[command(after_help = "Example:\n  taskvec completions bash > ~/.local/share/bash-completion/completions/taskvec")]
    Completions { shell: clap_complete::Shell },
}

#[derive(Args)]
pub struct Local {
    /// The sweep file
    pub sweep: PathBuf,
    /// Worker processes; the cores are divided among them. Default: 2, or one for each GPU
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub workers: Option<u32>,
    /// What the workers compute on, in turn: cpu, or GPUs by number as cuda:0 or cuda:0,1
    #[arg(long, default_value = "cpu", value_delimiter = ',')]
    pub device: Vec<String>,
    #[command(flatten)]
    pub stacking: Stacking,
    /// Stay up after the sweep, until Ctrl-C
    #[arg(long)]
    pub keep: bool,
}

#[derive(Args)]
pub struct Up {
    /// Worker processes; the cores are divided among them. Default: 2, or one for each GPU
    #[arg(long, value_parser = clap::value_parser!(u32).range(0..=256))]
    pub workers: Option<u32>,
    /// What the workers compute on, in turn: cpu, or GPUs by number as cuda:0 or cuda:0,1
    #[arg(long, default_value = "cpu", value_delimiter = ',')]
    pub device: Vec<String>,
    #[command(flatten)]
    pub stacking: Stacking,
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:7420")]
    pub listen: SocketAddr,
}

/// Several runs in one slot.
#[derive(Args, Clone, Copy)]
pub struct Stacking {
    /// Runs of one shape that a worker trains together in one slot; 1: each has a slot for itself
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub stack: u32,
    /// Memory that the runs of one slot may take together, as 512M or 8G; default: an equal part of half the machine's,
    /// or of nine tenths of what is free on a GPU
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    pub stack_memory: Option<u64>,
}

#[derive(Subcommand)]
pub enum ServerCommand {
    /// Start the server and stay in the foreground
    #[command(after_help = "Examples:
  taskvec server start --data /srv/taskvec
  DATABASE_URL=postgres://… taskvec server start --listen 0.0.0.0:7420 --tls-cert cert.pem --tls-key key.pem
The token is read from TASKVEC_TOKEN, else from DATA/token, which is made at the first start.")]
    Start(ServerStart),
}

#[derive(Args)]
pub struct ServerStart {
    /// Where to listen; anything but loopback needs TLS
    #[arg(long, default_value = "127.0.0.1:7420")]
    pub listen: SocketAddr,
    /// An existing PostgreSQL (15 or newer); without it one is run inside the data folder
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub database_url: Option<String>,
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Listen beyond loopback without TLS: the token then crosses the network in the clear
    #[arg(long)]
    pub insecure_plaintext: bool,
    /// Seconds after which a silent worker's attempts are given to others
    #[arg(long, default_value_t = 20.0, value_parser = seconds)]
    pub lease: f64,
    /// Failures of a job before it is given up
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub retries: u32,
}

#[derive(Subcommand)]
pub enum WorkerCommand {
    /// Start a worker and stay in the foreground
    #[command(after_help = "Examples:
  TASKVEC_TOKEN=… taskvec worker start --server https://head:7420 --tls-ca ca.pem
  taskvec worker start --data .taskvec --slots 2
  taskvec worker start --data .taskvec --device cuda:0 --stack 8
  taskvec worker start --data .taskvec --device cuda:0,1
SIGTERM lets it finish or hand over its work first; a second one leaves at once.")]
    Start(WorkerStart),
    /// List workers
    List(ListArgs),
    /// Let a worker finish what it has and leave
    Drain { id: Id },
}

#[derive(Args)]
pub struct WorkerStart {
    /// Name shown in tables; default HOST-PID
    #[arg(long)]
    pub name: Option<String>,
    /// What to compute on: cpu, cuda:N for GPU number N (from 0), or several GPUs, cuda:0,1
    #[arg(long, default_value = "cpu", value_delimiter = ',')]
    pub device: Vec<String>,
    /// Jobs at a time; default: one, or one for each GPU
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub slots: Option<u32>,
    #[command(flatten)]
    pub stacking: Stacking,
    /// CPU threads in all; default: every core that no other worker of this machine holds
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub threads: Option<u32>,
    /// Folder for its cache and spool; default: a folder of its own under the data folder or the temporary folder
    #[arg(long, value_name = "DIR")]
    pub scratch: Option<PathBuf>,
    /// Leave when standard input closes: how a parent process keeps its workers from outliving it
    #[arg(long, hide = true)]
    pub exit_with_parent: bool,
}

#[derive(Subcommand)]
pub enum SweepCommand {
    /// Validate a sweep file and show runs, jobs, cache hits and estimated work; changes nothing
    Plan {
        file: PathBuf,
        #[command(flatten)]
        out: Out,
    },
    /// Submit a sweep file
    Submit {
        file: PathBuf,
        /// Wait until it has ended
        #[arg(long)]
        wait: bool,
        /// Higher goes first
        #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
        priority: i32,
        #[command(flatten)]
        out: Out,
    },
    /// List sweeps
    List(ListArgs),
    /// Show one sweep: jobs by state, runs, progress
    Status {
        id: Id,
        #[command(flatten)]
        out: Out,
    },
    /// Let running jobs end and start no new ones
    Pause { id: Id },
    /// Go on after a pause
    Resume { id: Id },
    /// Stop a sweep for good; what was finished stays
    Cancel { id: Id },
    /// Try failed, skipped and cancelled jobs again
    Retry { id: Id },
    /// Change a sweep's priority; higher goes first
    Priority {
        id: Id,
        #[arg(allow_negative_numbers = true)]
        priority: i32,
    },
    /// Wait until a sweep has ended; exit code 1 when something failed
    Wait { id: Id },
}

#[derive(Subcommand)]
pub enum RunCommand {
    /// List runs
    List(ListArgs),
    /// Show one run with its full configuration
    Show {
        id: Id,
        #[command(flatten)]
        out: Out,
    },
}

#[derive(Subcommand)]
pub enum JobCommand {
    /// List jobs
    List(ListArgs),
    /// Say why a job is not running, or how it ended
    Explain { id: Id },
    /// Print the logs of a job's attempts
    Logs {
        id: Id,
        #[command(flatten)]
        out: Out,
    },
    /// Try a failed, skipped or cancelled job again
    Retry { id: Id },
}

#[derive(Subcommand)]
pub enum CheckpointCommand {
    /// List checkpoints
    List(ListArgs),
    /// Write a checkpoint as a safetensors file
    Download {
        id: Id,
        /// Where to; default checkpoint-ID.safetensors. Of a fine-tuned model also a folder, ending in `/`, which
        /// HuggingFace's PEFT loads
        #[arg(short = 'o', long = "output", value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Remove resume states and data that nothing needs any more
    Gc {
        /// Only say what would go
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        out: Out,
    },
}

#[derive(Args, Clone, Copy)]
pub struct Out {
    /// How to print
    #[arg(short = 'o', long = "output", value_enum, default_value_t = Format::Table)]
    pub format: Format,
}

/// Narrow a listing.
#[derive(Args)]
pub struct ListArgs {
    #[command(flatten)]
    pub out: Out,
    /// Only of this sweep
    #[arg(long)]
    pub sweep: Option<Id>,
    /// Only of this run
    #[arg(long)]
    pub run: Option<Id>,
    /// Only in this state
    #[arg(long)]
    pub state: Option<String>,
    /// At most this many rows
    #[arg(long, default_value_t = 1000)]
    pub limit: u32,
}

#[derive(Args)]
pub struct Sql {
    #[arg(required_unless_present = "url")]
    pub query: Option<String>,
    /// Print a connection string for the read-only role instead
    #[arg(long, conflicts_with = "query")]
    pub url: bool,
    #[command(flatten)]
    pub out: Out,
}

#[derive(Args)]
pub struct Report {
    pub id: Id,
    /// Folder for the files
    #[arg(short = 'o', long = "output", default_value = "report", value_name = "DIR")]
    pub dir: PathBuf,
}

/// An id, or `last`: the newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Id {
    Last,
    Number(i64),
}

impl FromStr for Id {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s.parse() {
            _ if s == "last" => Ok(Self::Last),
            Ok(n) if n > 0 => Ok(Self::Number(n)),
            _ => Err("an id is a positive whole number, or `last`".to_owned()),
        }
    }
}

/// A whole number, or one followed by K, M, G or T: powers of 1024.
fn bytes(text: &str) -> Result<u64, String> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let power = match unit {
        "" => Some(0),
        "K" => Some(10),
        "M" => Some(20),
        "G" => Some(30),
        "T" => Some(40),
        _ => None,
    };
    let size = power.zip(digits.parse::<u64>().ok()).and_then(|(power, n)| n.checked_mul(1 << power));
    size.filter(|n| *n > 0).ok_or_else(|| "a size is a whole number of bytes, or of K, M, G or T: 512M, 8G".to_owned())
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(s) if (0.1..=86_400.0).contains(&s) => Ok(s),
        _ => Err("a number of seconds from 0.1 to 86400".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_powers_of_1024() {
        assert_eq!(["7", "3K", "512M", "8G", "1T"].map(bytes), [7, 3 << 10, 512 << 20, 8 << 30, 1 << 40].map(Ok));
        for wrong in ["", "G", "8 G", "8g", "-1", "1.5G", "0", "99999999999T"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}

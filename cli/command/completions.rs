//! `taskvec completions SHELL`.

use crate::args::Cli;
use clap::CommandFactory;

pub fn run(shell: clap_complete::Shell) {
    clap_complete::generate(shell, &mut Cli::command(), "taskvec", &mut std::io::stdout());
}

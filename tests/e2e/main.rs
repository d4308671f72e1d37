//! End-to-end tests: the real program, real processes, a real Postgres, and faults.

mod cli_errors;
mod failures;
mod faults;
mod identical;
mod language;
mod local;
mod report;
mod sql;
mod support;
mod tls;

//! End-to-end tests: the real program, real processes, a real Postgres, and faults.

mod cli_errors;
mod failures;
#[path = "../../worker/hub/tests/fake/mod.rs"]
mod fake_hub;
mod faults;
mod forward;
mod gpu;
mod hub;
mod identical;
mod language;
mod local;
mod packs;
mod report;
mod sql;
mod support;
mod tls;

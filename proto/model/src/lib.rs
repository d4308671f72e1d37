//! The domain in plain Rust: identifiers, the run specification, jobs, states and metric rows.
//!
//! Every room speaks these types; none of them does IO, reads a clock or draws a random number.

pub mod id;
pub mod job;
pub mod metric;
mod names;
pub mod pack;
pub mod pattern;
pub mod plan;
pub mod schedule;
pub mod spec;
pub mod state;
pub mod table;

//! The server against a real PostgreSQL, with workers and clients that speak the real protocol.

#![allow(clippy::unwrap_used, reason = "tests, their helpers included")]

mod blobs;
mod common;
mod embedded_postgres;
mod faults;
mod packs;
mod security;
mod sweeps;

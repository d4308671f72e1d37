//! The server against a real PostgreSQL, with workers and clients that speak the real protocol.

mod blobs;
mod common;
mod embedded_postgres;
mod faults;
mod sweeps;

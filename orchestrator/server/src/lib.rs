//! The server: gRPC in front, PostgreSQL behind, and between them one driver that owns the scheduler's state.

mod auth;
mod config;
pub mod data_dir;
mod driver;
pub mod embedded_postgres;
mod error;
mod lifecycle;
mod secret;
mod service;

pub use config::{Database, ServerConfig, TlsFiles};
pub use error::ServerError;
pub use lifecycle::{RunningServer, start};
pub use secret::Secret;

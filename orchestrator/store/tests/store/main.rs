//! The store against a real PostgreSQL, every statement of it.

mod blobs;
mod commit;
mod fixture;
mod gc;
mod lead;
mod listing;
mod natural;
mod postgres;
mod reader;
mod submit;
mod tls;
mod views;

//! The worker against a server inside the test, with jobs inside the test.

#![allow(clippy::unwrap_used, reason = "the helpers of these tests are tests, too")]

mod blobs;
mod job;
mod leave;
mod packs;
mod server;
mod session;
mod worker;

//! The scheduler against exact expectations, and against random histories.

mod attempts;
mod build;
mod checks;
mod explain;
mod faults;
mod garbage;
mod packs;
mod placement;
mod restart;
mod store;
mod sweeps;
mod workers;

//! The scheduler: which job runs where, and what happens when something fails.
//!
//! A pure function over a state: [`step`] takes one [`Event`] and the time, changes the [`State`] and returns the
//! [`Effect`]s in order. No IO, no clock, no randomness, ordered maps only: the same events give the same decisions. The
//! caller commits all `Persist` effects in one transaction and sends only after that; if the commit fails, it throws the
//! state away and builds a new one from the store with [`State::new`].

mod effect;
mod event;
mod explain;
mod index;
mod invariant;
mod lease;
mod place;
mod retry;
mod state;
mod step;

pub use effect::{Effect, Message, Verdict};
pub use event::Event;
pub use explain::Explanation;
pub use state::{Config, Counts, State};
pub use step::step;

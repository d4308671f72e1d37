//! What the scheduler wants done, in order: persist, then send.

use taskvec_model::{
    id::{AttemptRef, WorkerId},
    schedule::Change,
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    Persist(Change),
    /// Only after every `Persist` that came before it is committed.
    Send(Message),
}

/// To a worker. One that is not connected misses it, and learns the same when it reconnects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// What is to run together in one slot.
    Assign { worker: WorkerId, attempts: Vec<AttemptRef> },
    /// The attempt's outcome is not wanted any more. Its slot may be given away before the worker has stopped it.
    Stop { worker: WorkerId, attempt: AttemptRef, reason: String },
    /// To Succeeded, Failed and Released: the worker may forget the attempt.
    Answer { worker: WorkerId, attempt: AttemptRef, verdict: Verdict },
    /// Take nothing new, finish or hand over what runs, then leave.
    Drain { worker: WorkerId },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Accepted,
    /// Nothing was stored, and why.
    Refused(String),
}

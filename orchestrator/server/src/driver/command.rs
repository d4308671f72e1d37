//! What the driver is asked to do. An answer that never comes (its sender was dropped) means: try again.

use super::outbox::{Outbox, SessionId};
use taskvec_model::{
    id::{AttemptRef, JobId, SweepId, WorkerId},
    job::{Failure, Progress},
    plan::Plan,
    schedule::Capacity,
};
use taskvec_store::{Outcome, Receipt, RequestId};
use tokio::sync::oneshot;
use tonic::Status;

pub(crate) type Answer<T> = oneshot::Sender<Result<T, Status>>;

pub(crate) enum Command {
    Submit(Box<Submission>, Answer<Receipt>),
    Control(SweepId, Control, Answer<()>),
    RetryJob {
        job: JobId,
        sweep: SweepId,
        answer: Answer<()>,
    },
    Explain(JobId, Answer<Option<String>>),
    Drain(WorkerId, Answer<()>),
    Connect(Connection),
    Worker {
        worker: WorkerId,
        session: SessionId,
        news: News,
    },
    /// After everything that was asked before.
    Shutdown,
}

pub(crate) struct Submission {
    pub plan: Plan,
    pub yaml: String,
    pub priority: i32,
    pub request: Option<RequestId>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Control {
    Pause,
    Resume,
    Cancel,
    Retry,
    Priority(i32),
}

/// A worker's Hello, after its registration.
pub(crate) struct Connection {
    pub worker: WorkerId,
    pub capacity: Capacity,
    pub attempts: Vec<AttemptRef>,
    pub outbox: Outbox,
    pub answer: Answer<()>,
}

/// What a session brings.
pub(crate) enum News {
    Heartbeat(Vec<(AttemptRef, Progress)>),
    Ended {
        attempt: AttemptRef,
        how: Ended,
        outcome: Box<Outcome>,
    },
    Draining,
    Leaving,
    /// Its connection is gone.
    Lost,
}

pub(crate) enum Ended {
    Succeeded,
    Failed(Failure),
    Released,
}

//! The way to one connected worker: a bounded queue that the driver fills without waiting, and a task that empties it
//! into the connection, in order. What an attempt needs is read from the store here, off the driver's path.

use super::{
    Handle,
    command::{Command, Ended, News},
};
use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};
use taskvec_model::{
    id::{AttemptRef, JobId, WorkerId},
    job::{Assignment, Failure, Retry},
    state::AttemptState,
};
use taskvec_sched::{Message, Verdict};
use taskvec_store::{Store, StoreError};
use taskvec_wire::pb::{self, server_message::Message as Wire};
use tokio::{
    sync::{mpsc, oneshot},
    task::AbortHandle,
};
use tonic::Status;

/// A worker that leaves this many messages unread is dead or stuck: it is cut off, and reconnects if it can.
const QUEUE: usize = 4096;

/// Messages taken, and assignments read, at once.
const BATCH: usize = 64;

/// One connection of a worker, never two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SessionId(u64);

pub(crate) type ToWorker = mpsc::Sender<Result<pb::ServerMessage, Status>>;

/// The driver's end. Dropping it ends the session.
pub(crate) struct Outbox {
    pub session: SessionId,
    queue: mpsc::Sender<Item>,
    /// Dropped with the outbox: the session stops listening to its worker, too.
    open: Option<oneshot::Sender<()>>,
    sender: AbortHandle,
}

enum Item {
    Message(Message),
    Close(Status),
}

impl Outbox {
    /// An outbox that empties into `connection`, and the signal that it is gone.
    pub fn open(worker: WorkerId, connection: ToWorker, store: Store, driver: Handle) -> (Self, oneshot::Receiver<()>) {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let session = SessionId(NEXT.fetch_add(1, Ordering::Relaxed));
        let (queue, items) = mpsc::channel(QUEUE);
        let (open, closed) = oneshot::channel();
        let sender = tokio::spawn(Sender { worker, session, connection, store, driver }.run(items)).abort_handle();
        (Self { session, queue, open: Some(open), sender }, closed)
    }

    /// False: the queue is full or the connection is gone.
    pub fn send(&self, message: Message) -> bool {
        self.queue.try_send(Item::Message(message)).is_ok()
    }

    /// Ends the connection at once, unsent messages and all.
    pub fn cut(&mut self) {
        self.sender.abort();
        self.open = None;
    }

    /// Ends the connection with a reason.
    pub fn close(self, why: Status) {
        // A full queue ends without it.
        let _ = self.queue.try_send(Item::Close(why));
    }
}

struct Sender {
    worker: WorkerId,
    session: SessionId,
    connection: ToWorker,
    store: Store,
    driver: Handle,
}

impl Sender {
    async fn run(self, mut items: mpsc::Receiver<Item>) {
        let mut batch = Vec::with_capacity(BATCH);
        while items.recv_many(&mut batch, BATCH).await > 0 {
            let Ok(mut assignments) = self.assignments(&batch).await else {
                // The worker reconnects without these attempts, and they start anew.
                let _ = self.connection.send(Err(crate::error::try_again("the server lost its database"))).await;
                return;
            };
            for item in batch.drain(..) {
                let messages = match item {
                    Item::Close(why) => {
                        let _ = self.connection.send(Err(why)).await;
                        return;
                    }
                    Item::Message(message) => self.wire(message, &mut assignments).await,
                };
                for message in messages {
                    if self.connection.send(Ok(pb::ServerMessage { message: Some(message) })).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    async fn assignments(&self, batch: &[Item]) -> Result<Assignments, StoreError> {
        let jobs: Vec<JobId> = batch
            .iter()
            .filter_map(|item| match item {
                Item::Message(Message::Assign { attempts, .. }) => Some(attempts),
                _ => None,
            })
            .flatten()
            .map(|attempt| attempt.job)
            .collect();
        if jobs.is_empty() {
            return Ok(Assignments::new());
        }
        self.store.assignments(&jobs).await.inspect_err(|error| tracing::warn!(%error, "assignments cannot be read"))
    }

    async fn wire(&self, message: Message, assignments: &mut Assignments) -> Vec<Wire> {
        vec![match message {
            Message::Assign { attempts, .. } => {
                let mut starts = Vec::with_capacity(attempts.len());
                for attempt in attempts {
                    starts.extend(self.start(attempt, assignments.remove(&attempt.job)).await);
                }
                return taskvec_wire::assign(starts).into_iter().map(Wire::Assign).collect();
            }
            Message::Stop { attempt, reason, .. } => Wire::Stop(pb::Stop { attempt: Some(attempt.into()), reason }),
            Message::Answer { attempt, verdict, .. } => Wire::Answer(self.answer(attempt, verdict).await),
            Message::Drain { .. } => Wire::Drain(pb::Empty {}),
        }]
    }

    /// An attempt that cannot be given what it needs fails, with the reason; it does not hang.
    async fn start(&self, attempt: AttemptRef, found: Option<Result<Assignment, StoreError>>) -> Option<pb::Start> {
        let made = match found {
            Some(Ok(assignment)) => taskvec_wire::start(attempt, assignment).map_err(|e| e.to_string()),
            Some(Err(error)) => Err(error.to_string()),
            None => Err("the store does not know it".to_owned()),
        };
        match made {
            Ok(message) => Some(message),
            Err(why) => {
                let failure = Failure { retry: Retry::Never, reason: format!("cannot be started: {why}") };
                let how = Ended::Failed(failure);
                let news = News::Ended { attempt, how, outcome: Box::default() };
                let (worker, session) = (self.worker, self.session);
                // A driver that is gone takes the session with it.
                let _ = self.driver.send(Command::Worker { worker, session, news }).await;
                None
            }
        }
    }

    /// An outcome that is refused because it was stored before (the answer was lost on its way) counts as accepted.
    async fn answer(&self, attempt: AttemptRef, verdict: Verdict) -> pb::Answer {
        let (accepted, reason) = match verdict {
            Verdict::Accepted => (true, String::new()),
            Verdict::Refused(_) if self.succeeded(attempt).await => (true, "it was stored before".to_owned()),
            Verdict::Refused(reason) => (false, reason),
        };
        pb::Answer { attempt: Some(attempt.into()), accepted, reason }
    }

    async fn succeeded(&self, attempt: AttemptRef) -> bool {
        matches!(self.store.attempt_state(attempt).await, Ok(Some(AttemptState::Succeeded)))
    }
}

type Assignments = BTreeMap<JobId, Result<Assignment, StoreError>>;

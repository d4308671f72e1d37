//! A worker's session: Hello, then messages both ways until one side goes.

use super::{Context, Reply};
use crate::{
    config::millis,
    driver::{Command, Connection, Ended, News, Outbox, ToWorker},
    error::status,
};
use std::time::Duration;
use taskvec_model::{
    id::{AttemptRef, WorkerId},
    job::{Failure, Handover, Produced, Retry},
    schedule::Capacity,
};
use taskvec_store::{Outcome, StoreError, WorkerRecord};
use taskvec_wire::{
    VERSION, attempt,
    pb::{self, server_message, worker_message::Message, workers_server::Workers},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

const HELLO_WITHIN: Duration = Duration::from_secs(10);

pub(super) struct WorkerService(pub Context);

#[tonic::async_trait]
impl Workers for WorkerService {
    type SessionStream = Reply<pb::ServerMessage>;

    async fn session(
        &self,
        request: Request<Streaming<pb::WorkerMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut incoming = request.into_inner();
        let hello = timeout(HELLO_WITHIN, first(&mut incoming)).await;
        let hello = hello.map_err(|_| Status::deadline_exceeded("no Hello came"))??;
        check(&hello)?;
        let worker = self.0.store.register_worker(&record(&hello)).await.map_err(status)?;
        let (to_worker, messages) = mpsc::channel(64);
        let session = Session { context: self.0.clone(), worker, to_worker };
        // A task of its own: it outlives this call, and tells the driver of the end whatever happens.
        tokio::spawn(session.run(hello, incoming));
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }
}

async fn first(incoming: &mut Streaming<pb::WorkerMessage>) -> Result<pb::Hello, Status> {
    match incoming.message().await?.and_then(|message| message.message) {
        Some(Message::Hello(hello)) => Ok(hello),
        _ => Err(Status::invalid_argument("a session starts with Hello")),
    }
}

fn check(hello: &pb::Hello) -> Result<(), Status> {
    if hello.version != VERSION {
        return Err(Status::failed_precondition(format!(
            "this worker is version {}, the server is version {VERSION}: install the same on both, for results are \
             keyed by the code that made them",
            hello.version
        )));
    }
    if hello.slots == 0 || hello.stack == 0 {
        return Err(Status::invalid_argument("a worker has at least one slot, and takes at least one run into each"));
    }
    Ok(())
}

fn record(hello: &pb::Hello) -> WorkerRecord {
    WorkerRecord {
        name: hello.name.clone(),
        host: hello.host.clone(),
        devices: hello.devices.clone(),
        slots: hello.slots,
        threads_per_slot: hello.threads_per_slot,
        stack: hello.stack,
        pid: hello.pid,
        version: hello.version.clone(),
        nonce: hello.nonce,
    }
}

struct Session {
    context: Context,
    worker: WorkerId,
    to_worker: ToWorker,
}

impl Session {
    async fn run(self, hello: pb::Hello, mut incoming: Streaming<pb::WorkerMessage>) {
        let Self { context, worker, to_worker } = self;
        let welcome = pb::ServerMessage {
            message: Some(server_message::Message::Welcome(pb::Welcome {
                worker_id: worker.0,
                heartbeat_millis: u32::try_from(millis(context.heartbeat)).unwrap_or(u32::MAX),
                lease_millis: u32::try_from(millis(context.lease)).unwrap_or(u32::MAX),
            })),
        };
        if to_worker.send(Ok(welcome)).await.is_err() {
            return;
        }
        let driver = context.driver.clone();
        let (outbox, closed) = Outbox::open(worker, to_worker.clone(), context.store.clone(), driver.clone());
        let session = outbox.session;
        let attempts = hello.attempts.into_iter().map(Into::into).collect();
        let capacity = Capacity { slots: hello.slots, stack: hello.stack, stack_bytes: hello.stack_bytes };
        let connect = |answer| Command::Connect(Connection { worker, capacity, attempts, outbox, answer });
        if let Err(why) = driver.ask(connect).await {
            let _ = to_worker.send(Err(why)).await;
            return;
        }
        tracing::info!(%worker, name = hello.name, host = hello.host, slots = hello.slots, "a worker connected");
        let tell = |news| Command::Worker { worker, session, news };
        let end = tokio::select! {
            end = listen(&context, &mut incoming, |news| driver.send(tell(news))) => end,
            () = gone(closed) => Ok(()),
        };
        if let Err(why) = end {
            tracing::info!(%worker, reason = why.message(), "a worker's connection ended");
            // A malformed message is answered; a connection that is gone hears nothing.
            let _ = to_worker.try_send(Err(why));
        }
        let _ = driver.send(tell(News::Lost)).await;
    }
}

async fn gone(closed: oneshot::Receiver<()>) {
    let _ = closed.await;
}

async fn listen<F: Future<Output = Result<(), Status>>>(
    context: &Context,
    incoming: &mut Streaming<pb::WorkerMessage>,
    tell: impl Fn(News) -> F,
) -> Result<(), Status> {
    while let Some(message) = incoming.message().await? {
        let news = match message.message {
            Some(Message::Heartbeat(pb::Heartbeat { attempts })) => News::Heartbeat(
                attempts.into_iter().map(|a| Ok((attempt(a.attempt)?, a.progress()))).collect::<Result<_, Status>>()?,
            ),
            Some(Message::Finished(finished)) => {
                let about = attempt(finished.attempt)?;
                let produced = finished.produced.unwrap_or_default().try_into();
                checked(context, about, Ended::Succeeded, produced.map(|p| outcome(p, None, finished.log))).await?
            }
            Some(Message::Failed(failed)) => {
                let retry = if failed.retry { Retry::Allowed } else { Retry::Never };
                let how = Ended::Failed(Failure { retry, reason: failed.reason });
                let outcome = Box::new(outcome(Produced::default(), None, failed.log));
                News::Ended { attempt: attempt(failed.attempt)?, how, outcome }
            }
            Some(Message::Released(released)) => {
                let about = attempt(released.attempt)?;
                let handover = released.handover.map(Handover::try_from).transpose();
                let kept = handover.map(|handover| outcome(Produced::default(), handover, released.log));
                checked(context, about, Ended::Released, kept).await?
            }
            Some(Message::Draining(_)) => News::Draining,
            Some(Message::Leaving(_)) => News::Leaving,
            Some(Message::Hello(_)) => return Err(Status::invalid_argument("a session has one Hello")),
            // From a newer worker; its version would have been refused.
            None => return Err(Status::invalid_argument("an empty message")),
        };
        tell(news).await?;
    }
    Ok(())
}

fn outcome(produced: Produced, handover: Option<Handover>, log: String) -> Outcome {
    Outcome { produced, handover, log }
}

/// What cannot be stored fails its own attempt, before it comes near the others' transaction.
async fn checked(
    context: &Context,
    attempt: AttemptRef,
    how: Ended,
    outcome: Result<Outcome, taskvec_wire::BadMessage>,
) -> Result<News, Status> {
    let failed = |retry, reason: String, log| {
        let how = Ended::Failed(Failure { retry, reason });
        News::Ended { attempt, how, outcome: Box::new(Outcome { log, ..Outcome::default() }) }
    };
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(bad) => return Ok(failed(Retry::Never, bad.to_string(), String::new())),
    };
    match context.store.check_outcome(attempt, &outcome).await {
        Ok(()) => Ok(News::Ended { attempt, how, outcome: Box::new(outcome) }),
        Err(error @ StoreError::BadOutcome { .. }) => Ok(failed(Retry::Never, error.to_string(), outcome.log)),
        Err(error @ StoreError::MissingBlob { .. }) => Ok(failed(Retry::Allowed, error.to_string(), outcome.log)),
        Err(error) => Err(status(error)),
    }
}

//! The connection to the server: opened again and again, in a task of its own.

use crate::{
    config::Backoff,
    connect::{PATIENCE, Server, causes},
    error::AgentError,
};
use std::time::{Duration, Instant};
use taskvec_wire::pb::{ServerMessage, WorkerMessage, server_message};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

/// Messages on their way out.
const OUTGOING: usize = 16;

/// How often an unreachable server is mentioned.
const REMINDER: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub enum Event {
    /// A session is being opened. The first message must be Hello. Dropping the sender ends the session.
    Opened(mpsc::Sender<WorkerMessage>),
    /// The first of a session is Welcome.
    Message(Box<server_message::Message>),
    Closed,
    /// No further try can succeed.
    Fatal(AgentError),
}

pub struct Link {
    pub server: Server,
    pub backoff: Backoff,
    pub fail_fast: Option<Duration>,
    pub events: mpsc::Sender<Event>,
}

/// Nobody listens to events any more.
struct Gone;

enum Lost {
    Fatal(AgentError),
    Passing(String),
}

impl Link {
    /// Connects, speaks, and connects again, until a fatal error or until nobody listens.
    pub async fn run(self) {
        let started = Instant::now();
        let mut reached = false;
        let mut failures = 0;
        let mut mentioned: Option<Instant> = None;
        loop {
            let mut welcomed = false;
            let Ok(lost) = self.session(&mut welcomed).await else { return };
            if welcomed {
                (failures, reached, mentioned) = (0, true, None);
            }
            let reason = match lost {
                Lost::Fatal(error) => {
                    let _ = self.events.send(Event::Fatal(error)).await;
                    return;
                }
                Lost::Passing(reason) => reason,
            };
            if mentioned.is_none_or(|at| at.elapsed() >= REMINDER) {
                mention(&self.server.url, reached, &reason);
                mentioned = Some(Instant::now());
            }
            if let Some(after) = self.fail_fast.filter(|after| !reached && started.elapsed() >= *after) {
                let error = AgentError::Unreachable { url: self.server.url.clone(), after, reason };
                let _ = self.events.send(Event::Fatal(error)).await;
                return;
            }
            tokio::time::sleep(self.backoff.wait(failures)).await;
            failures += 1;
        }
    }

    async fn tell(&self, event: Event) -> Result<(), Gone> {
        self.events.send(event).await.map_err(|_| Gone)
    }

    /// One session, until it is lost.
    async fn session(&self, welcomed: &mut bool) -> Result<Lost, Gone> {
        let mut client = match self.server.workers().await {
            Ok(client) => client,
            Err(error) => return Ok(Lost::Passing(causes(&error))),
        };
        let (tx, rx) = mpsc::channel(OUTGOING);
        self.tell(Event::Opened(tx)).await?;
        let opening = async {
            let mut messages = client.session(ReceiverStream::new(rx)).await?.into_inner();
            let first = messages.message().await?;
            Ok((messages, first))
        };
        let lost = match tokio::time::timeout(PATIENCE, opening).await {
            Err(_) => Lost::Passing(format!("no answer to the greeting within {} s", PATIENCE.as_secs())),
            Ok(Err(status)) => self.judge(&status),
            Ok(Ok((messages, first))) => {
                *welcomed = first.is_some();
                self.listen(messages, first).await?
            }
        };
        self.tell(Event::Closed).await?;
        Ok(lost)
    }

    async fn listen(&self, mut messages: Streaming<ServerMessage>, first: Option<ServerMessage>) -> Result<Lost, Gone> {
        let mut next = Ok(first);
        loop {
            match next {
                Ok(Some(ServerMessage { message: Some(message) })) => {
                    self.tell(Event::Message(Box::new(message))).await?
                }
                Ok(Some(ServerMessage { message: None })) => tracing::warn!("the server sent an empty message"),
                Ok(None) => return Ok(Lost::Passing("the server ended the session".into())),
                Err(status) => return Ok(self.judge_later(&status)),
            }
            next = messages.message().await;
        }
    }

    fn judge(&self, status: &Status) -> Lost {
        self.server.fatal(status).map_or_else(|| passing(status), Lost::Fatal)
    }

    /// Within a session that was accepted, only a changed token is final.
    fn judge_later(&self, status: &Status) -> Lost {
        match self.server.fatal(status) {
            Some(error @ AgentError::Unauthorized { .. }) => Lost::Fatal(error),
            _ => passing(status),
        }
    }
}

fn passing(status: &Status) -> Lost {
    Lost::Passing(causes(status))
}

fn mention(url: &str, reached: bool, reason: &str) {
    if reached {
        tracing::warn!("the connection to {url} is gone ({reason}); jobs go on, connecting again");
    } else {
        tracing::info!("server {url} is not there yet ({reason}); trying until it is");
    }
}

//! The only owner of the scheduler's state and of the lead in the database.
//!
//! It takes what has come in, steps through it, commits all changes in one transaction, and only then sends. When a
//! commit fails nothing is sent: the state is thrown away, workers are asked to reconnect (they still hold what was not
//! acknowledged), and everything is read again from the database.

mod command;
mod live;
mod outbox;
mod turn;

pub(crate) use command::{Answer, Command, Connection, Control, Ended, News, Submission};
pub(crate) use live::Live;
pub(crate) use outbox::{Outbox, ToWorker};

use crate::{
    config::{ServerConfig, millis},
    error::try_again,
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use taskvec_model::{
    id::{AttemptRef, WorkerId},
    job::Failure,
    schedule::Millis,
};
use taskvec_sched::{Effect, State};
use taskvec_store::{Leader, Store, StoreError};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, sleep, sleep_until},
};
use tonic::Status;

/// Commands taken into one transaction.
const BATCH: usize = 512;

/// How long a starting server waits for the lead: the database may not yet have noticed that its predecessor died.
const PATIENCE: Duration = Duration::from_secs(10);

/// The way to the driver.
#[derive(Clone)]
pub(crate) struct Handle(mpsc::Sender<Command>);

impl Handle {
    /// Waits while the driver is behind. `Err`: it is gone.
    pub async fn send(&self, command: Command) -> Result<(), Status> {
        self.0.send(command).await.map_err(|_| try_again("the server is shutting down"))
    }

    /// Asks and waits for the answer.
    pub async fn ask<T>(&self, command: impl FnOnce(Answer<T>) -> Command) -> Result<T, Status> {
        let (answer, answered) = oneshot::channel();
        self.send(command(answer)).await?;
        answered.await.unwrap_or_else(|_| Err(try_again("the server is restarting or its database is away")))
    }
}

pub(crate) struct Driver {
    store: Store,
    config: taskvec_sched::Config,
    lease: Duration,
    live: Arc<Live>,
    /// The scheduler's clock starts here.
    base: Instant,
    commands: mpsc::Receiver<Command>,
    sessions: BTreeMap<WorkerId, Outbox>,
    /// Outcomes that the database refused: when they come again, they are failures.
    unstorable: BTreeMap<AttemptRef, Failure>,
}

/// Exists while this server leads.
struct Lead {
    leader: Leader,
    state: State,
}

impl Driver {
    /// Starts the driver and waits until it leads.
    ///
    /// # Errors
    /// [`StoreError::AnotherLeader`] when another server keeps the lead; whatever else keeps the state from being read.
    pub async fn start(
        config: &ServerConfig,
        store: Store,
        live: Arc<Live>,
    ) -> Result<(Handle, JoinHandle<()>), StoreError> {
        let (sender, commands) = mpsc::channel(2 * BATCH);
        let driver = Self {
            store,
            config: config.sched(),
            lease: config.lease,
            live,
            base: Instant::now(),
            commands,
            sessions: BTreeMap::new(),
            unstorable: BTreeMap::new(),
        };
        let limit = Instant::now() + PATIENCE;
        let lead = loop {
            match driver.lead().await {
                Err(error @ (StoreError::AnotherLeader | StoreError::Unavailable(_))) if Instant::now() < limit => {
                    tracing::info!(%error, "waiting for the lead");
                    sleep(Duration::from_millis(100)).await;
                }
                result => break result?,
            }
        };
        Ok((Handle(sender), tokio::spawn(driver.run(lead))))
    }

    async fn run(mut self, mut lead: Lead) {
        loop {
            let Err(error) = self.serve(&mut lead).await else {
                // Otherwise the next server waits until the database notices that our connection is gone.
                let _ = lead.leader.resign().await;
                break;
            };
            tracing::warn!(%error, "the database did not take the last changes; reading everything again");
            // The lead goes with its connection.
            drop(lead);
            self.close_sessions("the server lost its database");
            match self.lead_again().await {
                Some(again) => lead = again,
                None => break,
            }
        }
        self.close_sessions("the server is shutting down");
    }

    /// Takes the lead and reads the state.
    async fn lead(&self) -> Result<Lead, StoreError> {
        let mut leader = self.store.try_lead().await?;
        leader.set_lease(self.lease);
        let snapshot = leader.load().await?;
        let (state, repairs) = State::new(self.config, snapshot, self.now());
        let changes: Vec<_> = repairs
            .into_iter()
            .filter_map(|effect| match effect {
                Effect::Persist(change) => Some(change),
                // Nobody is connected.
                Effect::Send(_) => None,
            })
            .collect();
        if !changes.is_empty() {
            leader.commit(&changes, &BTreeMap::new()).await?;
        }
        Ok(Lead { leader, state })
    }

    /// Tries until it leads; none when told to stop. Whoever asks for something meanwhile is told to try again.
    async fn lead_again(&mut self) -> Option<Lead> {
        let mut pause = Duration::from_millis(20);
        loop {
            match self.lead().await {
                Ok(lead) => {
                    tracing::info!("the database is back");
                    self.live.changed();
                    return Some(lead);
                }
                Err(error) => tracing::warn!(%error, "cannot lead yet"),
            }
            let until = Instant::now() + pause;
            pause = (pause * 2).min(Duration::from_secs(2));
            loop {
                tokio::select! {
                    () = sleep_until(until) => break,
                    command = self.commands.recv() => match command {
                        Some(Command::Shutdown) | None => return None,
                        // Dropping it answers it.
                        Some(_) => {}
                    },
                }
            }
        }
    }

    /// Until told to stop (`Ok`) or the database does not go along (`Err`).
    async fn serve(&mut self, lead: &mut Lead) -> Result<(), StoreError> {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let deadline = lead.state.next_deadline();
            let tick = self.instant(deadline);
            tokio::select! {
                count = self.commands.recv_many(&mut batch, BATCH) => if count == 0 { return Ok(()) },
                () = sleep_until(tick), if deadline.is_some() => {}
            }
            if self.turn(lead, &mut batch).await? == turn::Outlook::Stop {
                return Ok(());
            }
        }
    }

    fn close_sessions(&mut self, why: &str) {
        for (_, outbox) in std::mem::take(&mut self.sessions) {
            outbox.close(Status::unavailable(format!("{why}: reconnect")));
        }
        self.live.set_workers(0);
    }

    fn now(&self) -> Millis {
        millis(self.base.elapsed())
    }

    fn instant(&self, at: Option<Millis>) -> Instant {
        // Rounded up, so that the deadline is past when we wake.
        self.base + Duration::from_millis(at.unwrap_or(0).saturating_add(1))
    }
}

//! One turn of the driver: commands in, one transaction, messages out.

use super::{Answer, Command, Connection, Control, Driver, Ended, Lead, News, Submission, outbox::SessionId};
use crate::error::status;
use std::collections::BTreeMap;
use taskvec_model::{
    id::{AttemptRef, JobId, SweepId, WorkerId},
    job::{Failure, Retry},
    schedule::Change,
};
use taskvec_sched::{Effect, Event, Explanation, Message, step};
use taskvec_store::{Outcome, Receipt, StoreError};
use tonic::Status;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outlook {
    GoOn,
    Stop,
}

/// What has been decided and not yet committed.
#[derive(Default)]
struct Pending {
    changes: Vec<Change>,
    outcomes: BTreeMap<AttemptRef, Outcome>,
    messages: Vec<Message>,
    /// Answers to users; dropped unsent when the commit fails.
    answers: Vec<Box<dyn FnOnce() + Send>>,
}

impl Pending {
    fn answer<T: Send + 'static>(&mut self, answer: Answer<T>, told: Result<T, Status>) {
        // Whoever asked may be gone.
        self.answers.push(Box::new(move || drop(answer.send(told))));
    }

    fn take(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Persist(change) => self.changes.push(change),
                Effect::Send(message) => self.messages.push(message),
            }
        }
    }
}

impl Driver {
    pub(super) async fn turn(&mut self, lead: &mut Lead, batch: &mut Vec<Command>) -> Result<Outlook, StoreError> {
        let mut pending = Pending::default();
        let mut outlook = Outlook::GoOn;
        for command in batch.drain(..) {
            match command {
                Command::Shutdown => outlook = Outlook::Stop,
                Command::Connect(connection) => self.connect(lead, connection, &mut pending),
                Command::Worker { worker, session, news } => self.news(lead, worker, session, news, &mut pending),
                Command::Explain(job, answer) => pending.answer(answer, Ok(explain(lead, job))),
                Command::Drain(worker, answer) => {
                    let told = self.drain(lead, worker, &mut pending);
                    pending.answer(answer, told);
                }
                Command::Submit(submission, answer) => {
                    self.commit(lead, &mut pending).await?;
                    let told = settle(self.submit(lead, &submission, &mut pending).await)?;
                    // The sweep is stored: what is decided about its jobs may fail and be decided again.
                    let _ = answer.send(told);
                }
                Command::Control(sweep, control, answer) => {
                    self.commit(lead, &mut pending).await?;
                    let told = settle(self.control(lead, sweep, control, &mut pending).await)?;
                    pending.answer(answer, told.flatten());
                }
                Command::RetryJob { job, sweep, answer } => {
                    self.commit(lead, &mut pending).await?;
                    let told = settle(self.retry_job(lead, job, sweep, &mut pending).await)?;
                    pending.answer(answer, told);
                }
            }
        }
        // After what has come in: heartbeats that waited behind a slow database still count.
        if lead.state.next_deadline().is_some_and(|at| at <= self.now()) {
            self.step(lead, Event::Tick, &mut pending);
        }
        self.commit(lead, &mut pending).await?;
        Ok(outlook)
    }

    fn step(&self, lead: &mut Lead, event: Event, pending: &mut Pending) {
        pending.take(step(&mut lead.state, event, self.now()));
    }

    /// Persist, then send.
    async fn commit(&mut self, lead: &mut Lead, pending: &mut Pending) -> Result<(), StoreError> {
        let Pending { changes, outcomes, messages, answers } = std::mem::take(pending);
        if !changes.is_empty() {
            lead.leader.commit(&changes, &outcomes).await.inspect_err(|error| self.remember(error))?;
            for change in &changes {
                if let Change::Complete { attempt, .. } | Change::End { attempt, .. } = change {
                    self.live.ended(*attempt);
                    self.unstorable.remove(attempt);
                }
            }
            self.live.changed();
        }
        for message in messages {
            self.send(message);
        }
        for answer in answers {
            answer();
        }
        Ok(())
    }

    /// An outcome that can never be stored must not be tried again for ever: it becomes a failure of its job alone.
    fn remember(&mut self, error: &StoreError) {
        let reason = error.to_string();
        match error {
            StoreError::BadOutcome { attempt, .. } => {
                self.unstorable.insert(*attempt, Failure { retry: Retry::Never, reason });
            }
            StoreError::MissingBlob { attempt, .. } => {
                self.unstorable.insert(*attempt, Failure { retry: Retry::Allowed, reason });
            }
            _ => {}
        }
    }

    fn send(&mut self, message: Message) {
        let worker = match &message {
            Message::Assign { worker, .. }
            | Message::Stop { worker, .. }
            | Message::Answer { worker, .. }
            | Message::Drain { worker } => *worker,
        };
        // One that is not connected learns the same when it reconnects. One that does not read is cut off: its session
        // ends, and reports itself lost.
        let Some(outbox) = self.sessions.get_mut(&worker) else { return };
        if !outbox.send(message) {
            tracing::warn!(%worker, "does not take its messages; closing its connection");
            outbox.cut();
        }
    }

    fn connect(&mut self, lead: &mut Lead, connection: Connection, pending: &mut Pending) {
        let Connection { worker, capacity, attempts, outbox, answer } = connection;
        if let Some(older) = self.sessions.insert(worker, outbox) {
            older.close(Status::aborted("this worker connected again"));
        }
        self.live.set_workers(self.sessions.len());
        self.step(lead, Event::WorkerHello { worker, capacity, attempts }, pending);
        pending.answer(answer, Ok(()));
    }

    /// Only the newest session of a worker speaks for it.
    fn news(&mut self, lead: &mut Lead, worker: WorkerId, session: SessionId, news: News, pending: &mut Pending) {
        if self.sessions.get(&worker).is_none_or(|outbox| outbox.session != session) {
            return;
        }
        let event = match news {
            News::Heartbeat(attempts) => {
                for (attempt, progress) in &attempts {
                    if lead.state.running(attempt.job) == Some((*attempt, worker)) {
                        self.live.report(*attempt, *progress);
                    }
                }
                self.live.changed();
                Event::Heartbeat { worker, attempts: attempts.into_iter().map(|(attempt, _)| attempt).collect() }
            }
            News::Ended { attempt, how, outcome } => {
                return self.ended(lead, (worker, attempt), how, *outcome, pending);
            }
            News::Draining => Event::WorkerDraining(worker),
            News::Leaving => {
                self.sessions.remove(&worker);
                Event::WorkerLeft(worker)
            }
            News::Lost => {
                self.sessions.remove(&worker);
                Event::WorkerLost(worker)
            }
        };
        self.live.set_workers(self.sessions.len());
        self.step(lead, event, pending);
    }

    fn ended(
        &self,
        lead: &mut Lead,
        (worker, attempt): (WorkerId, AttemptRef),
        how: Ended,
        outcome: Outcome,
        pending: &mut Pending,
    ) {
        let event = match (self.unstorable.get(&attempt), how) {
            (Some(failure), _) => Event::Failed { worker, attempt, failure: failure.clone() },
            (None, Ended::Succeeded) => Event::Succeeded { worker, attempt },
            (None, Ended::Failed(failure)) => Event::Failed { worker, attempt, failure },
            (None, Ended::Released) => Event::Released { worker, attempt },
        };
        let kept = !matches!(event, Event::Failed { .. });
        let effects = step(&mut lead.state, event, self.now());
        let taken = effects.iter().any(|effect| match effect {
            Effect::Persist(Change::Complete { attempt: a, .. } | Change::End { attempt: a, .. }) => *a == attempt,
            _ => false,
        });
        if taken {
            // Of a failure only its log is kept.
            let outcome = if kept { outcome } else { Outcome { log: outcome.log, ..Outcome::default() } };
            pending.outcomes.insert(attempt, outcome);
        }
        pending.take(effects);
    }

    async fn submit(
        &self,
        lead: &mut Lead,
        submission: &Submission,
        pending: &mut Pending,
    ) -> Result<Receipt, StoreError> {
        let Submission { plan, yaml, priority, request } = submission;
        if let Some(request) = request
            && let Some(earlier) = lead.leader.receipt(request).await?
        {
            return Ok(earlier);
        }
        let stored = lead.leader.submit(plan, yaml, *priority, request.as_ref()).await?;
        let told =
            Receipt { sweep: stored.sweep.id, runs: plan.runs.len(), jobs: plan.jobs.len(), cached: stored.cached };
        self.step(lead, Event::SweepSubmitted { sweep: stored.sweep, jobs: stored.jobs }, pending);
        self.live.changed();
        Ok(told)
    }

    async fn control(
        &self,
        lead: &mut Lead,
        sweep: SweepId,
        control: Control,
        pending: &mut Pending,
    ) -> Result<Result<(), Status>, StoreError> {
        let event = match control {
            Control::Retry => {
                let (sweep, jobs) = lead.leader.sweep(sweep).await?;
                Event::Retry { sweep, jobs }
            }
            _ if lead.state.sweep_state(sweep).is_none() => {
                let (found, _) = lead.leader.sweep(sweep).await?;
                let text = format!("sweep {sweep} has ended ({}): only `retry` still changes it", found.state);
                return Ok(Err(Status::failed_precondition(text)));
            }
            Control::Pause => Event::Pause(sweep),
            Control::Resume => Event::Resume(sweep),
            Control::Cancel => Event::Cancel(sweep),
            Control::Priority(priority) => Event::SetPriority(sweep, priority),
        };
        self.step(lead, event, pending);
        Ok(Ok(()))
    }

    async fn retry_job(
        &self,
        lead: &mut Lead,
        job: JobId,
        sweep: SweepId,
        pending: &mut Pending,
    ) -> Result<(), StoreError> {
        let (sweep, jobs) = lead.leader.sweep(sweep).await?;
        self.step(lead, Event::RetryJob { job, sweep, jobs }, pending);
        Ok(())
    }

    fn drain(&self, lead: &mut Lead, worker: WorkerId, pending: &mut Pending) -> Result<(), Status> {
        if lead.state.worker_state(worker).is_none() {
            return Err(Status::not_found(format!(
                "worker {worker} has left or never came: see `taskvec worker list`"
            )));
        }
        self.step(lead, Event::WorkerDraining(worker), pending);
        Ok(())
    }
}

fn explain(lead: &Lead, job: JobId) -> Option<String> {
    match lead.state.explain(job) {
        Explanation::NotScheduled => None,
        found => Some(found.to_string()),
    }
}

/// Tells errors that are the request's own from those that void the lead (`Err`).
fn settle<T>(result: Result<T, StoreError>) -> Result<Result<T, Status>, StoreError> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(error @ (StoreError::Unknown { .. } | StoreError::BadPlan(_) | StoreError::BadRow { .. })) => {
            Ok(Err(status(error)))
        }
        Err(error) => Err(error),
    }
}

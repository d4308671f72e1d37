//! The life of one attempt on this worker: inputs, a slot, the computation, its checkpoints on the server, and at last
//! an outcome in the spool.

use crate::{
    blobs::{BlobError, Blobs},
    cache::Pinned,
    control::{Control, Rate, Wish},
    execute::Execute,
    log::AttemptLog,
    models,
    pack::{Fate, Lost, Ready, Seat},
    sink::{AttemptSink, Computed, Kept, Upload},
    slots::Slots,
    spool::Spool,
};
use prost::Message;
use std::{sync::Arc, time::Duration};
use taskvec_model::{
    id::AttemptRef,
    job::{Assignment, CheckpointRef, Failure, Handover, Produced, Purpose, Retry},
    metric::Metrics,
};
use taskvec_science::{Executed, Inputs, ScienceError};
use taskvec_wire::{
    MAX_MESSAGE,
    pb::{self, WorkerMessage, worker_message},
};
use tokio::sync::{mpsc, oneshot};

/// Checkpoints that wait for their upload; one more makes the job wait.
const QUEUED_UPLOADS: usize = 2;

/// How long to wait when the spool cannot be written.
const SPOOL_RETRY: Duration = Duration::from_secs(1);

/// What all attempts of a worker share.
pub struct Workshop {
    pub name: String,
    pub blobs: Blobs,
    pub slots: Slots,
    pub spool: Spool,
    pub execute: Arc<dyn Execute>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The outcome waits in the spool.
    Spooled,
    /// Nobody wants to know.
    Discarded,
}

#[derive(Debug)]
enum Outcome {
    Finished(Produced),
    Failed(Failure),
    Released(Option<Handover>),
}

/// Takes the attempt from its assignment to its end.
pub async fn run(
    workshop: Arc<Workshop>,
    attempt: AttemptRef,
    assignment: Assignment,
    control: Arc<Control>,
    seat: Seat,
) -> (AttemptRef, Ended) {
    let log = Arc::new(AttemptLog::new(std::time::Instant::now()));
    log.add(&format!("{attempt}: {} on worker {}", assignment.work.kind(), workshop.name));
    let life = Life { workshop, assignment, control, log };
    let outcome = tokio::select! {
        biased;
        _ = life.control.until(Wish::Release) => life.released(),
        outcome = life.compute(seat) => outcome,
    };
    end(&life.workshop, attempt, outcome, &life.control, &life.log).await
}

/// Ends an attempt that cannot even begin.
pub async fn refuse(
    workshop: Arc<Workshop>,
    attempt: AttemptRef,
    reason: String,
    control: Arc<Control>,
) -> (AttemptRef, Ended) {
    let log = AttemptLog::new(std::time::Instant::now());
    end(&workshop, attempt, Outcome::Failed(retryable(reason)), &control, &log).await
}

/// Spools the outcome, unless nobody wants it any more.
async fn end(
    workshop: &Workshop,
    attempt: AttemptRef,
    outcome: Outcome,
    control: &Control,
    log: &AttemptLog,
) -> (AttemptRef, Ended) {
    note_end(attempt, &outcome, log);
    let message = within_limit(attempt, message(attempt, outcome, log.text()), log.text());
    let ended = tokio::select! {
        biased;
        _ = control.until(Wish::Discard) => Ended::Discarded,
        () = keep(&workshop.spool, attempt, message) => Ended::Spooled,
    };
    (attempt, ended)
}

/// Puts the outcome into the spool, as often as it takes.
async fn keep(spool: &Spool, attempt: AttemptRef, message: WorkerMessage) {
    let message = Arc::new(message);
    loop {
        let (spool, message) = (spool.clone(), message.clone());
        let error = match tokio::task::spawn_blocking(move || spool.put(attempt, &message)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        tracing::error!("the outcome of {attempt} cannot be spooled, trying again: {error}");
        tokio::time::sleep(SPOOL_RETRY).await;
    }
}

fn note_end(attempt: AttemptRef, outcome: &Outcome, log: &AttemptLog) {
    let end = match outcome {
        Outcome::Finished(produced) => {
            format!("finished with {} rows and {} checkpoints", produced.metrics.rows(), produced.checkpoints.len())
        }
        Outcome::Failed(failure) => format!("failed: {}", failure.reason),
        Outcome::Released(Some(handover)) => format!("handed over at step {}", handover.state.step),
        Outcome::Released(None) => "given back".into(),
    };
    log.add(&format!("{end}, after {:.3} s", log.elapsed()));
    tracing::info!("{attempt} {end}");
}

struct Life {
    workshop: Arc<Workshop>,
    assignment: Assignment,
    control: Arc<Control>,
    log: Arc<AttemptLog>,
}

/// A job that computes.
struct Running {
    done: oneshot::Receiver<Computed>,
    fate: Fate,
    uploads: mpsc::Receiver<Upload>,
}

impl Life {
    /// Given back without anything new. What an earlier attempt had handed over is passed on.
    fn released(&self) -> Outcome {
        Outcome::Released(self.assignment.handover.clone())
    }

    async fn compute(&self, seat: Seat) -> Outcome {
        let begun = tokio::select! {
            biased;
            _ = self.control.until(Wish::HandOver) => return self.released(),
            begun = self.begin(seat) => begun,
        };
        let Running { mut done, fate, uploads } = match begun {
            Ok(running) => running,
            Err(outcome) => return outcome,
        };
        let uploading = self.upload(uploads);
        tokio::pin!(uploading);
        let computed = tokio::select! {
            computed = &mut done => match computed {
                Ok((Ok(executed), kept)) => match uploading.await {
                    Ok(()) => Ok((Ok(executed), kept)),
                    Err(error) => return Outcome::Failed(blob_failure(&error)),
                },
                other => other,
            },
            uploaded = &mut uploading => match uploaded {
                Ok(()) => done.await,
                Err(error) => return Outcome::Failed(blob_failure(&error)),
            },
        };
        match computed {
            Ok(computed) => self.conclude(computed),
            Err(_) => self.lost(fate.lost().await),
        }
    }

    /// Fetches the inputs and the model, then waits for the others of its pack and for a slot.
    async fn begin(&self, seat: Seat) -> Result<Running, Outcome> {
        let mut inputs = Inputs::default();
        let mut pins = Vec::new();
        for checkpoint in self.wanted_inputs() {
            let fetched = self.workshop.blobs.fetch(&checkpoint).await;
            let file = fetched.map_err(|e| Outcome::Failed(blob_failure(&e)))?;
            self.log
                .add(&format!("input: step {} ({}), {}", checkpoint.step, checkpoint.purpose, checkpoint.blob.digest));
            let path = Some(file.path().to_owned());
            match checkpoint.purpose {
                Purpose::Resume => inputs.resume = path,
                Purpose::Weights => inputs.weights = path,
            }
            pins.push(file);
        }
        models::bring(&self.assignment.work, &self.log).await.map_err(Outcome::Failed)?;
        let (sink, done, uploads) = self.sink(pins);
        let job = Ready { work: self.assignment.work.clone(), inputs, sink };
        let (count, fate) = seat.begin(job).await.map_err(|lost| self.lost(lost))?;
        match count {
            0 | 1 => self.log.add("computing"),
            _ => self.log.add(&format!("computing, {count} jobs in one slot")),
        }
        Ok(Running { done, fate, uploads })
    }

    /// A handover's state stands in for the segment's own starting point.
    fn wanted_inputs(&self) -> Vec<CheckpointRef> {
        let handed = self.assignment.handover.as_ref().map(|h| h.state);
        let replaced = |c: &CheckpointRef| handed.is_some() && c.purpose == Purpose::Resume;
        self.assignment.inputs.iter().filter(|c| !replaced(c)).copied().chain(handed).collect()
    }

    fn sink(&self, pins: Vec<Pinned>) -> (AttemptSink, oneshot::Receiver<Computed>, mpsc::Receiver<Upload>) {
        let (uploads, queue) = mpsc::channel(QUEUED_UPLOADS);
        let (done, ended) = oneshot::channel();
        let sink = AttemptSink {
            _pins: pins,
            done,
            kind: self.assignment.work.kind(),
            control: self.control.clone(),
            cache: self.workshop.blobs.cache().clone(),
            uploads,
            log: self.log.clone(),
            kept: Kept::default(),
            rate: Rate::default(),
            milestone: 0,
        };
        (sink, ended, queue)
    }

    /// Uploads until the job writes no more checkpoints.
    async fn upload(&self, mut queue: mpsc::Receiver<Upload>) -> Result<(), BlobError> {
        while let Some(Upload { manifest, file }) = queue.recv().await {
            self.workshop.blobs.upload(&manifest, &file).await?;
        }
        Ok(())
    }

    fn conclude(&self, (how, mut kept): Computed) -> Outcome {
        match how {
            Ok(Executed::Finished(metrics)) => Outcome::Finished(self.produced(metrics, kept)),
            Ok(Executed::Stopped { at }) => {
                // The state is what the next attempt starts from, not a result of the job.
                kept.checkpoints.retain(|c| *c != at);
                Outcome::Released(Some(Handover { state: at, produced: self.produced(Metrics::default(), kept) }))
            }
            Err(ScienceError::Stopped) => self.released(),
            Err(error) => Outcome::Failed(Failure { retry: error.retry(), reason: error.to_string() }),
        }
    }

    fn lost(&self, why: Lost) -> Outcome {
        Outcome::Failed(retryable(match why {
            Lost::Panicked(panicked) => {
                self.log.add(&panicked.backtrace);
                panicked.to_string()
            }
            Lost::Slot(why) => why,
        }))
    }

    /// All of the job's rows and checkpoints: those handed over by an earlier attempt first.
    fn produced(&self, metrics: Metrics, kept: Kept) -> Produced {
        let mut all = self.assignment.handover.as_ref().map(|h| h.produced.clone()).unwrap_or_default();
        all.metrics.train_loss.extend(kept.train_loss);
        all.metrics.append(metrics);
        all.checkpoints.extend(kept.checkpoints);
        all
    }
}

fn retryable(reason: String) -> Failure {
    Failure { retry: Retry::Allowed, reason }
}

fn blob_failure(error: &BlobError) -> Failure {
    let retry = match error {
        BlobError::Damaged { .. } => Retry::Never,
        BlobError::Disk { .. } | BlobError::Refused { .. } => Retry::Allowed,
    };
    Failure { retry, reason: error.to_string() }
}

fn message(attempt: AttemptRef, outcome: Outcome, log: String) -> WorkerMessage {
    let attempt = Some(attempt.into());
    let message = match outcome {
        Outcome::Finished(produced) => {
            worker_message::Message::Finished(pb::Finished { attempt, produced: Some(produced.into()), log })
        }
        Outcome::Failed(Failure { retry, reason }) => {
            worker_message::Message::Failed(pb::Failed { attempt, retry: retry == Retry::Allowed, reason, log })
        }
        Outcome::Released(handover) => {
            worker_message::Message::Released(pb::Released { attempt, handover: handover.map(Into::into), log })
        }
    };
    WorkerMessage { message: Some(message) }
}

/// A message that the server cannot receive would break the connection again and again.
fn within_limit(attempt: AttemptRef, outcome: WorkerMessage, log: String) -> WorkerMessage {
    let bytes = outcome.encoded_len();
    if bytes <= MAX_MESSAGE {
        return outcome;
    }
    let reason = format!("the job's rows take {bytes} bytes, more than the {MAX_MESSAGE} that a message may have");
    message(attempt, Outcome::Failed(Failure { retry: Retry::Never, reason }), log)
}

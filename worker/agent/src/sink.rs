//! What a job talks to while it computes: keeps its rows, stores its checkpoints, passes progress and wishes on.

use crate::{
    cache::{Cache, Manifest, Pinned},
    control::{Control, Rate, Wish},
    log::AttemptLog,
};
use std::{
    io::{BufWriter, Write},
    sync::Arc,
    time::Instant,
};
use taskvec_model::{
    job::{CheckpointRef, JobKind, Progress, Purpose},
    metric::TrainLoss,
};
use taskvec_science::{Control as Go, Executed, MemberSink, ScienceError, Sink, WriteCheckpoint};
use taskvec_wire::CHUNK_BYTES;
use tokio::sync::{mpsc, oneshot};

/// How often, at most, a job's progress is written into its log: ten times.
const MILESTONES: u64 = 10;

/// A checkpoint on its way to the server.
pub struct Upload {
    pub manifest: Manifest,
    pub file: Pinned,
}

/// What went through the sink.
#[derive(Default)]
pub struct Kept {
    pub train_loss: Vec<TrainLoss>,
    pub checkpoints: Vec<CheckpointRef>,
}

/// How a job ended, and what went through its sink.
pub type Computed = (Result<Executed, ScienceError>, Kept);

pub struct AttemptSink {
    /// Inputs that the cache must keep while the job runs.
    pub _pins: Vec<Pinned>,
    /// Nobody listens when the attempt was given up.
    pub done: oneshot::Sender<Computed>,
    pub kind: JobKind,
    pub control: Arc<Control>,
    pub cache: Arc<Cache>,
    pub uploads: mpsc::Sender<Upload>,
    pub log: Arc<AttemptLog>,
    pub kept: Kept,
    pub rate: Rate,
    pub milestone: u64,
}

impl AttemptSink {
    fn wanted(&self) -> Go {
        // Nobody takes the checkpoints any more: the attempt was given up.
        if self.uploads.is_closed() {
            return Go::Stop;
        }
        match self.control.wish() {
            Wish::Run => Go::Continue,
            Wish::HandOver if self.kind.trains() => Go::Stop,
            Wish::HandOver => Go::Continue,
            Wish::Release | Wish::Discard => Go::Stop,
        }
    }

    fn note_milestone(&mut self, progress: &Progress) {
        let milestone = progress.done * MILESTONES / progress.total.max(1);
        if milestone > self.milestone {
            self.milestone = milestone;
            let loss = progress.loss.map(|l| format!(", loss {l:.6}")).unwrap_or_default();
            let Progress { done, total, per_second, .. } = progress;
            self.log.add(&format!("{done} of {total}{loss}, {per_second:.1} per second"));
        }
    }
}

impl Sink for AttemptSink {
    fn progress(&mut self, mut progress: Progress) -> Go {
        progress.per_second = self.rate.update(Instant::now(), progress.done);
        self.control.set_progress(progress);
        self.note_milestone(&progress);
        self.wanted()
    }

    fn checkpoint(
        &mut self,
        step: u64,
        purpose: Purpose,
        write: &mut WriteCheckpoint<'_>,
    ) -> Result<CheckpointRef, ScienceError> {
        let mut file = BufWriter::with_capacity(CHUNK_BYTES, self.cache.draft()?);
        write(&mut file)?;
        file.flush()?;
        let draft = file.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        let (manifest, file) = draft.keep()?;
        let checkpoint = CheckpointRef { step, purpose, blob: manifest.blob };
        self.log.add(&format!(
            "checkpoint of step {step} ({purpose}), {} bytes, {}",
            checkpoint.blob.bytes, checkpoint.blob.digest
        ));
        // Blocks while earlier checkpoints are on their way: a slow server slows training down instead of filling disks.
        let sent = self.uploads.blocking_send(Upload { manifest, file });
        sent.map_err(|_| ScienceError::Sink("the attempt was given up".into()))?;
        self.kept.checkpoints.push(checkpoint);
        Ok(checkpoint)
    }

    fn train_loss(&mut self, row: TrainLoss) {
        self.kept.train_loss.push(row);
    }
}

impl MemberSink for AttemptSink {
    fn ended(self: Box<Self>, how: Result<Executed, ScienceError>) {
        let Self { done, kept, .. } = *self;
        let _ = done.send((how, kept));
    }
}

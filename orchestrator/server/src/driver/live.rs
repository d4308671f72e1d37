//! What is true of the moment and never stored: how far attempts are, and how many workers are connected.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};
use taskvec_model::{
    id::{AttemptRef, JobId},
    job::Progress,
};
use tokio::sync::watch;

/// Written by the driver, read by whoever watches.
#[derive(Debug, Default)]
pub(crate) struct Live {
    progress: Mutex<BTreeMap<JobId, (i32, Progress)>>,
    workers: AtomicU32,
    changes: watch::Sender<u64>,
}

impl Live {
    /// Wakes at every change of anything.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub fn progress(&self, job: JobId) -> Option<Progress> {
        self.lock().get(&job).map(|(_, progress)| *progress)
    }

    pub fn workers(&self) -> u32 {
        self.workers.load(Ordering::Relaxed)
    }

    pub(super) fn changed(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    pub(super) fn report(&self, attempt: AttemptRef, progress: Progress) {
        self.lock().insert(attempt.job, (attempt.number, progress));
    }

    pub(super) fn ended(&self, attempt: AttemptRef) {
        let mut progress = self.lock();
        if progress.get(&attempt.job).is_some_and(|(number, _)| *number <= attempt.number) {
            progress.remove(&attempt.job);
        }
    }

    pub(super) fn set_workers(&self, count: usize) {
        self.workers.store(u32::try_from(count).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<JobId, (i32, Progress)>> {
        // A map of plain values is whole whatever happened to another holder.
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

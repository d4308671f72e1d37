//! Where jobs compute: slots with a rayon pool each, which survive a job that panics.
//!
//! Candle multiplies matrices in the current pool but decides into how many pieces from the environment variable
//! RAYON_NUM_THREADS; whoever starts the process should set it to the threads per slot (see [`warn_of_environment`]).

use crate::{error::AgentError, lock};
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::{
    backtrace::Backtrace,
    cell::RefCell,
    fmt,
    panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind},
    sync::{Arc, Mutex, Once},
    time::Duration,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// The backward pass walks the graph recursively.
const STACK_BYTES: usize = 16 << 20;

/// All slots of this worker.
pub struct Slots {
    free: Arc<Mutex<Vec<Pool>>>,
    permits: Arc<Semaphore>,
    count: usize,
}

struct Pool {
    threads: Arc<ThreadPool>,
    panicked: PanicNote,
}

/// One slot, taken; it is free again when dropped.
pub struct Slot {
    pool: Option<Pool>,
    home: Arc<Mutex<Vec<Pool>>>,
    // Dropped after the pool is back at home.
    _permit: OwnedSemaphorePermit,
}

impl Slots {
    pub fn new(count: usize, threads_each: usize) -> Result<Self, AgentError> {
        install_hook();
        let pools = (0..count).map(|slot| Pool::new(slot, threads_each)).collect::<Result<_, _>>()?;
        Ok(Self { free: Arc::new(Mutex::new(pools)), permits: Arc::new(Semaphore::new(count)), count })
    }

    /// Waits for a slot. The job that has it may be one whose attempt was given up and that has not noticed yet.
    pub async fn take(&self) -> Result<Slot, AgentError> {
        let nothing = || AgentError::Bug("a slot has no thread pool".into());
        let permit = self.permits.clone().acquire_owned().await.map_err(|_| nothing())?;
        let pool = lock(&self.free).pop().ok_or_else(nothing)?;
        Ok(Slot { pool: Some(pool), home: self.free.clone(), _permit: permit })
    }

    /// Waits until no job computes any more, but not longer than `limit`.
    pub async fn idle(&self, limit: Duration) {
        let all = u32::try_from(self.count).unwrap_or(u32::MAX);
        let _ = tokio::time::timeout(limit, self.permits.acquire_many(all)).await;
    }
}

impl Pool {
    fn new(slot: usize, threads: usize) -> Result<Self, AgentError> {
        let panicked = PanicNote::default();
        let note = panicked.clone();
        let threads = ThreadPoolBuilder::new()
            .num_threads(threads)
            .stack_size(STACK_BYTES)
            .thread_name(move |i| format!("slot-{slot}-{i}"))
            .start_handler(move |_| NOTE.set(Some(note.clone())))
            .build()
            .map_err(|e| AgentError::System(format!("no threads for slot {slot}: {e}")))?;
        Ok(Self { threads: Arc::new(threads), panicked })
    }
}

impl Slot {
    /// Runs `work` in the slot's pool. The receiver gets its result after the slot is free again.
    pub fn run<T: Send + 'static>(
        self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> oneshot::Receiver<Result<T, Panicked>> {
        let (tx, rx) = oneshot::channel();
        let Some((threads, panicked)) = self.pool.as_ref().map(|p| (p.threads.clone(), p.panicked.clone())) else {
            return rx;
        };
        threads.spawn(move || {
            // What the job shares with others is behind locks that tolerate a panic.
            let result = catch_unwind(AssertUnwindSafe(work));
            let result = result.map_err(|_| lock(&panicked).take().unwrap_or_default());
            drop(self);
            // Nobody listens when the attempt was given up.
            let _ = tx.send(result);
        });
        rx
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        lock(&self.home).extend(self.pool.take());
    }
}

/// What a panicking job said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Panicked {
    message: String,
    location: String,
    pub backtrace: String,
}

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "panicked: {} at {}", self.message, self.location)
    }
}

type PanicNote = Arc<Mutex<Option<Panicked>>>;

thread_local! {
    /// Set on the threads of slots: a job may panic on any thread of its pool, and rayon carries only the message over.
    static NOTE: RefCell<Option<PanicNote>> = const { RefCell::new(None) };
}

/// Panics on slot threads are noted for the job's report; others are shown as before.
fn install_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| match NOTE.with_borrow(Clone::clone) {
            Some(note) => *lock(&note) = Some(describe(info)),
            None => others(info),
        }));
    });
}

fn describe(info: &PanicHookInfo<'_>) -> Panicked {
    let message = info.payload_as_str().unwrap_or("(no message)").to_owned();
    let location = info.location().map_or_else(|| "an unknown place".into(), |l| format!("{}:{}", l.file(), l.line()));
    Panicked { message, location, backtrace: Backtrace::force_capture().to_string() }
}

/// Warns when candle would cut its products into a number of pieces other than the slot's threads.
pub fn warn_of_environment(threads_per_slot: usize) {
    let set = std::env::var("RAYON_NUM_THREADS").ok();
    if set.as_deref() != Some(threads_per_slot.to_string().as_str()) {
        tracing::warn!(
            "RAYON_NUM_THREADS is {}; set it to {threads_per_slot}, the threads per slot, before the worker starts, or matrix \
             products use another number of threads",
            set.as_deref().unwrap_or("not set")
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_job_runs_in_a_pool_of_its_slot() {
        let slots = Slots::new(2, 3).unwrap();
        let threads = slots.take().await.unwrap().run(rayon::current_num_threads).await.unwrap();
        assert_eq!(threads, Ok(3));
    }

    #[tokio::test]
    async fn a_panic_on_any_thread_of_the_pool_is_told_with_its_place_and_the_slot_goes_on() {
        let slots = Slots::new(1, 2).unwrap();
        let line = line!() + 2;
        let nested = || {
            rayon::join(|| (), || panic!("odd {}", 7));
        };
        let panicked = slots.take().await.unwrap().run(nested).await.unwrap().unwrap_err();
        assert_eq!(panicked.to_string(), format!("panicked: odd 7 at {}:{line}", file!()));
        assert!(!panicked.backtrace.is_empty());
        assert_eq!(slots.take().await.unwrap().run(|| 5).await.unwrap(), Ok(5));
    }

    #[tokio::test]
    async fn a_taken_slot_is_waited_for() {
        let slots = Slots::new(1, 1).unwrap();
        let slot = slots.take().await.unwrap();
        let mut second = Box::pin(slots.take());
        assert!(tokio::time::timeout(Duration::from_millis(5), &mut second).await.is_err());
        drop(slot);
        second.await.unwrap();
    }
}

//! Attempts that share a slot: they wait for each other's inputs and then for the slot, begin together, and end one by one.
//!
//! An attempt that is alone in its slot is a pack of one.

use crate::{attempt::Workshop, sink::AttemptSink, slots::Panicked};
use std::sync::Arc;
use taskvec_model::job::JobWork;
use taskvec_science::{Inputs, Member};
use tokio::sync::{mpsc, oneshot, watch};

/// An attempt's place in its pack. When it is dropped, the others wait for this attempt no longer.
pub struct Seat {
    arrivals: mpsc::Sender<Arrival>,
    fate: watch::Receiver<Option<Lost>>,
}

/// A job that is ready to compute.
pub struct Ready {
    pub work: JobWork,
    pub inputs: Inputs,
    pub sink: AttemptSink,
}

struct Arrival {
    job: Ready,
    /// Gets the number of jobs that begin. Closed when the attempt does not wait any more.
    begun: oneshot::Sender<usize>,
}

/// Why a job came to no end of its own.
#[derive(Clone, Debug)]
pub enum Lost {
    Panicked(Panicked),
    /// A fault in the worker.
    Slot(String),
}

/// Seats for as many attempts.
pub fn seats(count: usize, workshop: &Arc<Workshop>) -> Vec<Seat> {
    let (arrivals, arrived) = mpsc::channel(count.max(1));
    let (told, fate) = watch::channel(None);
    let workshop = workshop.clone();
    tokio::spawn(async move {
        if let Err(lost) = run(&workshop, arrived).await {
            told.send_replace(Some(lost));
        }
    });
    (0..count).map(|_| Seat { arrivals: arrivals.clone(), fate: fate.clone() }).collect()
}

impl Seat {
    /// Waits until the job begins; gives how many there are in its slot, and the way to learn what became of it.
    pub async fn begin(self, job: Ready) -> Result<(usize, Fate), Lost> {
        let Self { arrivals, fate } = self;
        let (begun, begins) = oneshot::channel();
        // It listens until all seats are gone.
        let _ = arrivals.send(Arrival { job, begun }).await;
        drop(arrivals);
        let fate = Fate(fate);
        match begins.await {
            Ok(count) => Ok((count, fate)),
            Err(_) => Err(fate.lost().await),
        }
    }
}

/// What became of a pack.
pub struct Fate(watch::Receiver<Option<Lost>>);

impl Fate {
    /// Why a member never said how it ended.
    pub async fn lost(mut self) -> Lost {
        match self.0.wait_for(Option::is_some).await.map(|lost| lost.clone()) {
            Ok(Some(lost)) => lost,
            _ => Lost::Slot("the slot lost the job; this is a fault in the worker".into()),
        }
    }
}

/// Runs all that have arrived when nobody is on the way any more.
async fn run(workshop: &Workshop, mut arrived: mpsc::Receiver<Arrival>) -> Result<(), Lost> {
    let mut waiting = Vec::new();
    while let Some(arrival) = arrived.recv().await {
        waiting.push(arrival);
    }
    let slot = tokio::select! {
        slot = workshop.slots.take() => slot.map_err(|e| Lost::Slot(e.to_string()))?,
        () = nobody(&mut waiting) => return Ok(()),
    };
    waiting.retain(|arrival| !arrival.begun.is_closed());
    let count = waiting.len();
    let begin = |Arrival { job: Ready { work, inputs, sink }, begun }: Arrival| {
        begun.send(count).ok().map(|()| Member { work, inputs, sink: Box::new(sink) })
    };
    let members: Vec<Member> = waiting.into_iter().filter_map(begin).collect();
    let execute = workshop.execute.clone();
    match slot.run(move || execute.execute_stack(members)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(panicked)) => Err(Lost::Panicked(panicked)),
        Err(_) => Err(Lost::Slot("the slot has gone; this is a fault in the worker".into())),
    }
}

/// Resolves when none of them waits any more.
async fn nobody(waiting: &mut [Arrival]) {
    for arrival in waiting {
        arrival.begun.closed().await;
    }
}

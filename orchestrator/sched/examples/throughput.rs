//! How many events a second the scheduler takes in with a large sweep and many workers.
//!
//! `cargo run --release -p taskvec-sched --example throughput`. Prints one line per phase.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};
use taskvec_model::{
    id::{AttemptRef, Digest, JobId, RunId, SweepId, WorkerId},
    schedule::{Capacity, JobInfo, Snapshot, SweepInfo},
    state::{JobState, SweepState},
};
use taskvec_sched::{Config, Effect, Event, Message, State, step};

const RUNS: i64 = 1_000;
/// A chain of 50 training segments, each with one analysis.
const JOBS_PER_RUN: i64 = 100;
const WORKERS: i64 = 100;
const SLOTS: u32 = 4;

fn main() {
    let (mut state, _) = State::new(Config::default(), Snapshot::default(), 0);
    let sweep = SweepInfo { id: SweepId(1), state: SweepState::Active, priority: 0 };
    let submitted = Event::SweepSubmitted { sweep, jobs: jobs() };
    let mut work = Work::default();
    let time = |name: &str, events: usize, spent: Duration| {
        let each = spent.as_secs_f64() / events as f64;
        println!("{name:<28}{events:>8} events {:>10.3} s {:>12.0} events/s", spent.as_secs_f64(), 1.0 / each);
    };

    time("submit 100 000 jobs", 1, work.take(&mut state, submitted, 0));
    let capacity = Capacity { slots: SLOTS, stack: 1, stack_bytes: 0 };
    let hellos = (1..=WORKERS).map(|id| Event::WorkerHello { worker: WorkerId(id), capacity, attempts: vec![] });
    time("workers connect", WORKERS as usize, hellos.map(|event| work.take(&mut state, event, 0)).sum());

    let mut beating = Duration::ZERO;
    for round in 1..=200 {
        for id in (1..=WORKERS).map(WorkerId) {
            let event = Event::Heartbeat { worker: id, attempts: state.attempts_on(id) };
            beating += work.take(&mut state, event, round * 7_000);
        }
    }
    time("heartbeats, 4 attempts each", 200 * WORKERS as usize, beating);

    let restarted = Instant::now();
    let rebuilt = State::new(Config::default(), state.snapshot(), 1_400_000);
    time("restart (snapshot, rebuild)", 1, restarted.elapsed());
    drop(rebuilt);

    let (mut spent, mut slowest, mut events) = (Duration::ZERO, Duration::ZERO, 0);
    while let Some((worker, attempt)) = work.assigned.pop_front() {
        let one = work.take(&mut state, Event::Succeeded { worker, attempt }, 1_400_000);
        (spent, slowest, events) = (spent + one, slowest.max(one), events + 1);
    }
    time("complete and start the next", events, spent);
    println!("slowest completion (the last, which drops the sweep): {:.3} ms", slowest.as_secs_f64() * 1e3);
    assert_eq!(state.counts(SweepId(1)), None, "the sweep has ended");
}

fn jobs() -> Vec<JobInfo> {
    (0..RUNS * JOBS_PER_RUN).map(job).collect()
}

fn job(id: i64) -> JobInfo {
    let (run, place) = (id / JOBS_PER_RUN, id % JOBS_PER_RUN);
    // Even places train, each from the one before; odd places analyse what was just trained.
    let needs: Vec<JobId> = match place {
        0 => vec![],
        even if even % 2 == 0 => vec![JobId(id - 2)],
        _ => vec![JobId(id - 1)],
    };
    let mut key = [0; 32];
    key[..8].copy_from_slice(&(id as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    JobInfo {
        id: JobId(id),
        sweep: SweepId(1),
        run: RunId(run),
        key: Digest(key),
        pack: None,
        state: if needs.is_empty() { JobState::Ready } else { JobState::Waiting },
        needs,
        attempts: 0,
        failures: 0,
        slot: None,
    }
}

#[derive(Default)]
struct Work {
    assigned: VecDeque<(WorkerId, AttemptRef)>,
}

impl Work {
    /// One step, timed; what it assigns will be done in that order.
    fn take(&mut self, state: &mut State, event: Event, now: u64) -> Duration {
        let begun = Instant::now();
        let effects = step(state, event, now);
        let spent = begun.elapsed();
        for effect in effects {
            if let Effect::Send(Message::Assign { worker, attempts }) = effect {
                self.assigned.extend(attempts.into_iter().map(|attempt| (worker, attempt)));
            }
        }
        spent
    }
}

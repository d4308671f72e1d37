//! Random events in any order, most of them senseless: whatever comes, the invariants hold, the store refuses nothing,
//! memory and store agree, and in the end everything ends.

use crate::{
    build::{self, key, kind, pack},
    checks::{check_answer, check_messages, outcome_of},
    store::Store,
};
use proptest::{collection::vec, prelude::*, sample::Index, test_runner::FileFailurePersistence};
use std::collections::BTreeSet;
use taskvec_model::{
    id::{AttemptRef, JobId, RunId, SweepId, WorkerId},
    job::{Failure, Retry},
    schedule::{Capacity, Change, JobInfo, Millis, SweepInfo, WorkerInfo},
    state::{JobState, SweepState, WorkerState},
};
use taskvec_sched::{Config, Effect, Event, State, step};

const CONFIG: Config = Config { lease: 100, retry_limit: 3, backoff_base: 10, backoff_max: 40 };
const WORKERS: i64 = 4;

#[derive(Clone, Debug)]
enum Action {
    /// Per job: its needs among the jobs before it, and its key.
    Submit {
        jobs: Vec<(Vec<Index>, u8)>,
        priority: i32,
    },
    Pause(Index),
    Resume(Index),
    Cancel(Index),
    Retry(Index),
    RetryJob(Index),
    Priority(Index, i32),
    Hello {
        worker: i64,
        slots: u32,
        /// Runs in a slot, and how many of one layer its memory holds.
        stack: (u32, u64),
        attempts: Vec<Pick>,
    },
    Lost(i64),
    Draining(i64),
    Left(i64),
    Heartbeat {
        worker: i64,
        attempts: Vec<Pick>,
    },
    Outcome {
        worker: i64,
        attempt: Pick,
        outcome: Outcome,
    },
    /// The outcome of an attempt that runs, from the worker that runs it.
    Finish(Index, Outcome),
    Tick(Millis),
    /// Time passes, and the server does not notice.
    Stall(Millis),
    SetBack(Millis),
    Restart,
}

/// An attempt: all that this worker runs, one that was once made, or one that never was.
#[derive(Clone, Debug)]
enum Pick {
    Own,
    Known(Index),
    Invented(i64, i32),
}

#[derive(Clone, Copy, Debug)]
enum Outcome {
    Success,
    Failure(Retry),
    Release,
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        5 => Just(Outcome::Success),
        2 => Just(Outcome::Failure(Retry::Allowed)),
        1 => Just(Outcome::Failure(Retry::Never)),
        1 => Just(Outcome::Release),
    ]
}

fn pick() -> impl Strategy<Value = Pick> {
    prop_oneof![
        3 => Just(Pick::Own),
        2 => any::<Index>().prop_map(Pick::Known),
        1 => (0..40i64, -1..5i32).prop_map(|(job, number)| Pick::Invented(job, number)),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    let jobs = vec((vec(any::<Index>(), 0..3), 0..24u8), 0..9);
    let worker = 0..WORKERS;
    prop_oneof![
        4 => (jobs, -1..2i32).prop_map(|(jobs, priority)| Action::Submit { jobs, priority }),
        1 => any::<Index>().prop_map(Action::Pause),
        2 => any::<Index>().prop_map(Action::Resume),
        1 => any::<Index>().prop_map(Action::Cancel),
        2 => any::<Index>().prop_map(Action::Retry),
        2 => any::<Index>().prop_map(Action::RetryJob),
        1 => (any::<Index>(), -2..3i32).prop_map(|(sweep, to)| Action::Priority(sweep, to)),
        6 => (worker.clone(), 0..4u32, (1..5u32, 0..9u64), vec(pick(), 0..3))
            .prop_map(|(worker, slots, stack, attempts)| Action::Hello { worker, slots, stack, attempts }),
        2 => worker.clone().prop_map(Action::Lost),
        1 => worker.clone().prop_map(Action::Draining),
        1 => worker.clone().prop_map(Action::Left),
        4 => (worker.clone(), vec(pick(), 0..4)).prop_map(|(worker, attempts)| Action::Heartbeat { worker, attempts }),
        3 => (worker, pick(), outcome())
            .prop_map(|(worker, attempt, outcome)| Action::Outcome { worker, attempt, outcome }),
        12 => (any::<Index>(), outcome()).prop_map(|(of, outcome)| Action::Finish(of, outcome)),
        5 => (0..130u64).prop_map(Action::Tick),
        1 => (0..130u64).prop_map(Action::Stall),
        1 => (0..500u64).prop_map(Action::SetBack),
        2 => Just(Action::Restart),
    ]
}

#[derive(Clone)]
struct World {
    state: State,
    store: Store,
    now: Millis,
    /// Do jobs share keys?
    twins: bool,
}

impl World {
    fn new(twins: bool) -> Self {
        Self { twins, state: State::new(CONFIG, Default::default(), 0).0, store: Store::new(CONFIG.lease), now: 10_000 }
    }

    fn act(&mut self, action: &Action) -> Result<(), TestCaseError> {
        match action {
            Action::Stall(millis) => self.now += millis,
            Action::SetBack(millis) => self.now = self.now.saturating_sub(*millis),
            Action::Restart => return self.restart(),
            Action::Tick(millis) => {
                self.now += millis;
                return self.event(Event::Tick);
            }
            _ => {}
        }
        self.translate(action).map_or(Ok(()), |event| self.event(event))
    }

    /// None where there is nothing to act on.
    fn translate(&mut self, action: &Action) -> Option<Event> {
        Some(match action {
            Action::Submit { jobs, priority } => self.submit(jobs, *priority),
            Action::Pause(sweep) => Event::Pause(self.sweep(sweep)?.id),
            Action::Resume(sweep) => Event::Resume(self.sweep(sweep)?.id),
            Action::Cancel(sweep) => Event::Cancel(self.sweep(sweep)?.id),
            Action::Priority(sweep, to) => Event::SetPriority(self.sweep(sweep)?.id, *to),
            Action::Retry(sweep) => {
                let sweep = self.sweep(sweep)?;
                Event::Retry { jobs: self.store.jobs_of(sweep.id), sweep }
            }
            Action::RetryJob(job) => {
                let jobs: Vec<&JobInfo> = self.store.jobs.values().collect();
                let job = *(!jobs.is_empty()).then(|| job.get(&jobs))?;
                let sweep = self.store.sweeps[&job.sweep].clone();
                Event::RetryJob { job: job.id, jobs: self.store.jobs_of(sweep.id), sweep }
            }
            Action::Hello { worker, slots, stack: (stack, memory), attempts } => {
                let attempts = self.picked(*worker, attempts);
                let stack_bytes = memory * pack(1).bytes();
                self.hello(*worker, Capacity { slots: *slots, stack: *stack, stack_bytes }, attempts)
            }
            Action::Lost(worker) => Event::WorkerLost(WorkerId(*worker)),
            Action::Draining(worker) => Event::WorkerDraining(WorkerId(*worker)),
            Action::Left(worker) => Event::WorkerLeft(WorkerId(*worker)),
            Action::Heartbeat { worker, attempts } => {
                Event::Heartbeat { worker: WorkerId(*worker), attempts: self.picked(*worker, attempts) }
            }
            Action::Outcome { worker, attempt, outcome } => {
                let attempt = *self.picked(*worker, std::slice::from_ref(attempt)).first()?;
                event_of(WorkerId(*worker), attempt, *outcome)
            }
            Action::Finish(which, outcome) => {
                let running: Vec<_> = self.store.jobs.keys().filter_map(|job| self.state.running(*job)).collect();
                let (attempt, worker) = *(!running.is_empty()).then(|| which.get(&running))?;
                event_of(worker, attempt, *outcome)
            }
            Action::Tick(_) | Action::Stall(_) | Action::SetBack(_) | Action::Restart => return None,
        })
    }

    fn submit(&mut self, jobs: &[(Vec<Index>, u8)], priority: i32) -> Event {
        let id = SweepId(self.store.sweeps.len() as i64 + 1);
        let first = self.store.jobs.len() as i64;
        let mut infos: Vec<JobInfo> = Vec::new();
        for (offset, (needs, content)) in jobs.iter().enumerate() {
            let mut needs: Vec<JobId> =
                needs.iter().filter(|_| offset > 0).map(|need| JobId(first + need.index(offset) as i64)).collect();
            needs.sort_unstable();
            needs.dedup();
            infos.push(JobInfo {
                id: JobId(first + offset as i64),
                sweep: id,
                run: RunId(1),
                key: key(if self.twins { u64::from(*content) } else { 1_000 + first as u64 + offset as u64 }),
                pack: kind(*content),
                state: if needs.is_empty() { JobState::Ready } else { JobState::Waiting },
                needs,
                attempts: 0,
                failures: 0,
                slot: None,
            });
        }
        let sweep = SweepInfo { id, state: SweepState::Active, priority };
        self.store.submit(sweep.clone(), &mut infos);
        Event::SweepSubmitted { sweep, jobs: infos }
    }

    fn sweep(&self, which: &Index) -> Option<SweepInfo> {
        let sweeps: Vec<&SweepInfo> = self.store.sweeps.values().collect();
        (!sweeps.is_empty()).then(|| (*which.get(&sweeps)).clone())
    }

    /// The server registers a worker before the scheduler hears of it.
    fn hello(&mut self, worker: i64, capacity: Capacity, attempts: Vec<AttemptRef>) -> Event {
        let id = WorkerId(worker);
        let mut kept = self.state.attempts_on(id);
        kept.retain(|attempt| attempts.contains(attempt));
        let kept: BTreeSet<_> = kept.iter().map(|attempt| self.store.jobs[&attempt.job].slot).collect();
        let new = WorkerInfo { id, slots: capacity.slots, state: WorkerState::Connected };
        let row = self.store.workers.entry(id).or_insert(new);
        row.slots = capacity.slots.max(kept.len() as u32);
        self.store.capacities.insert(id, capacity);
        if row.state == WorkerState::Left {
            row.state = WorkerState::Connected;
        }
        Event::WorkerHello { worker: id, capacity, attempts }
    }

    fn picked(&self, worker: i64, picks: &[Pick]) -> Vec<AttemptRef> {
        let known = self.store.known_attempts();
        let one = |pick: &Pick| match pick {
            Pick::Own => self.state.attempts_on(WorkerId(worker)),
            Pick::Known(which) if known.is_empty() => build_invented(which.index(9) as i64, 1),
            Pick::Known(which) => vec![*which.get(&known)],
            Pick::Invented(job, number) => build_invented(*job, *number),
        };
        picks.iter().flat_map(one).collect()
    }

    fn event(&mut self, event: Event) -> Result<(), TestCaseError> {
        let asked = outcome_of(&event);
        let current = asked.is_some_and(|(worker, attempt)| {
            self.store.is_running(attempt) && self.store.jobs[&attempt.job].slot.is_some_and(|s| s.worker == worker)
        });
        let effects = step(&mut self.state, event, self.now);
        self.persist(&effects)?;
        if let Some((worker, attempt)) = asked {
            check_answer(&effects, worker, attempt, current)?;
        }
        check_messages(&effects, &self.state)?;
        self.compare()
    }

    fn persist(&mut self, effects: &[Effect]) -> Result<(), TestCaseError> {
        self.store.event_at(self.now);
        for effect in effects {
            if let Effect::Persist(change) = effect {
                self.store.apply(change).map_err(TestCaseError::fail)?;
            }
        }
        Ok(())
    }

    /// Memory and store say the same.
    fn compare(&self) -> Result<(), TestCaseError> {
        self.state.check().map_err(TestCaseError::fail)?;
        prop_assert_eq!(self.state.snapshot(), self.store.snapshot());
        Ok(())
    }

    fn restart(&mut self) -> Result<(), TestCaseError> {
        self.store.clock = self.now;
        let (state, effects) = State::new(CONFIG, self.store.load(), self.now);
        self.state = state;
        self.persist(&effects)?;
        let nothing_but_workers = |effect: &Effect| matches!(effect, Effect::Persist(Change::SetWorker { .. }));
        prop_assert!(effects.iter().all(nothing_but_workers), "a sound store needs no repair: {:?}", effects);
        self.compare()
    }

    /// All other workers fall silent; one healthy worker does what is left.
    fn finish(&mut self) -> Result<(), TestCaseError> {
        const HEALTHY: i64 = 100;
        for worker in 0..WORKERS {
            self.event(Event::WorkerLost(WorkerId(worker)))?;
        }
        for id in self.store.sweeps.keys().copied().collect::<Vec<_>>() {
            self.event(Event::Resume(id))?;
        }
        let hello = self.hello(HEALTHY, build::capacity(3, 2), vec![]);
        self.event(hello)?;
        let bound = 20 * self.store.jobs.len() + 20;
        for _ in 0..bound {
            if let Some(attempt) = self.state.attempts_on(WorkerId(HEALTHY)).first() {
                self.event(Event::Succeeded { worker: WorkerId(HEALTHY), attempt: *attempt })?;
            } else if let Some(next) = self.state.next_deadline() {
                self.now = self.now.max(next);
                self.event(Event::Tick)?;
            } else {
                break;
            }
        }
        let open: Vec<&SweepInfo> = self.store.sweeps.values().filter(|sweep| !sweep.state.ended()).collect();
        prop_assert!(open.is_empty(), "a healthy worker does not finish {:?}", open);
        prop_assert!(self.store.jobs.values().all(|job| job.state.ended()));
        Ok(())
    }
}

fn build_invented(job: i64, number: i32) -> Vec<AttemptRef> {
    vec![build::attempt(job, number)]
}

fn event_of(worker: WorkerId, attempt: AttemptRef, outcome: Outcome) -> Event {
    match outcome {
        Outcome::Success => Event::Succeeded { worker, attempt },
        Outcome::Failure(retry) => {
            Event::Failed { worker, attempt, failure: Failure { retry, reason: "random".into() } }
        }
        Outcome::Release => Event::Released { worker, attempt },
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        max_shrink_iters: 20_000,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    })]

    /// On failure proptest prints the smallest history that fails, and keeps its seed in garbage.regressions beside this
    /// file, to be tried first from then on.
    #[test]
    fn nothing_that_comes_breaks_it(actions in vec(action(), 0..120), cut in any::<Index>(), twins in any::<bool>()) {
        let mut world = World::new(twins);
        let cut = cut.index(actions.len() + 1);
        let mut rebuilt = None;
        for (i, action) in actions.iter().enumerate() {
            if i == cut {
                rebuilt = Some(world.clone());
            }
            world.act(action)?;
        }
        let mut original = rebuilt.unwrap_or_else(|| world.clone());
        world.finish()?;

        // From any moment, a state rebuilt from the store leads to the same table as the one that lived through it. (Keys
        // drawn at random are no content keys: whether a job is done by its twin or skipped before is then a race.)
        let mut rebuilt = original.clone();
        rebuilt.restart()?;
        rebuilt.finish()?;
        original.finish()?;
        prop_assert!(twins || rebuilt.store.table() == original.store.table());
    }
}

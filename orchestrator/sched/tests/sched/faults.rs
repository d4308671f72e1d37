//! Simulated workers with spools on a simulated server: crashes, lost connections, late and repeated outcomes, restarts and
//! failed commits. Whatever happens, every sweep ends as if nothing had, and no work is published twice.

use crate::{
    build::{capacity, key, kind},
    store::Store,
};
use proptest::{collection::vec, prelude::*, sample::Index, test_runner::FileFailurePersistence};
use std::{
    collections::{BTreeMap, BTreeSet, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
};
use taskvec_model::{
    id::{AttemptRef, JobId, JobKey, RunId, SweepId, WorkerId},
    job::{Failure, Retry},
    schedule::{Capacity, JobInfo, Millis, SweepInfo, WorkerInfo},
    state::{JobState, SweepState, WorkerState},
};
use taskvec_sched::{Config, Effect, Event, Message, State, step};

/// Failures that may pass are for ever tried again, so that only poison fails.
const CONFIG: Config = Config { lease: 100, retry_limit: u32::MAX, backoff_base: 10, backoff_max: 40 };

#[derive(Clone, Debug)]
enum Action {
    /// Per job: its needs among the jobs before it, and what it does; 0 is poison.
    Submit(Vec<(Vec<Index>, u8)>),
    Pause(Index),
    Resume(Index),
    /// With so many slots, for so many runs each.
    Join(u32, u32),
    /// The process is gone, with all it held.
    Crash(Index),
    /// `noticed`: the server hears of it before the worker is back.
    Disconnect(Index, bool),
    Reconnect(Index),
    Heartbeat(Index),
    /// One attempt ends, by itself or, `flaky`, with a failure that may pass.
    Work(Index, bool),
    Resend(Index),
    Drain(Index),
    Pass(Millis),
    /// Time passes, and the server does not notice.
    Stall(Millis),
    /// Everything decided so far is committed, then sent.
    Commit,
    /// The server dies, or its commit fails: what was not committed has not happened.
    Restart,
}

fn action() -> impl Strategy<Value = Action> {
    let any = any::<Index>;
    prop_oneof![
        2 => vec((vec(any(), 0..3), 0..6u8), 0..9).prop_map(Action::Submit),
        1 => any().prop_map(Action::Pause),
        1 => any().prop_map(Action::Resume),
        3 => (1..4u32, 1..5u32).prop_map(|(slots, stack)| Action::Join(slots, stack)),
        1 => any().prop_map(Action::Crash),
        2 => (any(), prop::bool::ANY).prop_map(|(of, noticed)| Action::Disconnect(of, noticed)),
        3 => any().prop_map(Action::Reconnect),
        4 => any().prop_map(Action::Heartbeat),
        8 => (any(), prop::bool::weighted(0.2)).prop_map(|(of, flaky)| Action::Work(of, flaky)),
        2 => any().prop_map(Action::Resend),
        1 => any().prop_map(Action::Drain),
        4 => (0..70u64).prop_map(Action::Pass),
        1 => (0..130u64).prop_map(Action::Stall),
        8 => Just(Action::Commit),
        1 => Just(Action::Restart),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Running,
    Success,
    Failure(Retry),
    Released,
}

struct Agent {
    capacity: Capacity,
    connected: bool,
    draining: bool,
    held: BTreeMap<AttemptRef, Held>,
}

struct World {
    state: State,
    store: Store,
    /// What would be left after a crash of the server.
    committed: Store,
    outbox: Vec<Message>,
    agents: BTreeMap<WorkerId, Agent>,
    joined: i64,
    now: Millis,
    poison: BTreeSet<JobKey>,
}

impl World {
    fn new() -> Self {
        Self {
            state: State::new(CONFIG, Default::default(), 0).0,
            store: Store::new(CONFIG.lease),
            committed: Store::new(CONFIG.lease),
            outbox: Vec::new(),
            agents: BTreeMap::new(),
            joined: 0,
            now: 0,
            poison: BTreeSet::new(),
        }
    }

    fn act(&mut self, action: &Action) -> Result<(), TestCaseError> {
        match action {
            Action::Submit(jobs) => self.submit(jobs),
            Action::Pause(which) => self.sweep(which).map_or(Ok(()), |id| self.event(Event::Pause(id))),
            Action::Resume(which) => self.sweep(which).map_or(Ok(()), |id| self.event(Event::Resume(id))),
            Action::Join(slots, stack) => self.join(*slots, *stack),
            Action::Crash(which) => self.with(which, |world, id| {
                world.agents.remove(&id);
                world.event(Event::WorkerLost(id))
            }),
            Action::Disconnect(which, noticed) => self.with(which, |world, id| world.disconnect(id, *noticed)),
            Action::Reconnect(which) => self.with(which, Self::hello),
            Action::Heartbeat(which) => self.with(which, Self::heartbeat),
            Action::Work(which, flaky) => self.with(which, |world, id| world.work(id, *flaky)),
            Action::Resend(which) => self.with(which, Self::resend),
            Action::Drain(which) => self.with(which, |world, id| world.event(Event::WorkerDraining(id))),
            Action::Pass(millis) => {
                self.now += millis;
                self.event(Event::Tick)
            }
            Action::Stall(millis) => {
                self.now += millis;
                Ok(())
            }
            Action::Commit => self.commit(),
            Action::Restart => self.restart(),
        }
    }

    fn with(
        &mut self,
        which: &Index,
        act: impl FnOnce(&mut Self, WorkerId) -> Result<(), TestCaseError>,
    ) -> Result<(), TestCaseError> {
        let ids: Vec<WorkerId> = self.agents.keys().copied().collect();
        if ids.is_empty() { Ok(()) } else { act(self, *which.get(&ids)) }
    }

    fn sweep(&self, which: &Index) -> Option<SweepId> {
        let ids: Vec<SweepId> = self.store.sweeps.keys().copied().collect();
        (!ids.is_empty()).then(|| *which.get(&ids))
    }

    /// Submitting is a commit of its own.
    fn submit(&mut self, jobs: &[(Vec<Index>, u8)]) -> Result<(), TestCaseError> {
        self.commit()?;
        let id = SweepId(self.store.sweeps.len() as i64 + 1);
        let first = self.store.jobs.len() as i64;
        let mut infos: Vec<JobInfo> = Vec::new();
        for (offset, (needs, content)) in jobs.iter().enumerate() {
            let chosen: BTreeSet<usize> = needs.iter().filter(|_| offset > 0).map(|need| need.index(offset)).collect();
            // As content keys are: what the job does, and the keys of what it reads.
            let mut hasher = DefaultHasher::new();
            (content, chosen.iter().map(|need| infos[*need].key.0).collect::<Vec<_>>()).hash(&mut hasher);
            let key = key(hasher.finish());
            if *content == 0 {
                self.poison.insert(key);
            }
            infos.push(JobInfo {
                id: JobId(first + offset as i64),
                sweep: id,
                run: RunId(1),
                key,
                pack: kind(*content),
                state: if chosen.is_empty() { JobState::Ready } else { JobState::Waiting },
                needs: chosen.iter().map(|need| infos[*need].id).collect(),
                attempts: 0,
                failures: 0,
                slot: None,
            });
        }
        let sweep = SweepInfo { id, state: SweepState::Active, priority: 0 };
        self.store.submit(sweep.clone(), &mut infos);
        self.committed = self.store.clone();
        self.event(Event::SweepSubmitted { sweep, jobs: infos })
    }

    fn join(&mut self, slots: u32, stack: u32) -> Result<(), TestCaseError> {
        self.joined += 1;
        let id = WorkerId(self.joined);
        let row = WorkerInfo { id, slots, state: WorkerState::Connected };
        let capacity = capacity(slots, stack);
        for store in [&mut self.committed, &mut self.store] {
            store.workers.insert(id, row.clone());
            store.capacities.insert(id, capacity);
        }
        self.agents.insert(id, Agent { capacity, connected: false, draining: false, held: BTreeMap::new() });
        self.hello(id)
    }

    fn hello(&mut self, id: WorkerId) -> Result<(), TestCaseError> {
        let Some(agent) = self.agents.get_mut(&id) else { return Ok(()) };
        agent.connected = true;
        let (capacity, attempts) = (agent.capacity, agent.held.keys().copied().collect());
        self.event(Event::WorkerHello { worker: id, capacity, attempts })?;
        self.resend(id)
    }

    fn disconnect(&mut self, id: WorkerId, noticed: bool) -> Result<(), TestCaseError> {
        if let Some(agent) = self.agents.get_mut(&id) {
            agent.connected = false;
        }
        if noticed { self.event(Event::WorkerLost(id)) } else { Ok(()) }
    }

    fn heartbeat(&mut self, id: WorkerId) -> Result<(), TestCaseError> {
        match self.agents.get(&id) {
            Some(agent) if agent.connected => {
                self.event(Event::Heartbeat { worker: id, attempts: agent.held.keys().copied().collect() })
            }
            _ => Ok(()),
        }
    }

    fn work(&mut self, id: WorkerId, flaky: bool) -> Result<(), TestCaseError> {
        let Some(agent) = self.agents.get_mut(&id) else { return Ok(()) };
        let Some((attempt, held)) = agent.held.iter_mut().find(|(_, held)| **held == Held::Running) else {
            return self.leave_if_drained(id);
        };
        let poisoned = self.poison.contains(&self.store.jobs[&attempt.job].key);
        *held = match () {
            () if agent.draining => Held::Released,
            () if flaky => Held::Failure(Retry::Allowed),
            () if poisoned => Held::Failure(Retry::Never),
            () => Held::Success,
        };
        self.resend(id)
    }

    fn leave_if_drained(&mut self, id: WorkerId) -> Result<(), TestCaseError> {
        let drained = self.agents.get(&id).is_some_and(|a| a.draining && a.connected && a.held.is_empty());
        if drained {
            self.agents.remove(&id);
            self.event(Event::WorkerLeft(id))?;
        }
        Ok(())
    }

    /// Everything in the spool, whether or not it was sent before.
    fn resend(&mut self, worker: WorkerId) -> Result<(), TestCaseError> {
        let Some(agent) = self.agents.get(&worker).filter(|agent| agent.connected) else { return Ok(()) };
        for (attempt, held) in agent.held.clone() {
            self.event(match held {
                Held::Running => continue,
                Held::Success => Event::Succeeded { worker, attempt },
                Held::Released => Event::Released { worker, attempt },
                Held::Failure(retry) => {
                    Event::Failed { worker, attempt, failure: Failure { retry, reason: "simulated".into() } }
                }
            })?;
        }
        Ok(())
    }

    fn event(&mut self, event: Event) -> Result<(), TestCaseError> {
        let effects = step(&mut self.state, event, self.now);
        self.take(effects)
    }

    fn take(&mut self, effects: Vec<Effect>) -> Result<(), TestCaseError> {
        self.store.event_at(self.now);
        for effect in effects {
            match effect {
                Effect::Persist(change) => self.store.apply(&change).map_err(TestCaseError::fail)?,
                Effect::Send(message) => self.outbox.push(message),
            }
        }
        self.state.check().map_err(TestCaseError::fail)?;
        prop_assert_eq!(self.state.snapshot(), self.store.snapshot());
        Ok(())
    }

    fn commit(&mut self) -> Result<(), TestCaseError> {
        self.committed = self.store.clone();
        for message in std::mem::take(&mut self.outbox) {
            let (Message::Assign { worker, .. }
            | Message::Stop { worker, .. }
            | Message::Answer { worker, .. }
            | Message::Drain { worker }) = &message;
            let Some(agent) = self.agents.get_mut(worker).filter(|agent| agent.connected) else { continue };
            match message {
                Message::Assign { attempts, .. } => agent.held.extend(attempts.into_iter().map(|a| (a, Held::Running))),
                Message::Stop { attempt, .. } | Message::Answer { attempt, .. } => _ = agent.held.remove(&attempt),
                Message::Drain { .. } => agent.draining = true,
            }
        }
        Ok(())
    }

    fn restart(&mut self) -> Result<(), TestCaseError> {
        self.outbox.clear();
        self.store = self.committed.clone();
        for agent in self.agents.values_mut() {
            agent.connected = false;
        }
        self.store.clock = self.now;
        let (state, effects) = State::new(CONFIG, self.store.load(), self.now);
        self.state = state;
        self.take(effects)?;
        self.commit()
    }

    /// No more faults, and one healthy worker is there.
    fn finish(&mut self) -> Result<(), TestCaseError> {
        for id in self.store.sweeps.keys().copied().collect::<Vec<_>>() {
            self.event(Event::Resume(id))?;
        }
        self.join(2, 2)?;
        for id in self.agents.keys().copied().collect::<Vec<_>>() {
            self.hello(id)?;
        }
        for _ in 0..6 * self.store.jobs.len() + 30 {
            self.commit()?;
            for id in self.agents.keys().copied().collect::<Vec<_>>() {
                self.heartbeat(id)?;
                self.work(id, false)?;
            }
            self.now += 20;
            self.event(Event::Tick)?;
        }
        let open: Vec<&SweepInfo> = self.store.sweeps.values().filter(|sweep| !sweep.state.ended()).collect();
        prop_assert!(open.is_empty(), "a healthy worker does not finish {:?}", open);
        Ok(())
    }

    /// How every job must end, whatever happened on the way.
    fn expected(&self) -> BTreeMap<JobId, JobState> {
        let mut table: BTreeMap<JobId, JobState> = BTreeMap::new();
        for (id, job) in &self.store.jobs {
            let possible = job.needs.iter().all(|need| table[need] == JobState::Done);
            let end = match (possible, self.poison.contains(&job.key)) {
                (false, _) => JobState::Skipped,
                (true, true) => JobState::Failed,
                (true, false) => JobState::Done,
            };
            table.insert(*id, end);
        }
        table
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        max_shrink_iters: 20_000,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    })]

    /// That no key is published twice is a guard of the store.
    #[test]
    fn everything_ends_as_if_nothing_had_happened(actions in vec(action(), 0..150)) {
        let mut world = World::new();
        for action in &actions {
            world.act(action)?;
        }
        world.finish()?;
        prop_assert_eq!(world.store.table(), world.expected());
    }
}

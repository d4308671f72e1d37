//! Short words for the tests.

use taskvec_model::{
    id::{AttemptRef, Digest, JobId, JobKey, RunId, SweepId, WorkerId},
    job::{Failure, Retry},
    pack::PackKey,
    schedule::{Capacity, Change, JobInfo, Millis, SlotRef, Snapshot, SweepInfo},
    spec::{Arch, OptimizerKind, Precision, YChannel},
    state::{AttemptState, JobState, SweepState, WorkerState},
};
use taskvec_sched::{Config, Effect, Event, Message, State, Verdict, step};

pub const CONFIG: Config = Config { lease: 20_000, retry_limit: 3, backoff_base: 1_000, backoff_max: 60_000 };

pub fn key(content: u64) -> JobKey {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&content.to_be_bytes());
    Digest(bytes)
}

pub fn sweep(id: i64, state: SweepState, priority: i32) -> SweepInfo {
    SweepInfo { id: SweepId(id), state, priority }
}

/// A job of its own kind, waiting or ready by what it needs.
pub fn job(sweep: i64, id: i64, needs: &[i64]) -> JobInfo {
    let state = if needs.is_empty() { JobState::Ready } else { JobState::Waiting };
    JobInfo {
        id: JobId(id),
        sweep: SweepId(sweep),
        run: RunId(1),
        key: key(id as u64),
        pack: None,
        needs: needs.iter().map(|id| JobId(*id)).collect(),
        state,
        attempts: 0,
        failures: 0,
        slot: None,
    }
}

/// What jobs that can share a slot have in common: the same number, the same shape.
pub fn pack(layers: u32) -> PackKey {
    PackKey {
        arch: Arch::Gpt2,
        layers,
        width: 16,
        heads: 2,
        dim: 4,
        rank: 2,
        examples: 4,
        y_channel: YChannel::Shared,
        batch: 8,
        precision: Precision::F32,
        optimizer: OptimizerKind::Adam,
        constants: [0; 4],
        from: 0,
        to: 100,
    }
}

/// Two shapes of jobs that can share slots, with two segments each, and jobs that never do.
pub fn kind(content: u8) -> Option<PackKey> {
    let from = 100 * u64::from(content / 3 % 2);
    match content % 3 {
        0 => None,
        layers => Some(PackKey { from, to: from + 100, ..pack(layers.into()) }),
    }
}

/// One that can share a slot with others of its shape.
pub fn packable(layers: u32, info: JobInfo) -> JobInfo {
    JobInfo { pack: Some(pack(layers)), ..info }
}

/// A worker that has as much memory as it needs.
pub fn capacity(slots: u32, stack: u32) -> Capacity {
    Capacity { slots, stack, stack_bytes: u64::MAX }
}

pub fn empty() -> State {
    let (state, effects) = State::new(CONFIG, Snapshot::default(), 0);
    assert_eq!(effects, []);
    state
}

/// One step; the invariants hold after it.
pub fn at(state: &mut State, now: Millis, event: Event) -> Vec<Effect> {
    let effects = step(state, event, now);
    state.check().expect("invariants");
    effects
}

/// A state with sweep 1 of these jobs and no worker.
pub fn with_jobs(jobs: Vec<JobInfo>) -> State {
    let mut state = empty();
    assert_eq!(at(&mut state, 0, submit(1, 0, jobs)), []);
    state
}

pub fn submit(id: i64, priority: i32, jobs: Vec<JobInfo>) -> Event {
    Event::SweepSubmitted { sweep: sweep(id, SweepState::Active, priority), jobs }
}

pub fn attempt(job: i64, number: i32) -> AttemptRef {
    AttemptRef { job: JobId(job), number }
}

pub fn ids(jobs: &[i64]) -> Vec<JobId> {
    jobs.iter().map(|id| JobId(*id)).collect()
}

pub fn hello(worker: i64, slots: u32, attempts: &[AttemptRef]) -> Event {
    stacking(worker, capacity(slots, 1), attempts)
}

pub fn stacking(worker: i64, capacity: Capacity, attempts: &[AttemptRef]) -> Event {
    Event::WorkerHello { worker: WorkerId(worker), capacity, attempts: attempts.to_vec() }
}

pub fn heartbeat(worker: i64, attempts: &[AttemptRef]) -> Event {
    Event::Heartbeat { worker: WorkerId(worker), attempts: attempts.to_vec() }
}

pub fn succeeded(worker: i64, attempt: AttemptRef) -> Event {
    Event::Succeeded { worker: WorkerId(worker), attempt }
}

pub fn failed(worker: i64, attempt: AttemptRef, retry: Retry) -> Event {
    Event::Failed { worker: WorkerId(worker), attempt, failure: Failure { retry, reason: "boom".into() } }
}

pub fn released(worker: i64, attempt: AttemptRef) -> Event {
    Event::Released { worker: WorkerId(worker), attempt }
}

/// In the worker's first slot.
pub fn start(job: i64, number: i32, worker: i64) -> Effect {
    start_in(0, job, number, worker)
}

pub fn start_in(slot: u32, job: i64, number: i32, worker: i64) -> Effect {
    let slot = SlotRef { worker: WorkerId(worker), number: slot };
    Effect::Persist(Change::Start { attempt: attempt(job, number), slot })
}

pub fn assign(job: i64, number: i32, worker: i64) -> Effect {
    assign_pack(&[attempt(job, number)], worker)
}

pub fn assign_pack(attempts: &[AttemptRef], worker: i64) -> Effect {
    Effect::Send(Message::Assign { worker: WorkerId(worker), attempts: attempts.to_vec() })
}

pub fn complete(job: i64, number: i32, jobs: &[i64]) -> Effect {
    Effect::Persist(Change::Complete { attempt: attempt(job, number), jobs: ids(jobs) })
}

pub fn end(of: AttemptRef, how: AttemptState, job_state: JobState, failures: u32, reason: Option<&str>) -> Effect {
    Effect::Persist(Change::End { attempt: of, how, job_state, failures, reason: reason.map(str::to_owned) })
}

pub fn set(jobs: &[i64], state: JobState, reason: Option<&str>) -> Effect {
    Effect::Persist(Change::SetJobs { jobs: ids(jobs), state, reason: reason.map(str::to_owned) })
}

pub fn set_sweep(id: i64, state: SweepState) -> Effect {
    Effect::Persist(Change::SetSweep { sweep: SweepId(id), state })
}

pub fn set_worker(id: i64, state: WorkerState) -> Effect {
    Effect::Persist(Change::SetWorker { worker: WorkerId(id), state })
}

pub fn renew(attempts: &[AttemptRef]) -> Effect {
    Effect::Persist(Change::Renew { attempts: attempts.to_vec() })
}

pub fn forget(jobs: &[i64]) -> Effect {
    Effect::Persist(Change::ForgetFailures { jobs: ids(jobs) })
}

pub fn accepted(worker: i64, attempt: AttemptRef) -> Effect {
    Effect::Send(Message::Answer { worker: WorkerId(worker), attempt, verdict: Verdict::Accepted })
}

pub fn refused(worker: i64, attempt: AttemptRef, why: &str) -> Effect {
    Effect::Send(Message::Answer { worker: WorkerId(worker), attempt, verdict: Verdict::Refused(why.into()) })
}

pub fn stop(worker: i64, attempt: AttemptRef, reason: &str) -> Effect {
    Effect::Send(Message::Stop { worker: WorkerId(worker), attempt, reason: reason.into() })
}

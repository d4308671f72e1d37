//! What a new state makes of the store.

use crate::build::*;
use taskvec_model::{
    id::WorkerId,
    schedule::{JobInfo, SlotRef, Snapshot, WorkerInfo},
    state::{AttemptState, JobState, SweepState, WorkerState},
};
use taskvec_sched::{Event, State};

fn running(mut info: JobInfo, attempts: i32, worker: Option<i64>) -> JobInfo {
    let slot = worker.map(|worker| SlotRef { worker: WorkerId(worker), number: 0 });
    (info.state, info.attempts, info.slot) = (JobState::Running, attempts, slot);
    info
}

fn in_state(mut info: JobInfo, state: JobState) -> JobInfo {
    info.state = state;
    info
}

fn worker(id: i64, slots: u32, state: WorkerState) -> WorkerInfo {
    WorkerInfo { id: WorkerId(id), slots, state }
}

fn snapshot(jobs: Vec<JobInfo>, workers: Vec<WorkerInfo>) -> Snapshot {
    Snapshot { sweeps: vec![sweep(1, SweepState::Active, 0)], jobs, workers }
}

#[test]
fn running_attempts_get_a_fresh_lease_and_their_worker_takes_them_up_again() {
    let jobs = vec![running(job(1, 10, &[]), 2, Some(1)), job(1, 11, &[])];
    let stored = snapshot(jobs, vec![worker(1, 1, WorkerState::Connected), worker(2, 1, WorkerState::Draining)]);
    let (mut state, effects) = State::new(CONFIG, stored, 100_000);
    state.check().expect("invariants");
    assert_eq!(effects, [set_worker(1, WorkerState::Lost)]);
    assert_eq!(state.next_deadline(), Some(120_000));
    assert_eq!(at(&mut state, 100_500, hello(2, 1, &[])).len(), 1, "it is still to drain");
    assert_eq!(
        at(&mut state, 101_000, hello(1, 1, &[attempt(10, 2)])),
        [set_worker(1, WorkerState::Connected), renew(&[attempt(10, 2)])]
    );
    assert_eq!(
        at(&mut state, 102_000, succeeded(1, attempt(10, 2))),
        [complete(10, 2, &[10]), accepted(1, attempt(10, 2)), start(11, 1, 1), assign(11, 1, 1)]
    );
}

#[test]
fn a_heartbeat_before_any_hello_renews_too() {
    let stored = snapshot(vec![running(job(1, 10, &[]), 2, Some(1))], vec![worker(1, 1, WorkerState::Lost)]);
    let (mut state, effects) = State::new(CONFIG, stored, 0);
    assert_eq!(effects, []);
    assert_eq!(at(&mut state, 1, heartbeat(1, &[attempt(10, 2)])), [renew(&[attempt(10, 2)])]);
    assert_eq!(at(&mut state, 2, heartbeat(1, &[attempt(10, 2)])), []);
}

#[test]
fn a_worker_that_does_not_come_back_loses_its_attempts() {
    let stored = snapshot(vec![running(job(1, 10, &[]), 2, Some(1))], vec![worker(1, 1, WorkerState::Connected)]);
    let (mut state, _) = State::new(CONFIG, stored, 0);
    let why = "attempt 2 on worker 1 was lost: no heartbeat until its lease ran out; try 2 of 3 follows in 1 s";
    assert_eq!(
        at(&mut state, 20_000, Event::Tick),
        [end(attempt(10, 2), AttemptState::Expired, JobState::Ready, 1, Some(why))]
    );
}

#[test]
fn states_that_time_has_overtaken_are_put_right() {
    let jobs = vec![
        in_state(job(1, 10, &[]), JobState::Done),
        job(1, 11, &[10]),
        in_state(job(1, 12, &[]), JobState::Failed),
        job(1, 13, &[12]),
        job(1, 14, &[13]),
        job(1, 15, &[]),
        in_state(job(1, 16, &[15]), JobState::Ready),
    ];
    let (state, effects) = State::new(CONFIG, snapshot(jobs, vec![]), 0);
    state.check().expect("invariants");
    assert_eq!(
        effects,
        [
            set(&[16], JobState::Waiting, None),
            set(&[11], JobState::Ready, None),
            set(&[13, 14], JobState::Skipped, Some("needs job 12, which failed"))
        ]
    );
}

#[test]
fn a_sweep_that_is_complete_is_marked() {
    for (ends, expected) in [
        ([JobState::Done, JobState::Done], SweepState::Done),
        ([JobState::Failed, JobState::Cancelled], SweepState::Failed),
        ([JobState::Done, JobState::Cancelled], SweepState::Cancelled),
    ] {
        let jobs = vec![in_state(job(1, 10, &[]), ends[0]), in_state(job(1, 11, &[]), ends[1])];
        let (state, effects) = State::new(CONFIG, snapshot(jobs, vec![]), 0);
        state.check().expect("invariants");
        assert_eq!(effects, [set_sweep(1, expected)]);
    }
}

#[test]
fn attempts_that_nobody_can_be_running_end_without_counting() {
    let mut twin = running(job(1, 11, &[]), 1, Some(1));
    twin.key = key(10);
    let jobs = vec![running(job(1, 10, &[]), 4, Some(7)), twin, running(job(1, 12, &[]), 1, None)];
    let (state, effects) = State::new(CONFIG, snapshot(jobs, vec![worker(1, 1, WorkerState::Lost)]), 0);
    state.check().expect("invariants");
    let why = Some("attempt 1 was stored as running, but no worker can have it");
    assert_eq!(
        effects,
        [
            end(attempt(11, 1), AttemptState::Expired, JobState::Ready, 0, why),
            end(attempt(12, 1), AttemptState::Expired, JobState::Ready, 0, why)
        ]
    );
    // Even a worker that the store does not name any more may come back with what it runs.
    assert_eq!(state.attempts_on(WorkerId(7)), [attempt(10, 4)]);
}

#[test]
fn a_paused_sweep_stays_paused() {
    let mut stored = snapshot(vec![job(1, 10, &[])], vec![]);
    stored.sweeps[0].state = SweepState::Paused;
    let (mut state, _) = State::new(CONFIG, stored, 0);
    assert_eq!(at(&mut state, 0, hello(1, 1, &[])), [set_worker(1, WorkerState::Connected)]);
}

//! Workers that come, go and come back.

use crate::build::*;
use taskvec_model::{
    id::WorkerId,
    state::{AttemptState, JobState, WorkerState},
};
use taskvec_sched::{Effect, Event, Message, State};

/// Jobs 10 and 11 run on worker 1 (two slots) since 0; 12 is ready.
fn busy() -> State {
    let mut state = with_jobs(vec![job(1, 10, &[]), job(1, 11, &[]), job(1, 12, &[])]);
    at(&mut state, 0, hello(1, 2, &[]));
    state
}

#[test]
fn a_lost_worker_keeps_its_leases_and_gets_them_back() {
    let mut state = busy();
    assert_eq!(at(&mut state, 1_000, Event::WorkerLost(WorkerId(1))), [set_worker(1, WorkerState::Lost)]);
    assert_eq!(at(&mut state, 1_000, Event::WorkerLost(WorkerId(1))), []);
    let both = [attempt(10, 1), attempt(11, 1)];
    assert_eq!(at(&mut state, 15_000, hello(1, 2, &both)), [set_worker(1, WorkerState::Connected), renew(&both)]);
    assert_eq!(state.attempts_on(WorkerId(1)), both);
    assert_eq!(state.next_deadline(), Some(35_000));
}

#[test]
fn a_lost_worker_is_not_told_when_its_lease_ends() {
    let mut state = busy();
    at(&mut state, 0, Event::WorkerLost(WorkerId(1)));
    let effects = at(&mut state, 20_000, Event::Tick);
    assert_eq!(effects.len(), 2);
    assert!(effects.iter().all(|effect| matches!(effect, Effect::Persist(_))), "{effects:?}");
}

#[test]
fn what_a_reconnected_worker_does_not_list_is_lost_and_what_it_should_not_run_is_stopped() {
    let mut state = busy();
    let lost = "attempt 1 on worker 1 was lost: the worker reconnected without it; try 2 of 3 follows in 1 s";
    let foreign = attempt(77, 3);
    assert_eq!(
        at(&mut state, 8_000, hello(1, 2, &[foreign, attempt(11, 1)])),
        [
            stop(1, foreign, "job 77 is not scheduled any more: its sweep has ended"),
            renew(&[attempt(11, 1)]),
            end(attempt(10, 1), AttemptState::Expired, JobState::Ready, 1, Some(lost)),
            start(12, 1, 1),
            assign(12, 1, 1)
        ]
    );
}

#[test]
fn slots_are_as_the_worker_says_but_never_fewer_than_it_uses() {
    let mut state = busy();
    let both = [attempt(10, 1), attempt(11, 1)];
    assert_eq!(at(&mut state, 1, hello(1, 1, &both)), []);
    assert_eq!(at(&mut state, 2, hello(1, 3, &both)), [start_in(2, 12, 1, 1), assign(12, 1, 1)]);
}

#[test]
fn draining_is_passed_on_once_and_again_after_a_reconnection() {
    let mut state = busy();
    let drain = Effect::Send(Message::Drain { worker: WorkerId(1) });
    assert_eq!(
        at(&mut state, 0, Event::WorkerDraining(WorkerId(1))),
        [set_worker(1, WorkerState::Draining), drain.clone()]
    );
    assert_eq!(at(&mut state, 0, Event::WorkerDraining(WorkerId(1))), []);
    assert_eq!(at(&mut state, 0, Event::WorkerLost(WorkerId(1))), []);
    assert_eq!(at(&mut state, 0, hello(1, 2, &[attempt(10, 1), attempt(11, 1)])), [drain]);
    // Its free slot stays empty.
    assert_eq!(at(&mut state, 0, succeeded(1, attempt(10, 1))), [complete(10, 1, &[10]), accepted(1, attempt(10, 1))]);
    assert_eq!(at(&mut state, 0, Event::WorkerDraining(WorkerId(9))), []);
}

#[test]
fn what_a_leaving_worker_still_has_is_given_back() {
    let mut state = busy();
    at(&mut state, 0, hello(2, 1, &[]));
    assert_eq!(
        at(&mut state, 0, Event::WorkerLeft(WorkerId(1))),
        [
            end(attempt(10, 1), AttemptState::Released, JobState::Ready, 0, None),
            end(attempt(11, 1), AttemptState::Released, JobState::Ready, 0, None),
            set_worker(1, WorkerState::Left)
        ]
    );
    assert_eq!(state.worker_state(WorkerId(1)), None);
    assert_eq!(at(&mut state, 0, Event::WorkerLeft(WorkerId(1))), []);
    assert_eq!(
        at(&mut state, 0, succeeded(2, attempt(12, 1))),
        [complete(12, 1, &[12]), accepted(2, attempt(12, 1)), start(10, 2, 2), assign(10, 2, 2)]
    );
}

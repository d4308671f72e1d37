//! Which job starts where.

use crate::build::*;
use taskvec_model::{
    id::{SweepId, WorkerId},
    job::Retry,
    schedule::Change,
    state::{AttemptState, JobState, SweepState, WorkerState},
};
use taskvec_sched::{Effect, Event};

/// The (job, worker) pairs of all starts.
fn starts(effects: &[Effect]) -> Vec<(i64, i64)> {
    let of = |effect: &Effect| match effect {
        Effect::Persist(Change::Start { attempt, slot }) => Some((attempt.job.0, slot.worker.0)),
        _ => None,
    };
    effects.iter().filter_map(of).collect()
}

#[test]
fn a_worker_that_connects_gets_a_job_for_each_slot() {
    let mut state = with_jobs(vec![job(1, 10, &[]), job(1, 11, &[]), job(1, 12, &[])]);
    assert_eq!(
        at(&mut state, 5, hello(1, 2, &[])),
        [
            set_worker(1, WorkerState::Connected),
            start(10, 1, 1),
            assign(10, 1, 1),
            start_in(1, 11, 1, 1),
            assign(11, 1, 1)
        ]
    );
    assert_eq!(state.next_deadline(), Some(20_005));
}

#[test]
fn priority_goes_first_then_the_older_sweep_then_plan_order() {
    let mut state = with_jobs(vec![job(1, 11, &[]), job(1, 10, &[])]);
    at(&mut state, 0, submit(2, 0, vec![job(2, 1, &[])]));
    at(&mut state, 0, submit(3, 5, vec![job(3, 30, &[])]));
    at(&mut state, 0, submit(4, -1, vec![job(4, 40, &[])]));
    assert_eq!(starts(&at(&mut state, 0, hello(1, 9, &[]))), [(30, 1), (10, 1), (11, 1), (1, 1), (40, 1)]);
}

#[test]
fn a_new_priority_counts_at_once() {
    let mut state = with_jobs(vec![job(1, 10, &[])]);
    at(&mut state, 0, submit(2, 0, vec![job(2, 20, &[])]));
    let persisted = Effect::Persist(Change::SetPriority { sweep: SweepId(2), priority: 7 });
    assert_eq!(at(&mut state, 0, Event::SetPriority(SweepId(2), 7)), [persisted]);
    assert_eq!(at(&mut state, 0, Event::SetPriority(SweepId(2), 7)), []);
    assert_eq!(starts(&at(&mut state, 0, hello(1, 1, &[]))), [(20, 1)]);
}

#[test]
fn jobs_spread_over_the_workers_with_most_free_slots() {
    let mut state = empty();
    at(&mut state, 0, hello(3, 1, &[]));
    at(&mut state, 0, hello(2, 2, &[]));
    at(&mut state, 0, hello(1, 2, &[]));
    let effects = at(&mut state, 0, submit(2, 0, (1..=6).map(|id| job(2, id, &[])).collect()));
    assert_eq!(starts(&effects), [(1, 1), (2, 2), (3, 1), (4, 2), (5, 3)]);
}

#[test]
fn a_job_goes_where_the_job_it_needs_ran() {
    let mut state = with_jobs(vec![job(1, 10, &[]), job(1, 11, &[10]), job(1, 12, &[10])]);
    at(&mut state, 0, hello(2, 1, &[]));
    at(&mut state, 0, hello(1, 3, &[]));
    // The first of the two has the slot that is warm; the other goes elsewhere rather than wait.
    assert_eq!(
        at(&mut state, 0, succeeded(2, attempt(10, 1))),
        [
            complete(10, 1, &[10]),
            set(&[11, 12], JobState::Ready, None),
            accepted(2, attempt(10, 1)),
            start(11, 1, 2),
            assign(11, 1, 2),
            start(12, 1, 1),
            assign(12, 1, 1)
        ]
    );
}

#[test]
fn of_identical_jobs_one_runs_and_all_are_done() {
    let twin = |sweep, id, needs: &[i64]| {
        let mut info = job(sweep, id, needs);
        info.key = key(if needs.is_empty() { 1 } else { 2 });
        info
    };
    let mut state = with_jobs(vec![twin(1, 10, &[]), twin(1, 11, &[10]), twin(1, 12, &[])]);
    at(&mut state, 0, submit(2, 0, vec![twin(2, 20, &[]), twin(2, 21, &[20])]));
    assert_eq!(starts(&at(&mut state, 0, hello(1, 5, &[]))), [(10, 1)]);
    assert_eq!(
        at(&mut state, 0, succeeded(1, attempt(10, 1))),
        [
            complete(10, 1, &[10, 12, 20]),
            set(&[11, 21], JobState::Ready, None),
            accepted(1, attempt(10, 1)),
            start(11, 1, 1),
            assign(11, 1, 1)
        ]
    );
    assert_eq!(
        at(&mut state, 0, succeeded(1, attempt(11, 1))),
        [
            complete(11, 1, &[11, 21]),
            accepted(1, attempt(11, 1)),
            set_sweep(1, SweepState::Done),
            set_sweep(2, SweepState::Done)
        ]
    );
}

#[test]
fn a_twin_takes_its_turn_when_the_other_fails_for_good_but_not_during_a_back_off() {
    let mut other = job(1, 11, &[]);
    other.key = key(10);
    let mut state = with_jobs(vec![job(1, 10, &[]), other]);
    at(&mut state, 0, hello(1, 2, &[]));
    let first = at(&mut state, 100, failed(1, attempt(10, 1), Retry::Allowed));
    assert_eq!(starts(&first), []);
    assert_eq!(state.next_deadline(), Some(1_100));
    assert_eq!(at(&mut state, 1_100, Event::Tick), [start(10, 2, 1), assign(10, 2, 1)]);
    let reason = "attempt 2 on worker 1 failed: boom; not tried again, since the same would happen";
    assert_eq!(
        at(&mut state, 1_200, failed(1, attempt(10, 2), Retry::Never)),
        [
            end(attempt(10, 2), AttemptState::Failed, JobState::Failed, 2, Some(reason)),
            accepted(1, attempt(10, 2)),
            start(11, 1, 1),
            assign(11, 1, 1)
        ]
    );
}

#[test]
fn a_cancelled_job_leaves_its_turn_to_a_twin_in_another_sweep() {
    let mut state = with_jobs(vec![job(1, 10, &[])]);
    let mut twin = job(2, 20, &[]);
    twin.key = key(10);
    at(&mut state, 0, submit(2, 0, vec![twin]));
    at(&mut state, 0, hello(1, 2, &[]));
    assert_eq!(
        at(&mut state, 0, Event::Cancel(SweepId(1))),
        [
            end(attempt(10, 1), AttemptState::Cancelled, JobState::Cancelled, 0, Some("its sweep was cancelled")),
            stop(1, attempt(10, 1), "its sweep was cancelled"),
            set_sweep(1, SweepState::Cancelled),
            start(20, 1, 1),
            assign(20, 1, 1)
        ]
    );
}

#[test]
fn nothing_starts_on_lost_draining_or_full_workers() {
    let mut state = empty();
    at(&mut state, 0, hello(1, 1, &[]));
    at(&mut state, 0, hello(2, 1, &[]));
    at(&mut state, 0, hello(3, 1, &[]));
    at(&mut state, 0, hello(4, 0, &[]));
    at(&mut state, 0, Event::WorkerLost(WorkerId(1)));
    at(&mut state, 0, Event::WorkerDraining(WorkerId(2)));
    let effects = at(&mut state, 0, submit(2, 0, vec![job(2, 20, &[]), job(2, 21, &[])]));
    assert_eq!(starts(&effects), [(20, 3)]);
    assert_eq!(starts(&at(&mut state, 0, hello(1, 1, &[]))), [(21, 1)]);
}

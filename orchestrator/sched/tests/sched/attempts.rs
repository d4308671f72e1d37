//! How attempts end.

use crate::build::*;
use taskvec_model::{
    id::{JobId, SweepId, WorkerId},
    job::Retry,
    state::{AttemptState, JobState, SweepState},
};
use taskvec_sched::Event;

/// Job 10 runs on worker 1 since 0; jobs 11 (needs 10) and 12 (needs 11) wait.
fn chain() -> taskvec_sched::State {
    let mut state = with_jobs(vec![job(1, 10, &[]), job(1, 11, &[10]), job(1, 12, &[11])]);
    at(&mut state, 0, hello(1, 1, &[]));
    state
}

#[test]
fn success_frees_the_slot_for_the_next_job_in_the_same_step() {
    let mut state = chain();
    assert_eq!(
        at(&mut state, 9, succeeded(1, attempt(10, 1))),
        [
            complete(10, 1, &[10]),
            set(&[11], JobState::Ready, None),
            accepted(1, attempt(10, 1)),
            start(11, 1, 1),
            assign(11, 1, 1)
        ]
    );
}

#[test]
fn a_job_may_read_twice_from_the_job_it_needs() {
    let mut state = with_jobs(vec![job(1, 10, &[]), job(1, 11, &[10, 10])]);
    at(&mut state, 0, hello(1, 1, &[]));
    let effects = at(&mut state, 0, succeeded(1, attempt(10, 1)));
    assert_eq!(effects[1], set(&[11], JobState::Ready, None));
}

#[test]
fn the_last_success_ends_the_sweep_which_then_needs_no_memory() {
    let mut state = chain();
    at(&mut state, 0, succeeded(1, attempt(10, 1)));
    at(&mut state, 0, succeeded(1, attempt(11, 1)));
    assert_eq!(
        at(&mut state, 0, succeeded(1, attempt(12, 1))),
        [complete(12, 1, &[12]), accepted(1, attempt(12, 1)), set_sweep(1, SweepState::Done)]
    );
    assert_eq!((state.job_state(JobId(12)), state.counts(SweepId(1))), (None, None));
}

#[test]
fn outcomes_of_attempts_that_are_not_current_change_nothing() {
    let mut state = chain();
    at(&mut state, 0, succeeded(1, attempt(10, 1)));
    let before = state.snapshot();
    for (worker, of, why) in [
        (1, attempt(10, 1), "attempt 1 of job 10 has ended: the job is done"),
        (1, attempt(10, 2), "attempt 2 of job 10 was never started"),
        (2, attempt(11, 1), "attempt 1 of job 11 belongs to worker 1, not to worker 2"),
        (1, attempt(11, 0), "attempt 0 of job 11 was never started"),
        (1, attempt(12, 1), "attempt 1 of job 12 was never started"),
        (7, attempt(99, 1), "job 99 is not scheduled any more: its sweep has ended"),
    ] {
        assert_eq!(at(&mut state, 1, succeeded(worker, of)), [refused(worker, of, why)]);
        assert_eq!(at(&mut state, 1, failed(worker, of, Retry::Never)), [refused(worker, of, why)]);
        assert_eq!(at(&mut state, 1, released(worker, of)), [refused(worker, of, why)]);
        assert_eq!(at(&mut state, 1, heartbeat(worker, &[of])), [stop(worker, of, why)]);
    }
    assert_eq!(state.snapshot(), before);
}

#[test]
fn a_late_result_of_an_expired_attempt_is_refused_while_the_next_one_runs() {
    let mut state = chain();
    at(&mut state, 20_000, Event::Tick);
    let pause = "attempt 1 of job 10 has ended: the job is to be tried again";
    assert_eq!(at(&mut state, 20_500, succeeded(1, attempt(10, 1))), [refused(1, attempt(10, 1), pause)]);
    assert_eq!(at(&mut state, 21_000, Event::Tick), [start(10, 2, 1), assign(10, 2, 1)]);
    let late = "attempt 1 of job 10 lost its lease: attempt 2 is running";
    assert_eq!(at(&mut state, 21_001, succeeded(1, attempt(10, 1))), [refused(1, attempt(10, 1), late)]);
}

#[test]
fn a_failure_that_may_pass_is_tried_again_after_growing_pauses_and_then_given_up() {
    let mut state = chain();
    assert_eq!(
        at(&mut state, 0, failed(1, attempt(10, 1), Retry::Allowed)),
        [
            end(
                attempt(10, 1),
                AttemptState::Failed,
                JobState::Ready,
                1,
                Some("attempt 1 on worker 1 failed: boom; try 2 of 3 follows in 1 s")
            ),
            accepted(1, attempt(10, 1))
        ]
    );
    assert_eq!(at(&mut state, 999, Event::Tick), []);
    assert_eq!(at(&mut state, 1_000, Event::Tick), [start(10, 2, 1), assign(10, 2, 1)]);
    assert_eq!(
        at(&mut state, 1_000, failed(1, attempt(10, 2), Retry::Allowed)),
        [
            end(
                attempt(10, 2),
                AttemptState::Failed,
                JobState::Ready,
                2,
                Some("attempt 2 on worker 1 failed: boom; try 3 of 3 follows in 2 s")
            ),
            accepted(1, attempt(10, 2))
        ]
    );
    assert_eq!(at(&mut state, 3_000, Event::Tick), [start(10, 3, 1), assign(10, 3, 1)]);
    assert_eq!(
        at(&mut state, 3_000, failed(1, attempt(10, 3), Retry::Allowed)),
        [
            end(
                attempt(10, 3),
                AttemptState::Failed,
                JobState::Failed,
                3,
                Some("attempt 3 on worker 1 failed: boom; given up after 3 failed tries")
            ),
            set(&[11, 12], JobState::Skipped, Some("needs job 10, which failed")),
            accepted(1, attempt(10, 3)),
            set_sweep(1, SweepState::Failed)
        ]
    );
}

#[test]
fn a_failure_for_good_skips_what_depends_on_it_and_nothing_else() {
    let mut state =
        with_jobs(vec![job(1, 10, &[]), job(1, 11, &[10]), job(1, 12, &[]), job(1, 13, &[11, 12]), job(1, 14, &[12])]);
    at(&mut state, 0, hello(1, 2, &[]));
    let reason = "attempt 1 on worker 1 failed: boom; not tried again, since the same would happen";
    assert_eq!(
        at(&mut state, 0, failed(1, attempt(10, 1), Retry::Never)),
        [
            end(attempt(10, 1), AttemptState::Failed, JobState::Failed, 1, Some(reason)),
            set(&[11, 13], JobState::Skipped, Some("needs job 10, which failed")),
            accepted(1, attempt(10, 1))
        ]
    );
    let counts = state.counts(SweepId(1)).expect("it lives on");
    assert_eq!(counts.all(), [1, 0, 1, 0, 1, 2, 0]);
    assert_eq!(counts.open(), 2);
}

#[test]
fn a_released_job_starts_again_at_once_and_keeps_its_tries() {
    let mut state = chain();
    at(&mut state, 0, Event::WorkerDraining(WorkerId(1)));
    at(&mut state, 0, hello(2, 1, &[]));
    assert_eq!(
        at(&mut state, 5, released(1, attempt(10, 1))),
        [
            end(attempt(10, 1), AttemptState::Released, JobState::Ready, 0, None),
            accepted(1, attempt(10, 1)),
            start(10, 2, 2),
            assign(10, 2, 2)
        ]
    );
}

#[test]
fn an_attempt_without_heartbeats_expires_and_its_worker_is_told() {
    let mut state = chain();
    assert_eq!(at(&mut state, 19_999, Event::Tick), []);
    assert_eq!(
        at(&mut state, 20_000, Event::Tick),
        [
            end(
                attempt(10, 1),
                AttemptState::Expired,
                JobState::Ready,
                1,
                Some("attempt 1 on worker 1 was lost: no heartbeat until its lease ran out; try 2 of 3 follows in 1 s")
            ),
            stop(1, attempt(10, 1), "its lease ran out")
        ]
    );
}

#[test]
fn an_outcome_that_waited_behind_a_stalled_server_is_taken_under_a_renewed_lease() {
    let mut state = chain();
    assert_eq!(
        at(&mut state, 20_000, succeeded(1, attempt(10, 1))),
        [
            renew(&[attempt(10, 1)]),
            complete(10, 1, &[10]),
            set(&[11], JobState::Ready, None),
            accepted(1, attempt(10, 1)),
            start(11, 1, 1),
            assign(11, 1, 1)
        ]
    );
}

#[test]
fn heartbeats_renew_all_attempts_in_one_change_and_not_too_often() {
    let mut state = with_jobs(vec![job(1, 10, &[]), job(1, 11, &[]), job(1, 12, &[])]);
    at(&mut state, 0, hello(1, 2, &[]));
    let both = [attempt(10, 1), attempt(11, 1)];
    assert_eq!(at(&mut state, 5_000, heartbeat(1, &both)), []);
    assert_eq!(at(&mut state, 7_000, heartbeat(1, &both)), [renew(&both)]);
    assert_eq!(at(&mut state, 12_000, heartbeat(1, &both)), []);
    assert_eq!(state.next_deadline(), Some(27_000));
    // One of them is gone from the list: only the other lives on.
    assert_eq!(at(&mut state, 20_000, heartbeat(1, &both[..1])), [renew(&both[..1])]);
    assert_eq!(state.next_deadline(), Some(27_000));
    at(&mut state, 27_000, Event::Tick);
    assert_eq!(state.job_state(JobId(10)), Some(JobState::Running));
    assert_eq!(state.job_state(JobId(11)), Some(JobState::Ready));
}

#[test]
fn a_clock_that_is_set_back_does_not_stop_renewals() {
    let mut state = with_jobs(vec![job(1, 10, &[])]);
    at(&mut state, 1_000_000, hello(1, 1, &[]));
    assert_eq!(at(&mut state, 5_000, heartbeat(1, &[attempt(10, 1)])), [renew(&[attempt(10, 1)])]);
    assert_eq!(state.next_deadline(), Some(25_000));
}

#[test]
fn a_clock_at_its_end_does_not_overflow() {
    let mut state = with_jobs(vec![job(1, 10, &[])]);
    at(&mut state, u64::MAX, hello(1, 1, &[]));
    at(&mut state, u64::MAX, failed(1, attempt(10, 1), Retry::Allowed));
    assert_eq!(at(&mut state, u64::MAX, Event::Tick), [start(10, 2, 1), assign(10, 2, 1)]);
}

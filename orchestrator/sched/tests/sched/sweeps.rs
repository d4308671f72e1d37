//! What users ask of sweeps.

use crate::build::*;
use taskvec_model::{
    id::{JobId, SweepId},
    job::Retry,
    schedule::JobInfo,
    state::{AttemptState, JobState, SweepState},
};
use taskvec_sched::{Event, State};

const NEVER: &str = "attempt 1 on worker 1 failed: boom; not tried again, since the same would happen";

fn in_state(mut info: JobInfo, state: JobState, attempts: i32, failures: u32) -> JobInfo {
    (info.state, info.attempts, info.failures) = (state, attempts, failures);
    info
}

#[test]
fn a_sweep_that_stored_results_satisfy_is_done_at_once() {
    let mut state = empty();
    let jobs = vec![in_state(job(1, 10, &[]), JobState::Done, 0, 0), in_state(job(1, 11, &[10]), JobState::Done, 0, 0)];
    assert_eq!(at(&mut state, 0, submit(1, 0, jobs)), [set_sweep(1, SweepState::Done)]);
    assert_eq!(at(&mut state, 0, submit(2, 0, vec![])), [set_sweep(2, SweepState::Done)]);
}

#[test]
fn a_job_whose_needs_are_stored_results_is_ready() {
    let mut state = empty();
    let jobs = vec![in_state(job(1, 10, &[]), JobState::Done, 0, 0), job(1, 11, &[10])];
    assert_eq!(at(&mut state, 0, submit(1, 0, jobs.clone())), [set(&[11], JobState::Ready, None)]);
    assert_eq!(at(&mut state, 0, submit(1, 0, jobs)), []);
}

#[test]
fn a_paused_sweep_starts_nothing_and_blocks_nobody() {
    let mut state = with_jobs(vec![job(1, 10, &[]), job(1, 11, &[])]);
    at(&mut state, 0, submit(2, 0, vec![job(2, 20, &[])]));
    at(&mut state, 0, hello(1, 1, &[]));
    assert_eq!(at(&mut state, 0, Event::Pause(SweepId(1))), [set_sweep(1, SweepState::Paused)]);
    assert_eq!(at(&mut state, 0, Event::Pause(SweepId(1))), []);
    assert_eq!(
        at(&mut state, 0, succeeded(1, attempt(10, 1))),
        [complete(10, 1, &[10]), accepted(1, attempt(10, 1)), start(20, 1, 1), assign(20, 1, 1)]
    );
    at(&mut state, 0, succeeded(1, attempt(20, 1)));
    assert_eq!(
        at(&mut state, 0, Event::Resume(SweepId(1))),
        [set_sweep(1, SweepState::Active), start(11, 1, 1), assign(11, 1, 1)]
    );
    assert_eq!(at(&mut state, 0, Event::Resume(SweepId(1))), []);
}

#[test]
fn cancelling_ends_everything_that_has_not_ended() {
    let mut state = with_jobs(vec![job(1, 10, &[]), job(1, 11, &[]), job(1, 12, &[10]), job(1, 13, &[])]);
    at(&mut state, 0, hello(1, 2, &[]));
    at(&mut state, 0, succeeded(1, attempt(11, 1)));
    let why = "its sweep was cancelled";
    assert_eq!(
        at(&mut state, 1, Event::Cancel(SweepId(1))),
        [
            end(attempt(10, 1), AttemptState::Cancelled, JobState::Cancelled, 0, Some(why)),
            stop(1, attempt(10, 1), why),
            end(attempt(13, 1), AttemptState::Cancelled, JobState::Cancelled, 0, Some(why)),
            stop(1, attempt(13, 1), why),
            set(&[12], JobState::Cancelled, Some(why)),
            set_sweep(1, SweepState::Cancelled)
        ]
    );
    for event in [Event::Cancel(SweepId(1)), Event::Pause(SweepId(1)), Event::Resume(SweepId(1))] {
        assert_eq!(at(&mut state, 2, event), []);
    }
}

/// A sweep that has ended: 10 failed, 11 and 12 were skipped for it, 13 failed, 14 was skipped for both, 15 is done.
fn ended() -> Vec<JobInfo> {
    vec![
        in_state(job(1, 10, &[]), JobState::Failed, 3, 3),
        in_state(job(1, 11, &[10]), JobState::Skipped, 0, 0),
        in_state(job(1, 12, &[11, 15]), JobState::Skipped, 0, 0),
        in_state(job(1, 13, &[]), JobState::Failed, 1, 1),
        in_state(job(1, 14, &[10, 13]), JobState::Skipped, 0, 0),
        in_state(job(1, 15, &[]), JobState::Done, 1, 0),
    ]
}

fn retry(state: SweepState, jobs: Vec<JobInfo>) -> Event {
    Event::Retry { sweep: sweep(1, state, 0), jobs }
}

fn retry_job(id: i64, state: SweepState, jobs: Vec<JobInfo>) -> Event {
    Event::RetryJob { job: JobId(id), sweep: sweep(1, state, 0), jobs }
}

#[test]
fn retrying_an_ended_sweep_gives_its_failed_and_skipped_jobs_all_their_tries() {
    let mut state = empty();
    assert_eq!(
        at(&mut state, 0, retry(SweepState::Failed, ended())),
        [
            set_sweep(1, SweepState::Active),
            forget(&[10, 13]),
            set(&[11, 12, 14], JobState::Waiting, None),
            set(&[10, 13], JobState::Ready, None)
        ]
    );
    let begun = at(&mut state, 0, hello(1, 2, &[]));
    assert_eq!(begun[1..], [start(10, 4, 1), assign(10, 4, 1), start_in(1, 13, 2, 1), assign(13, 2, 1)]);
}

#[test]
fn retrying_one_job_frees_what_was_skipped_for_it_alone() {
    let mut state = empty();
    assert_eq!(
        at(&mut state, 0, retry_job(10, SweepState::Failed, ended())),
        [
            set_sweep(1, SweepState::Active),
            forget(&[10]),
            set(&[11, 12], JobState::Waiting, None),
            set(&[10], JobState::Ready, None)
        ]
    );
    assert_eq!(state.job_state(JobId(14)), Some(JobState::Skipped));
    // Now it lives, and what was reloaded meanwhile does not matter.
    assert_eq!(
        at(&mut state, 0, retry_job(13, SweepState::Failed, vec![])),
        [forget(&[13]), set(&[14], JobState::Waiting, None), set(&[13], JobState::Ready, None)]
    );
}

#[test]
fn retrying_a_skipped_job_retries_what_it_needs() {
    let mut state = empty();
    assert_eq!(
        at(&mut state, 0, retry_job(14, SweepState::Failed, ended())),
        [
            set_sweep(1, SweepState::Active),
            forget(&[10, 13]),
            set(&[11, 12, 14], JobState::Waiting, None),
            set(&[10, 13], JobState::Ready, None)
        ]
    );
}

#[test]
fn retrying_what_did_not_fail_changes_nothing() {
    let mut state = empty();
    let done = vec![in_state(job(1, 15, &[]), JobState::Done, 1, 0)];
    assert_eq!(at(&mut state, 0, retry(SweepState::Done, done)), []);
    assert_eq!(at(&mut state, 0, retry_job(15, SweepState::Failed, ended())), []);
    assert_eq!(at(&mut state, 0, retry_job(99, SweepState::Failed, ended())), []);
    // Said to be alive, but not here: what was reloaded is older than the end of the sweep.
    assert_eq!(at(&mut state, 0, retry(SweepState::Active, ended())), []);
    assert_eq!(state.snapshot(), Default::default());
}

#[test]
fn a_cancelled_sweep_can_be_retried_in_part_and_then_ends_as_cancelled() {
    let mut state = empty();
    at(&mut state, 0, hello(1, 1, &[]));
    let jobs = vec![
        in_state(job(1, 10, &[]), JobState::Cancelled, 1, 0),
        in_state(job(1, 11, &[]), JobState::Cancelled, 0, 0),
    ];
    assert_eq!(
        at(&mut state, 0, retry_job(10, SweepState::Cancelled, jobs)),
        [set_sweep(1, SweepState::Active), set(&[10], JobState::Ready, None), start(10, 2, 1), assign(10, 2, 1)]
    );
    assert_eq!(
        at(&mut state, 0, succeeded(1, attempt(10, 2))),
        [complete(10, 2, &[10]), accepted(1, attempt(10, 2)), set_sweep(1, SweepState::Cancelled)]
    );
}

/// Job 10 failed for good, 11 was skipped for it, 12 goes on; worker 1 has two slots.
fn half_failed() -> State {
    let mut state = with_jobs(vec![job(1, 10, &[]), job(1, 11, &[10]), job(1, 12, &[])]);
    at(&mut state, 0, hello(1, 2, &[]));
    let effects = at(&mut state, 0, failed(1, attempt(10, 1), Retry::Never));
    assert_eq!(effects[0], end(attempt(10, 1), AttemptState::Failed, JobState::Failed, 1, Some(NEVER)));
    state
}

#[test]
fn a_live_sweep_is_retried_in_place_and_stays_paused() {
    let mut state = half_failed();
    at(&mut state, 0, Event::Pause(SweepId(1)));
    assert_eq!(
        at(&mut state, 0, retry(SweepState::Active, vec![])),
        [forget(&[10]), set(&[11], JobState::Waiting, None), set(&[10], JobState::Ready, None)]
    );
    assert_eq!(state.sweep_state(SweepId(1)), Some(SweepState::Paused));
}

#[test]
fn retrying_a_job_in_its_back_off_ends_the_pause() {
    let mut state = with_jobs(vec![job(1, 10, &[])]);
    at(&mut state, 0, hello(1, 1, &[]));
    at(&mut state, 0, failed(1, attempt(10, 1), Retry::Allowed));
    assert_eq!(
        at(&mut state, 10, retry_job(10, SweepState::Active, vec![])),
        [forget(&[10]), start(10, 2, 1), assign(10, 2, 1)]
    );
    assert_eq!(at(&mut state, 11, retry_job(10, SweepState::Active, vec![])), []);
}

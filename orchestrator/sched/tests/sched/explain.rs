//! Every answer to "why is this job not running?", word for word.

use crate::build::*;
use taskvec_model::{
    id::{JobId, SweepId, WorkerId},
    job::Retry,
    state::SweepState,
};
use taskvec_sched::{Event, Explanation, State};

fn why(state: &State, job: i64) -> String {
    state.explain(JobId(job)).to_string()
}

#[test]
fn running_waiting_and_queued() {
    let mut state = with_jobs(vec![job(1, 10, &[]), job(1, 11, &[10]), job(1, 12, &[]), job(1, 13, &[])]);
    at(&mut state, 0, submit(2, 1, vec![job(2, 20, &[]), job(2, 21, &[])]));
    at(&mut state, 0, submit(3, -1, vec![job(3, 30, &[])]));
    assert_eq!(why(&state, 10), "ready, but no worker is connected");
    at(&mut state, 1_000, hello(1, 2, &[]));
    at(&mut state, 13_500, Event::Tick);
    assert_eq!(why(&state, 20), "running on worker 1 for 12.5 s, attempt 1");
    assert_eq!(why(&state, 11), "waits for job 10");
    assert_eq!(why(&state, 30), "ready, but all slots (2) are busy; jobs ahead of it: 3");
    assert_eq!(state.explain(JobId(13)), Explanation::Queued { slots: 2, ahead: 2 });
    assert_eq!(state.explain(JobId(10)), Explanation::Queued { slots: 2, ahead: 0 });
    at(&mut state, 14_000, Event::WorkerDraining(WorkerId(1)));
    assert_eq!(why(&state, 10), "ready, but all connected workers (1) are draining");
    at(&mut state, 14_000, Event::WorkerLost(WorkerId(1)));
    assert_eq!(why(&state, 20), "attempt 1 is on worker 1, which is not connected; given up if that lasts 7 s more");
    assert_eq!(why(&state, 99), "not scheduled: its sweep has ended, or there is no such job");
}

#[test]
fn long_lists_are_cut() {
    let mut jobs: Vec<_> = (1..=7).map(|id| job(1, id, &[])).collect();
    jobs.push(job(1, 8, &[1, 2, 3, 4, 5, 6, 7]));
    let mut state = with_jobs(jobs);
    assert_eq!(why(&state, 8), "waits for jobs 1, 2, 3, 4, 5 and 2 more");
    at(&mut state, 0, hello(1, 1, &[]));
    at(&mut state, 0, succeeded(1, attempt(1, 1)));
    assert_eq!(why(&state, 8), "waits for jobs 2, 3, 4, 5, 6 and 1 more");
}

#[test]
fn twins_back_off_and_pause() {
    let mut twin = job(1, 11, &[]);
    twin.key = key(10);
    let mut state = with_jobs(vec![job(1, 10, &[]), twin]);
    at(&mut state, 0, hello(1, 1, &[]));
    assert_eq!(why(&state, 11), "the same work runs as job 10");
    at(&mut state, 0, failed(1, attempt(10, 1), Retry::Allowed));
    assert_eq!(why(&state, 11), "the same work is job 10, which failed and is about to be tried again");
    at(&mut state, 400, Event::Tick);
    assert_eq!(why(&state, 10), "tried again in 0.6 s: attempt 1 on worker 1 failed: boom; try 2 of 3 follows in 1 s");
    at(&mut state, 400, Event::Pause(SweepId(1)));
    assert_eq!(why(&state, 11), "ready, but sweep 1 is paused");
}

#[test]
fn ends() {
    let mut state = with_jobs(vec![job(1, 10, &[]), job(1, 11, &[10]), job(1, 12, &[]), job(1, 13, &[])]);
    at(&mut state, 0, hello(1, 3, &[]));
    at(&mut state, 0, failed(1, attempt(10, 1), Retry::Never));
    at(&mut state, 0, succeeded(1, attempt(12, 1)));
    assert_eq!(
        why(&state, 10),
        "failed: attempt 1 on worker 1 failed: boom; not tried again, since the same would happen"
    );
    assert_eq!(why(&state, 11), "skipped: needs job 10, which failed");
    assert_eq!(why(&state, 12), "done");
    // The reasons are the store's after a restart.
    let (mut state, _) = State::new(CONFIG, state.snapshot(), 0);
    assert_eq!((why(&state, 10), why(&state, 11)), ("failed".to_owned(), "skipped".to_owned()));
    assert_eq!(why(&state, 13), "attempt 1 is on worker 1, which is not connected; given up if that lasts 20 s more");
    at(&mut state, 5, hello(1, 3, &[attempt(13, 1)]));
    assert_eq!(why(&state, 13), "running on worker 1, attempt 1");
}

#[test]
fn a_cancelled_job_of_a_live_sweep() {
    let mut state = empty();
    let mut jobs = vec![job(1, 10, &[]), job(1, 11, &[])];
    for info in &mut jobs {
        info.state = taskvec_model::state::JobState::Cancelled;
    }
    let sweep = sweep(1, SweepState::Cancelled, 0);
    at(&mut state, 0, Event::RetryJob { job: JobId(10), sweep, jobs });
    assert_eq!(why(&state, 11), "cancelled");
}

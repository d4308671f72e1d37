//! Several runs in one slot.

use crate::build::*;
use taskvec_model::{
    id::{JobId, SweepId, WorkerId},
    job::Retry,
    pack::PackKey,
    schedule::{Capacity, Change, JobInfo},
    state::{AttemptState, JobState, SweepState, WorkerState},
};
use taskvec_sched::{Effect, Event, State};

/// One packable job after the other.
fn alike(sweep: i64, ids: std::ops::RangeInclusive<i64>) -> Vec<JobInfo> {
    ids.map(|id| packable(1, job(sweep, id, &[]))).collect()
}

/// (worker, slot, jobs) of what was started.
fn packs(effects: &[Effect]) -> Vec<(i64, u32, Vec<i64>)> {
    let mut packs: Vec<(i64, u32, Vec<i64>)> = Vec::new();
    for effect in effects {
        let Effect::Persist(Change::Start { attempt, slot }) = effect else { continue };
        let (worker, number, job) = (slot.worker.0, slot.number, attempt.job.0);
        match packs.last_mut().filter(|pack| (pack.0, pack.1) == (worker, number)) {
            Some(pack) => pack.2.push(job),
            None => packs.push((worker, number, vec![job])),
        }
    }
    packs
}

#[test]
fn the_next_runs_of_a_shape_start_in_one_slot_with_one_message() {
    let mut state = with_jobs(alike(1, 10..=14));
    assert_eq!(
        at(&mut state, 0, stacking(1, capacity(1, 3), &[])),
        [
            set_worker(1, WorkerState::Connected),
            start(10, 1, 1),
            start(11, 1, 1),
            start(12, 1, 1),
            assign_pack(&[attempt(10, 1), attempt(11, 1), attempt(12, 1)], 1)
        ]
    );
    assert_eq!(state.explain(JobId(13)).to_string(), "ready, but all slots (1) are busy; jobs ahead of it: 0");
    assert_eq!(
        state.explain(JobId(11)).to_string(),
        "running on worker 1 for 0 s, attempt 1, in one slot with jobs 10, 12"
    );
}

#[test]
fn a_worker_that_takes_one_run_at_a_time_gets_one() {
    let mut state = with_jobs(alike(1, 10..=12));
    assert_eq!(packs(&at(&mut state, 0, hello(1, 2, &[]))), [(1, 0, vec![10]), (1, 1, vec![11])]);
}

#[test]
fn runs_are_spread_over_free_slots_before_they_are_packed() {
    let started = |workers: &[(u32, u32)], runs: i64| {
        let mut state = empty();
        for (id, (slots, stack)) in workers.iter().enumerate() {
            at(&mut state, 0, stacking(id as i64 + 1, capacity(*slots, *stack), &[]));
        }
        packs(&at(&mut state, 0, submit(1, 0, alike(1, 1..=runs))))
    };
    assert_eq!(started(&[(1, 8), (1, 8)], 4), [(1, 0, vec![1, 2]), (2, 0, vec![3, 4])]);
    assert_eq!(started(&[(2, 8)], 3), [(1, 0, vec![1, 2]), (1, 1, vec![3])]);
    assert_eq!(started(&[(1, 8), (1, 8)], 1), [(1, 0, vec![1])]);
    assert_eq!(started(&[(1, 8), (1, 1)], 8), [(1, 0, (1..=7).collect()), (2, 0, vec![8])]);
    assert_eq!(started(&[(1, 4), (1, 2)], 20), [(1, 0, vec![1, 2, 3, 4]), (2, 0, vec![5, 6])]);
}

#[test]
fn only_what_could_start_by_itself_joins_a_pack() {
    let mut jobs = alike(1, 10..=11);
    jobs.push(packable(2, job(1, 12, &[])));
    jobs.push(job(1, 13, &[]));
    jobs.push(packable(1, job(1, 14, &[10])));
    let mut twin = packable(1, job(1, 15, &[]));
    twin.key = key(11);
    jobs.push(twin);
    let mut state = with_jobs(jobs);
    at(&mut state, 0, submit(2, 0, alike(2, 20..=20)));
    at(&mut state, 0, submit(3, 5, alike(3, 30..=30)));
    at(&mut state, 0, Event::Pause(SweepId(2)));
    let effects = at(&mut state, 0, stacking(1, capacity(1, 9), &[]));
    assert_eq!(packs(&effects), [(1, 0, vec![30, 10, 11])], "by priority, and no twin, no other shape, nothing paused");
}

#[test]
fn the_memory_of_a_slot_is_kept_but_one_run_always_starts() {
    let runs = |bytes: u64| {
        let mut state = with_jobs(alike(1, 1..=9));
        let capacity = Capacity { slots: 1, stack: 8, stack_bytes: bytes };
        packs(&at(&mut state, 0, stacking(1, capacity, &[]))).iter().map(|pack| pack.2.len()).sum::<usize>()
    };
    let one = pack(1).bytes();
    assert_eq!([0, one - 1, one, 2 * one, 4 * one - 1, 100 * one].map(runs), [1, 1, 1, 2, 3, 8]);
}

/// Jobs 10 to 12 run in the one slot of worker 1, and 13 waits.
fn three_in_a_slot() -> State {
    let mut state = with_jobs(alike(1, 10..=13));
    at(&mut state, 0, stacking(1, capacity(1, 3), &[]));
    state
}

#[test]
fn each_ends_by_itself_and_the_slot_is_free_after_the_last() {
    let mut state = three_in_a_slot();
    let why = "attempt 1 on worker 1 failed: boom; not tried again, since the same would happen";
    assert_eq!(
        at(&mut state, 0, failed(1, attempt(11, 1), Retry::Never)),
        [end(attempt(11, 1), AttemptState::Failed, JobState::Failed, 1, Some(why)), accepted(1, attempt(11, 1))]
    );
    let one = at(&mut state, 0, succeeded(1, attempt(10, 1)));
    assert_eq!(one, [complete(10, 1, &[10]), accepted(1, attempt(10, 1))], "nobody joins a pack under way");
    assert_eq!(
        at(&mut state, 0, succeeded(1, attempt(12, 1))),
        [complete(12, 1, &[12]), accepted(1, attempt(12, 1)), start(13, 1, 1), assign(13, 1, 1)]
    );
}

#[test]
fn a_cancelled_sweep_leaves_the_pack_and_the_others_stay() {
    let mut state = with_jobs(alike(1, 10..=10));
    at(&mut state, 0, submit(2, 0, alike(2, 20..=21)));
    assert_eq!(packs(&at(&mut state, 0, stacking(1, capacity(1, 2), &[]))), [(1, 0, vec![10, 20])]);
    let why = "its sweep was cancelled";
    assert_eq!(
        at(&mut state, 0, Event::Cancel(SweepId(1))),
        [
            end(attempt(10, 1), AttemptState::Cancelled, JobState::Cancelled, 0, Some(why)),
            stop(1, attempt(10, 1), why),
            set_sweep(1, SweepState::Cancelled)
        ]
    );
    let last = at(&mut state, 0, succeeded(1, attempt(20, 1)));
    assert_eq!(packs(&last), [(1, 0, vec![21])]);
}

#[test]
fn handed_over_runs_are_packed_again() {
    let mut state = three_in_a_slot();
    at(&mut state, 0, Event::WorkerDraining(WorkerId(1)));
    for id in 10..=12 {
        at(&mut state, 0, released(1, attempt(id, 1)));
    }
    let effects = at(&mut state, 0, stacking(2, capacity(1, 9), &[]));
    assert_eq!(packs(&effects), [(2, 0, vec![10, 11, 12, 13])]);
}

#[test]
fn all_members_of_a_lost_worker_are_done_again_each_alone() {
    let mut state = three_in_a_slot();
    at(&mut state, 0, Event::WorkerLost(WorkerId(1)));
    let expired = at(&mut state, 20_000, Event::Tick);
    let ended = |id| {
        let why = "attempt 1 on worker 1 was lost: no heartbeat until its lease ran out; try 2 of 3 follows in 1 s";
        end(attempt(id, 1), AttemptState::Expired, JobState::Ready, 1, Some(why))
    };
    assert_eq!(expired, [ended(10), ended(11), ended(12)]);
    at(&mut state, 21_000, Event::Tick);
    at(&mut state, 21_000, submit(2, 0, alike(2, 20..=21)));
    let effects = at(&mut state, 21_000, stacking(2, capacity(5, 9), &[]));
    // Whichever brought the worker down does not take the others with it again.
    let alone = [(2, 0, vec![10]), (2, 1, vec![11]), (2, 2, vec![12])];
    assert_eq!(packs(&effects), [&alone[..], &[(2, 3, vec![13, 20]), (2, 4, vec![21])]].concat());
}

/// Three runs of three segments: 10 to 12, 20 to 22, 30 to 32.
fn three_runs() -> Vec<JobInfo> {
    let segment = |run: i64, i: i64| {
        let from = 100 * i as u64;
        let key = PackKey { from, to: from + 100, ..pack(1) };
        let needs: Vec<i64> = (i > 0).then(|| run + i - 1).into_iter().collect();
        JobInfo { pack: Some(key), ..job(1, run + i, &needs) }
    };
    [10, 20, 30].into_iter().flat_map(|run| (0..3).map(move |i| segment(run, i))).collect()
}

#[test]
fn runs_that_fell_out_of_step_come_together_again() {
    let mut state = with_jobs(three_runs());
    at(&mut state, 0, stacking(1, capacity(1, 3), &[]));
    for id in [10, 20] {
        at(&mut state, 0, failed(1, attempt(id, 1), Retry::Allowed));
    }
    // The third run is ahead of the others, and waits for them once they can start.
    assert_eq!(packs(&at(&mut state, 0, succeeded(1, attempt(30, 1)))), [(1, 0, vec![31])]);
    at(&mut state, 1_000, Event::Tick);
    assert_eq!(packs(&at(&mut state, 1_000, released(1, attempt(31, 1)))), [(1, 0, vec![10])]);
    assert_eq!(packs(&at(&mut state, 1_000, succeeded(1, attempt(10, 2)))), [(1, 0, vec![20])], "not yet 11");
    assert_eq!(packs(&at(&mut state, 1_000, succeeded(1, attempt(20, 2)))), [(1, 0, vec![11, 21, 31])]);
}

#[test]
fn the_hindmost_goes_first() {
    let mut jobs = three_runs();
    for job in &mut jobs {
        match job.id.0 {
            10 | 11 | 20 => job.state = JobState::Done,
            12 | 21 => job.state = JobState::Ready,
            30 => job.attempts = 1,
            _ => {}
        }
    }
    let mut state = with_jobs(jobs);
    assert_eq!(packs(&at(&mut state, 0, stacking(1, capacity(1, 3), &[]))), [(1, 0, vec![30])]);
    assert_eq!(packs(&at(&mut state, 0, succeeded(1, attempt(30, 2)))), [(1, 0, vec![21, 31])]);
    at(&mut state, 0, succeeded(1, attempt(21, 1)));
    assert_eq!(packs(&at(&mut state, 0, succeeded(1, attempt(31, 1)))), [(1, 0, vec![12, 22, 32])]);
}

#[test]
fn the_hindmost_goes_where_its_checkpoint_is() {
    let mut jobs = three_runs();
    jobs.truncate(6);
    let mut state = with_jobs(jobs);
    assert_eq!(packs(&at(&mut state, 0, stacking(1, capacity(1, 2), &[]))), [(1, 0, vec![10, 20])]);
    at(&mut state, 0, succeeded(1, attempt(10, 1)));
    assert_eq!(packs(&at(&mut state, 0, stacking(2, capacity(1, 2), &[]))), [(2, 0, vec![11])]);
    at(&mut state, 0, Event::Pause(SweepId(1)));
    at(&mut state, 0, succeeded(1, attempt(20, 1)));
    at(&mut state, 0, succeeded(2, attempt(11, 1)));
    assert_eq!(packs(&at(&mut state, 0, Event::Resume(SweepId(1)))), [(1, 0, vec![21]), (2, 0, vec![12])]);
}

#[test]
fn a_run_that_is_ahead_does_not_go_before_one_that_is_first_in_line() {
    let mut jobs = three_runs();
    jobs.truncate(6);
    (jobs[3].state, jobs[4].state) = (JobState::Done, JobState::Ready);
    let mut state = with_jobs(jobs);
    assert_eq!(packs(&at(&mut state, 0, stacking(1, capacity(1, 3), &[]))), [(1, 0, vec![10])], "21 has begun");
}

#[test]
fn runs_that_have_not_begun_do_not_go_before_those_that_have() {
    let mut state = with_jobs(three_runs());
    at(&mut state, 0, stacking(1, capacity(1, 2), &[]));
    at(&mut state, 0, succeeded(1, attempt(10, 1)));
    assert_eq!(packs(&at(&mut state, 0, succeeded(1, attempt(20, 1)))), [(1, 0, vec![11, 21])], "30 is later");
}

#[test]
fn a_run_of_lower_priority_is_not_waited_for() {
    let mut late = three_runs();
    late.iter_mut().for_each(|job| {
        (job.id, job.sweep) = (JobId(job.id.0 + 100), SweepId(2));
        job.needs.iter_mut().for_each(|need| need.0 += 100);
        job.key = key(job.id.0 as u64);
    });
    let mut state = with_jobs(three_runs());
    at(&mut state, 0, submit(2, -1, late));
    at(&mut state, 0, stacking(1, capacity(1, 4), &[]));
    at(&mut state, 0, released(1, attempt(110, 1)));
    for id in [10, 20] {
        at(&mut state, 0, succeeded(1, attempt(id, 1)));
    }
    let next = packs(&at(&mut state, 0, succeeded(1, attempt(30, 1))));
    assert_eq!(next, [(1, 0, vec![11, 21, 31])], "110 has begun, and is for later");
}

#[test]
fn after_a_restart_a_pack_still_has_one_slot() {
    let mut state = with_jobs(alike(1, 10..=15));
    at(&mut state, 0, stacking(1, capacity(2, 2), &[]));
    let (mut state, effects) = State::new(CONFIG, state.snapshot(), 0);
    assert_eq!(effects, [set_worker(1, WorkerState::Lost)]);
    state.check().expect("invariants");
    let running: Vec<_> = (10..=13).map(|id| attempt(id, 1)).collect();
    let effects = at(&mut state, 0, stacking(1, capacity(3, 2), &running));
    assert_eq!(packs(&effects), [(1, 2, vec![14, 15])], "one slot is free");

    // One that has lost half of each pack keeps both slots for the rest.
    let rest = [attempt(10, 1), attempt(13, 1)];
    let effects = at(&mut state, 30_000, stacking(1, capacity(1, 2), &rest));
    assert_eq!(packs(&effects), []);
    assert_eq!(packs(&at(&mut state, 30_000, succeeded(1, attempt(10, 1)))), []);
    assert_eq!(packs(&at(&mut state, 31_000, Event::Tick)), [(1, 0, vec![11])], "not where 13 is");
    assert_eq!(packs(&at(&mut state, 31_000, succeeded(1, attempt(13, 1)))), [(1, 1, vec![12])]);
}

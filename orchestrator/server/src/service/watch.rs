//! The state of a sweep, pushed while it changes.

use super::{Context, Reply, streamed};
use crate::error::status;
use std::time::Duration;
use taskvec_model::{id::SweepId, state::JobState};
use taskvec_store::{RunProgress, SweepProgress};
use taskvec_wire::pb;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tonic::Status;

/// At most five a second, however much happens.
const AT_MOST_EVERY: Duration = Duration::from_millis(200);
/// At least this often, so that clocks on a screen go on.
const AT_LEAST_EVERY: Duration = Duration::from_secs(1);

/// The first state is read before the reply starts, so that an unknown sweep is an error of the call.
pub(super) async fn watch(context: Context, sweep: SweepId) -> Result<Reply<pb::SweepStatus>, Status> {
    let first = context.store.sweep_progress(sweep).await.map_err(status)?;
    Ok(streamed(|to| async move {
        tokio::select! {
            () = push(&context, first, &to) => {}
            () = context.stopped() => {
                let _ = to.send(Err(Status::unavailable("the server is shutting down"))).await;
            }
        }
    }))
}

async fn push(context: &Context, mut progress: SweepProgress, to: &mpsc::Sender<Result<pb::SweepStatus, Status>>) {
    let sweep = progress.id;
    let mut changes = context.live.changes();
    let eta = Eta::new(&progress, context);
    loop {
        let ended = progress.state.ended();
        let next = Instant::now() + AT_MOST_EVERY;
        let message = report(context, &progress, eta.seconds(&progress, context));
        if to.send(Ok(message)).await.is_err() || ended {
            return;
        }
        sleep_until(next).await;
        // Woken by a change, or by the clock.
        let _ = timeout(AT_LEAST_EVERY - AT_MOST_EVERY, changes.changed()).await;
        progress = match context.store.sweep_progress(sweep).await {
            Ok(now) => now,
            // The last state holds until the database is back.
            Err(error) if error.is_unavailable() => progress,
            Err(error) => {
                let _ = to.send(Err(status(error))).await;
                return;
            }
        };
    }
}

fn report(context: &Context, progress: &SweepProgress, eta_seconds: Option<f64>) -> pb::SweepStatus {
    pb::SweepStatus {
        sweep_id: progress.id.0,
        name: progress.name.clone(),
        state: progress.state.to_string(),
        jobs: progress.jobs.to_vec(),
        cached: progress.cached,
        runs: progress.runs.iter().map(|run| report_run(context, run)).collect(),
        eta_seconds,
    }
}

fn report_run(context: &Context, run: &RunProgress) -> pb::RunStatus {
    let live = run.training.and_then(|job| context.live.progress(job));
    let analysis = run.analysing.and_then(|job| Some((job, context.live.progress(job)?)));
    let analysis = analysis.filter(|(_, progress)| progress.total > 0);
    pb::RunStatus {
        run_id: run.id.0,
        params: run.params.to_string(),
        state: run.state.clone(),
        // Training reports the step of the run, not of the segment.
        step: live.map_or(run.step, |live| run.step.max(live.done)),
        steps: run.steps,
        steps_per_second: live.map_or(0.0, |live| live.per_second),
        loss: live.and_then(|live| live.loss),
        jobs_done: run.jobs_done,
        jobs_total: run.jobs_total,
        job_id: analysis.map_or(0, |(job, _)| job.0),
        job_done: analysis.map_or(0, |(_, progress)| progress.done),
        job_total: analysis.map_or(0, |(_, progress)| progress.total),
    }
}

/// Expected time to the end: what is left to compute at the rate seen since the watch began. Work is counted in the
/// plan's floating-point operations of finished jobs; a running job of each run counts with the part of it that is
/// done, as an average unfinished job.
struct Eta {
    since: Instant,
    done_then: f64,
}

impl Eta {
    fn new(progress: &SweepProgress, context: &Context) -> Self {
        Self { since: Instant::now(), done_then: done(progress, context) }
    }

    fn seconds(&self, progress: &SweepProgress, context: &Context) -> Option<f64> {
        if progress.state.ended() {
            return None;
        }
        let done = done(progress, context);
        estimate(progress.flops_total - done, done - self.done_then, self.since.elapsed().as_secs_f64())
    }
}

/// None while nothing was seen to be done.
fn estimate(left: f64, done: f64, seconds: f64) -> Option<f64> {
    (done > 0.0 && seconds > 0.0).then(|| left.max(0.0) * seconds / done)
}

fn done(progress: &SweepProgress, context: &Context) -> f64 {
    let open: u32 = JobState::ALL.iter().zip(progress.jobs).filter(|(state, _)| !state.ended()).map(|(_, n)| n).sum();
    let average = (progress.flops_total - progress.flops_done).max(0.0) / f64::from(open.max(1));
    let parts = progress.runs.iter().filter_map(|run| {
        // Training counts steps from the start of the run, an analysis from its own.
        let (job, from) = run.training.map(|job| (job, run.step)).or(run.analysing.map(|job| (job, 0)))?;
        let live = context.live.progress(job)?;
        Some(live.done.saturating_sub(from) as f64 / live.total.saturating_sub(from).max(1) as f64)
    });
    progress.flops_done + parts.sum::<f64>() * average
}

#[cfg(test)]
mod tests {
    use super::estimate;

    #[test]
    fn the_rest_takes_as_long_as_the_same_before() {
        assert_eq!(estimate(30.0, 10.0, 2.0), Some(6.0));
        assert_eq!(estimate(30.0, 0.0, 2.0), None);
        assert_eq!(estimate(-1.0, 10.0, 2.0), Some(0.0));
    }
}

//! Planning, submitting and steering sweeps.

use super::{Context, Reply, watch};
use crate::driver::{Command, Control, Submission};
use std::sync::Arc;
use taskvec_model::{
    id::{JobId, JobKey, SweepId},
    plan::Plan,
};
use taskvec_wire::pb::{self, control_sweep_request::Action, sweeps_server::Sweeps};
use tonic::{Request, Response, Status};

pub(super) struct SweepService(pub Context);

impl SweepService {
    /// Validates here again, whatever the client did, with the models and data that this server sees.
    async fn read(&self, yaml: String, file: String) -> Result<(Plan, String), Status> {
        let (limits, files) = (Arc::clone(&self.0.limits), Arc::clone(&self.0.files));
        let planned = tokio::task::spawn_blocking(move || {
            let name = if file.is_empty() { "sweep.yaml" } else { file.as_str() };
            taskvec_sweep::plan_with(&yaml, name, &limits, &*files).map(|plan| (plan, yaml))
        });
        let planned =
            planned.await.map_err(|_| Status::internal("the planner failed on this file; please report it"))?;
        planned.map_err(|faults| Status::invalid_argument(faults.to_string()))
    }
}

#[tonic::async_trait]
impl Sweeps for SweepService {
    async fn plan(&self, request: Request<pb::PlanRequest>) -> Result<Response<pb::PlanReply>, Status> {
        let pb::PlanRequest { yaml, file } = request.into_inner();
        let (plan, _) = self.read(yaml, file).await?;
        let keys: Vec<JobKey> = plan.jobs.iter().map(|job| job.key).collect();
        let stored = self.0.store.cached(&keys).await.map_err(crate::error::status)?;
        Ok(Response::new(pb::PlanReply { cached: plan.satisfied(|key| stored.get(key).cloned()) }))
    }

    async fn submit(&self, request: Request<pb::SubmitRequest>) -> Result<Response<pb::SubmitReply>, Status> {
        let pb::SubmitRequest { yaml, file, priority, request } = request.into_inner();
        let request = match request.len() {
            0 => None,
            n => Some(request.try_into().map_err(|_| {
                Status::invalid_argument(format!("`request` has {n} bytes; it is 16 random ones, or empty"))
            })?),
        };
        let (plan, yaml) = self.read(yaml, file).await?;
        let submission = Box::new(Submission { plan, yaml, priority, request });
        let submitted = self.0.driver.ask(|answer| Command::Submit(submission, answer)).await?;
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(Response::new(pb::SubmitReply {
            sweep_id: submitted.sweep.0,
            runs: count(submitted.runs),
            jobs: count(submitted.jobs),
            cached: count(submitted.cached),
        }))
    }

    async fn control_sweep(&self, request: Request<pb::ControlSweepRequest>) -> Result<Response<pb::Empty>, Status> {
        let pb::ControlSweepRequest { sweep_id, action } = request.into_inner();
        let control = match action {
            Some(Action::Pause(_)) => Control::Pause,
            Some(Action::Resume(_)) => Control::Resume,
            Some(Action::Cancel(_)) => Control::Cancel,
            Some(Action::Retry(_)) => Control::Retry,
            Some(Action::Priority(priority)) => Control::Priority(priority),
            None => return Err(Status::invalid_argument("the request names no action")),
        };
        self.0.driver.ask(|answer| Command::Control(SweepId(sweep_id), control, answer)).await?;
        Ok(Response::new(pb::Empty {}))
    }

    async fn retry_job(&self, request: Request<pb::JobRequest>) -> Result<Response<pb::Empty>, Status> {
        let job = JobId(request.into_inner().job_id);
        let sweep = self.0.store.job(job).await.map_err(crate::error::status)?.sweep;
        self.0.driver.ask(|answer| Command::RetryJob { job, sweep, answer }).await?;
        Ok(Response::new(pb::Empty {}))
    }

    async fn explain_job(&self, request: Request<pb::JobRequest>) -> Result<Response<pb::ExplainReply>, Status> {
        let job = JobId(request.into_inner().job_id);
        let explanation = self.0.driver.ask(|answer| Command::Explain(job, answer)).await?;
        let text = match explanation {
            Some(text) => text,
            None => {
                let place = self.0.store.job(job).await.map_err(crate::error::status)?;
                format!("is {}; its sweep {} has ended", place.state, place.sweep)
            }
        };
        Ok(Response::new(pb::ExplainReply { text }))
    }

    type WatchStream = Reply<pb::SweepStatus>;

    async fn watch(&self, request: Request<pb::SweepRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let sweep = SweepId(request.into_inner().sweep_id);
        Ok(Response::new(watch::watch(self.0.clone(), sweep).await?))
    }
}

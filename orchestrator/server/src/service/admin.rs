//! For whoever runs the installation.

use super::Context;
use crate::{driver::Command, error::status};
use taskvec_model::id::WorkerId;
use taskvec_store::GcPolicy;
use taskvec_wire::{
    VERSION,
    pb::{self, admin_server::Admin},
};
use tonic::{Request, Response, Status};

pub(super) struct AdminService(pub Context);

#[tonic::async_trait]
impl Admin for AdminService {
    async fn drain_worker(&self, request: Request<pb::WorkerRequest>) -> Result<Response<pb::Empty>, Status> {
        let worker = WorkerId(request.into_inner().worker_id);
        self.0.driver.ask(|answer| Command::Drain(worker, answer)).await?;
        Ok(Response::new(pb::Empty {}))
    }

    async fn gc(&self, request: Request<pb::GcRequest>) -> Result<Response<pb::GcReply>, Status> {
        let policy = GcPolicy { grace: self.0.gc_grace, dry_run: request.into_inner().dry_run };
        let removed = self.0.store.gc(policy).await.map_err(status)?;
        Ok(Response::new(pb::GcReply {
            checkpoints: removed.checkpoints,
            chunks: removed.chunks,
            bytes: removed.bytes,
        }))
    }

    async fn health(&self, _: Request<pb::Empty>) -> Result<Response<pb::HealthReply>, Status> {
        Ok(Response::new(pb::HealthReply { version: VERSION.to_owned(), workers: self.0.live.workers() }))
    }
}

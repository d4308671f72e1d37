//! Listings and the user's own SQL.

use super::{Context, Reply, streamed};
use crate::error::status;
use taskvec_model::id::{JobId, RunId, SweepId};
use taskvec_store::{ListQuery, Rows};
use taskvec_wire::pb::{self, queries_server::Queries};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

/// Rows in one message of a listing.
const ROWS: usize = 500;

pub(super) struct QueryService(pub Context);

#[tonic::async_trait]
impl Queries for QueryService {
    type ListStream = Reply<pb::TablePart>;

    async fn list(&self, request: Request<pb::ListRequest>) -> Result<Response<Self::ListStream>, Status> {
        let table = self.0.store.list(&list_query(request.into_inner())?).await.map_err(status)?;
        Ok(Response::new(streamed(|to| async move {
            let head = pb::TablePart { columns: table.columns, rows: Vec::new() };
            if to.send(Ok(head)).await.is_err() {
                return;
            }
            for rows in table.rows.chunks(ROWS) {
                let rows = rows.iter().map(|row| serde_json::Value::from(row.as_slice()).to_string()).collect();
                if to.send(Ok(pb::TablePart { columns: Vec::new(), rows })).await.is_err() {
                    return;
                }
            }
        })))
    }

    type SqlStream = Reply<pb::TablePart>;

    async fn sql(&self, request: Request<pb::SqlRequest>) -> Result<Response<Self::SqlStream>, Status> {
        let rows = self.0.reader.sql(&request.into_inner().query).await.map_err(status)?;
        Ok(Response::new(streamed(|to| send_rows(rows, to))))
    }

    async fn sql_url(&self, _: Request<pb::Empty>) -> Result<Response<pb::SqlUrlReply>, Status> {
        Ok(Response::new(pb::SqlUrlReply { url: self.0.reader_url.to_string() }))
    }
}

async fn send_rows(mut rows: Rows, to: mpsc::Sender<Result<pb::TablePart, Status>>) {
    let mut part = Ok(pb::TablePart { columns: rows.columns().to_vec(), rows: Vec::new() });
    loop {
        let failed = part.is_err();
        if to.send(part).await.is_err() || failed {
            return;
        }
        part = match rows.next().await {
            Ok(None) => return,
            Ok(Some(rows)) => Ok(pb::TablePart { columns: Vec::new(), rows }),
            Err(error) => Err(status(error)),
        };
    }
}

fn list_query(request: pb::ListRequest) -> Result<ListQuery, Status> {
    let pb::ListRequest { listing, sweep_id, run_id, job_id, state, limit } = request;
    let given = |id: i64| (id != 0).then_some(id);
    Ok(ListQuery {
        listing: listing.parse().map_err(|_| {
            Status::invalid_argument(format!(
                "`{listing}` is not a listing: sweeps, runs, jobs, workers, checkpoints, attempts, job_logs"
            ))
        })?,
        sweep: given(sweep_id).map(SweepId),
        run: given(run_id).map(RunId),
        job: given(job_id).map(JobId),
        state: (!state.is_empty()).then_some(state),
        limit,
    })
}

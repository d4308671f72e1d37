//! The gRPC services: they translate, ask the driver or the store, and hold no state of their own.

mod admin;
mod blobs;
mod query;
mod sweeps;
mod watch;
mod workers;

use crate::driver::{Handle, Live};
use std::{pin::Pin, sync::Arc, time::Duration};
use taskvec_store::{Reader, Store};
use taskvec_sweep::{Files, Limits};
use taskvec_wire::{MAX_MESSAGE, pb};
use tokio::sync::watch as flag;
use tokio_stream::Stream;
use tonic::{Status, service::Routes};

/// What the services share.
#[derive(Clone)]
pub(crate) struct Context {
    pub store: Store,
    pub reader: Reader,
    /// For tools outside the server.
    pub reader_url: Arc<str>,
    pub driver: Handle,
    pub live: Arc<Live>,
    pub limits: Arc<Limits>,
    pub files: Arc<dyn Files + Send + Sync>,
    pub lease: Duration,
    pub heartbeat: Duration,
    pub gc_grace: Duration,
    /// Raised when the server stops: endless streams end.
    pub stopping: flag::Receiver<bool>,
}

impl Context {
    /// Resolves when the server is to stop.
    async fn stopped(&self) {
        let _ = self.stopping.clone().wait_for(|stop| *stop).await;
    }
}

type Reply<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A streamed reply that `produce` fills, never more than a few parts ahead of the client.
fn streamed<T, F>(produce: impl FnOnce(tokio::sync::mpsc::Sender<Result<T, Status>>) -> F) -> Reply<T>
where
    T: Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let (sender, parts) = tokio::sync::mpsc::channel(2);
    tokio::spawn(produce(sender));
    Box::pin(tokio_stream::wrappers::ReceiverStream::new(parts))
}

/// All services behind one token check.
pub(crate) fn routes(context: &Context) -> Routes {
    macro_rules! limited {
        ($server:ty, $service:expr) => {
            <$server>::new($service).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE)
        };
    }
    Routes::new(limited!(pb::sweeps_server::SweepsServer<_>, sweeps::SweepService(context.clone())))
        .add_service(limited!(pb::queries_server::QueriesServer<_>, query::QueryService(context.clone())))
        .add_service(limited!(pb::admin_server::AdminServer<_>, admin::AdminService(context.clone())))
        .add_service(limited!(pb::blobs_server::BlobsServer<_>, blobs::BlobService(context.clone())))
        .add_service(limited!(pb::workers_server::WorkersServer<_>, workers::WorkerService(context.clone())))
}

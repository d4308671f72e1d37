//! A worker without a will of its own.

use super::{Client, within};
use taskvec_model::id::AttemptRef;
use taskvec_wire::{
    VERSION,
    pb::{self, server_message::Message as FromServer, worker_message::Message as ToServer},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

/// Who it says it is.
#[derive(Clone, Debug)]
pub struct Identity {
    pub name: &'static str,
    pub slots: u32,
    /// Runs in one slot.
    pub stack: u32,
    pub nonce: u64,
    pub id: i64,
    pub version: &'static str,
}

impl Identity {
    pub fn new(name: &'static str, slots: u32) -> Self {
        // Names differ within a test, and each test has its own database.
        let nonce = name.bytes().fold(1, |hash: u64, byte| hash * 31 + u64::from(byte));
        Self { name, slots, stack: 1, nonce, id: 0, version: VERSION }
    }
}

/// Each of them well-formed.
pub fn attempts(assign: pb::Assign) -> Vec<AttemptRef> {
    assign.starts.into_iter().map(|start| taskvec_wire::assignment(start).unwrap().0).collect()
}

pub struct Worker {
    pub id: i64,
    to: mpsc::Sender<pb::WorkerMessage>,
    from: Streaming<pb::ServerMessage>,
}

impl Worker {
    pub async fn connect(client: &Client, who: &Identity) -> Result<Self, Status> {
        Self::reconnect(client, who, &[]).await
    }

    /// With attempts that it still runs, or whose outcomes it holds.
    pub async fn reconnect(client: &Client, who: &Identity, attempts: &[AttemptRef]) -> Result<Self, Status> {
        let (to, messages) = mpsc::channel(64);
        let hello = pb::Hello {
            worker_id: who.id,
            name: who.name.into(),
            host: "here".into(),
            devices: vec!["cpu".into()],
            slots: who.slots,
            threads_per_slot: 1,
            pid: std::process::id(),
            version: who.version.into(),
            attempts: attempts.iter().map(|a| (*a).into()).collect(),
            nonce: who.nonce,
            stack: who.stack,
            stack_bytes: 1 << 30,
        };
        let mut worker = Self { id: 0, to, from: Self::open(client, messages, hello).await? };
        match worker.next().await? {
            FromServer::Welcome(welcome) => worker.id = welcome.worker_id,
            other => panic!("not a welcome: {other:?}"),
        }
        Ok(worker)
    }

    async fn open(
        client: &Client,
        messages: mpsc::Receiver<pb::WorkerMessage>,
        hello: pb::Hello,
    ) -> Result<Streaming<pb::ServerMessage>, Status> {
        let first = tokio_stream::once(pb::WorkerMessage { message: Some(ToServer::Hello(hello)) });
        let stream = tokio_stream::StreamExt::chain(first, ReceiverStream::new(messages));
        Ok(within(client.workers.clone().session(stream)).await?.into_inner())
    }

    /// Until the server lets it in: what a worker does when its server was away.
    pub async fn reconnect_patiently(client: &Client, who: &Identity, attempts: &[AttemptRef]) -> Self {
        within(async {
            loop {
                match Self::reconnect(client, who, attempts).await {
                    Ok(worker) => return worker,
                    Err(_) => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
                }
            }
        })
        .await
    }

    pub async fn next(&mut self) -> Result<FromServer, Status> {
        let message = within(self.from.message()).await?;
        Ok(message.ok_or_else(|| Status::aborted("the session ended"))?.message.expect("a message with content"))
    }

    pub async fn say(&self, message: ToServer) {
        // A session that has ended is noticed at the next message from it.
        let _ = self.to.send(pb::WorkerMessage { message: Some(message) }).await;
    }

    /// One that is alone in its slot.
    pub async fn assigned(&mut self) -> AttemptRef {
        let pack = self.assigned_pack().await;
        assert_eq!(pack.len(), 1, "{pack:?}");
        pack[0]
    }

    /// What is to share a slot.
    pub async fn assigned_pack(&mut self) -> Vec<AttemptRef> {
        match self.next().await.unwrap() {
            FromServer::Assign(assign) => attempts(assign),
            other => panic!("not an assignment: {other:?}"),
        }
    }

    pub async fn answer(&mut self) -> pb::Answer {
        match self.next().await.unwrap() {
            FromServer::Answer(answer) => answer,
            other => panic!("not an answer: {other:?}"),
        }
    }

    pub async fn finish(&self, attempt: AttemptRef) {
        self.finish_with(attempt, pb::Produced::default()).await;
    }

    pub async fn finish_with(&self, attempt: AttemptRef, produced: pb::Produced) {
        let (attempt, produced) = (Some(attempt.into()), Some(produced));
        self.say(ToServer::Finished(pb::Finished { attempt, produced, log: "fine\n".into() })).await;
    }

    pub async fn fail(&self, attempt: AttemptRef, retry: bool) {
        let (attempt, reason) = (Some(attempt.into()), "it broke".into());
        self.say(ToServer::Failed(pb::Failed { attempt, retry, reason, log: "oh no\n".into() })).await;
    }

    pub async fn heartbeat(&self, attempt: AttemptRef, done: u64) {
        let progress = taskvec_model::job::Progress { done, total: 10, per_second: 2.0, loss: Some(0.5) };
        let attempts = vec![pb::AttemptProgress::new(attempt, progress)];
        self.say(ToServer::Heartbeat(pb::Heartbeat { attempts })).await;
    }

    /// Finishes whatever comes until nothing has come for as long as the sweep needs to end: stopped by dropping.
    pub async fn work(mut self) {
        loop {
            match self.next().await {
                Ok(FromServer::Assign(assign)) => {
                    for attempt in attempts(assign) {
                        self.finish(attempt).await;
                    }
                }
                Ok(FromServer::Answer(answer)) => assert!(answer.accepted, "{}", answer.reason),
                Ok(other) => panic!("unexpected: {other:?}"),
                Err(_) => return,
            }
        }
    }
}

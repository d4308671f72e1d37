//! A server that does what a test tells it to, and tells the test what it hears.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};
use taskvec_model::{
    id::{AttemptRef, Digest},
    job::{Assignment, BlobRef, CheckpointRef, Purpose},
};
use taskvec_wire::{
    CHUNK_BYTES,
    pb::{
        self, BlobManifest, BlobRequest, CheckpointRequest, Chunk, ChunkHashes, Empty, Hello, MissingReply,
        ServerMessage, WorkerMessage,
        blobs_server::{Blobs, BlobsServer},
        server_message,
        worker_message::Message,
        workers_server::{Workers, WorkersServer},
    },
};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming, transport::server::TcpIncoming};

pub const TOKEN: &str = "sesame";
pub const WORKER_ID: i64 = 42;

type Outgoing = mpsc::Sender<Result<ServerMessage, Status>>;

pub struct Shared {
    pub heard: mpsc::Sender<Message>,
    pub state: Mutex<State>,
    /// PutBlob takes one permit for each call.
    pub put_blob: Semaphore,
}

#[derive(Default)]
pub struct State {
    /// Every call fails as if the server were not there.
    pub away: bool,
    pub refuse_hello: Option<Status>,
    /// Answers that the next calls of Get give instead.
    pub refuse_get: Vec<Status>,
    session: Option<Outgoing>,
    chunks: BTreeMap<Vec<u8>, Vec<u8>>,
    pub blobs: BTreeMap<Digest, BlobManifest>,
    /// How often each was done.
    pub gets: u32,
    pub chunks_received: u32,
    pub put_blobs: u32,
}

pub struct FakeServer {
    pub shared: Arc<Shared>,
    pub address: SocketAddr,
    heard: mpsc::Receiver<Message>,
}

impl FakeServer {
    pub async fn start() -> Self {
        let (tx, heard) = mpsc::channel(1000);
        let shared =
            Arc::new(Shared { heard: tx, state: Mutex::default(), put_blob: Semaphore::new(Semaphore::MAX_PERMITS) });
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = incoming.local_addr().unwrap();
        let serving = tonic::transport::Server::builder()
            .add_service(WorkersServer::new(Service(shared.clone())))
            .add_service(BlobsServer::new(Service(shared.clone())));
        tokio::spawn(serving.serve_with_incoming(incoming));
        Self { shared, address, heard }
    }

    pub fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.shared.state.lock().unwrap()
    }

    pub fn go_away(&self) {
        let mut state = self.state();
        state.away = true;
        state.session = None;
    }

    pub fn come_back(&self) {
        self.state().away = false;
    }

    /// The next message, whatever it is.
    pub async fn any(&mut self) -> Message {
        let next = tokio::time::timeout(Duration::from_secs(20), self.heard.recv()).await;
        next.expect("the worker says something").expect("the server listens")
    }

    /// The next message but heartbeats.
    pub async fn next(&mut self) -> Message {
        loop {
            match self.any().await {
                Message::Heartbeat(_) => {}
                other => return other,
            }
        }
    }

    pub async fn hello(&mut self) -> Hello {
        match self.next().await {
            Message::Hello(hello) => hello,
            other => panic!("not Hello: {other:?}"),
        }
    }

    pub async fn finished(&mut self) -> pb::Finished {
        match self.next().await {
            Message::Finished(finished) => finished,
            other => panic!("not Finished: {other:?}"),
        }
    }

    pub async fn failed(&mut self) -> pb::Failed {
        match self.next().await {
            Message::Failed(failed) => failed,
            other => panic!("not Failed: {other:?}"),
        }
    }

    pub async fn released(&mut self) -> pb::Released {
        match self.next().await {
            Message::Released(released) => released,
            other => panic!("not Released: {other:?}"),
        }
    }

    pub async fn send(&self, message: server_message::Message) {
        let session = self.state().session.clone().expect("a session");
        session.send(Ok(ServerMessage { message: Some(message) })).await.expect("the worker listens");
    }

    pub async fn assign(&self, attempt: AttemptRef, assignment: Assignment) {
        self.assign_pack(vec![(attempt, assignment)]).await;
    }

    /// For one slot.
    pub async fn assign_pack(&self, pack: Vec<(AttemptRef, Assignment)>) {
        let starts = pack.into_iter().map(|(attempt, given)| taskvec_wire::start(attempt, given).unwrap()).collect();
        self.send(server_message::Message::Assign(pb::Assign { starts })).await;
    }

    pub async fn stop(&self, attempt: AttemptRef) {
        let stop = pb::Stop { attempt: Some(attempt.into()), reason: "the test says so".into() };
        self.send(server_message::Message::Stop(stop)).await;
    }

    pub async fn accept(&self, attempt: AttemptRef) {
        let answer = pb::Answer { attempt: Some(attempt.into()), accepted: true, reason: String::new() };
        self.send(server_message::Message::Answer(answer)).await;
    }

    pub async fn drain(&self) {
        self.send(server_message::Message::Drain(Empty {})).await;
    }

    /// Puts a checkpoint into the store.
    pub fn store(&self, step: u64, purpose: Purpose, bytes: &[u8]) -> CheckpointRef {
        let mut state = self.state();
        let mut hashes = vec![];
        for chunk in bytes.chunks(CHUNK_BYTES) {
            let hash = blake3::hash(chunk).as_bytes().to_vec();
            state.chunks.insert(hash.clone(), chunk.to_vec());
            hashes.push(hash);
        }
        let digest = Digest(*blake3::hash(bytes).as_bytes());
        let manifest = BlobManifest { digest: digest.0.to_vec(), bytes: bytes.len() as u64, chunks: hashes };
        state.blobs.insert(digest, manifest);
        CheckpointRef { step, purpose, blob: BlobRef { digest, bytes: bytes.len() as u64 } }
    }

    /// The bytes of a stored blob.
    pub fn stored(&self, blob: &BlobRef) -> Option<Vec<u8>> {
        let state = self.state();
        let manifest = state.blobs.get(&blob.digest)?;
        Some(manifest.chunks.iter().flat_map(|hash| state.chunks[hash].clone()).collect())
    }

    /// Damages a chunk of a stored blob.
    pub fn damage(&self, blob: &BlobRef, chunk: usize) {
        let mut state = self.state();
        let hash = state.blobs[&blob.digest].chunks[chunk].clone();
        state.chunks.get_mut(&hash).unwrap()[0] ^= 1;
    }
}

struct Service(Arc<Shared>);

impl Service {
    fn enter<T>(&self, request: &Request<T>) -> Result<std::sync::MutexGuard<'_, State>, Status> {
        let state = self.0.state.lock().unwrap();
        if state.away {
            return Err(Status::unavailable("away"));
        }
        let given = request.metadata().get("authorization").and_then(|v| v.to_str().ok());
        if given != Some(format!("Bearer {TOKEN}").as_str()) {
            return Err(Status::unauthenticated("the token is not this server's"));
        }
        Ok(state)
    }
}

type Messages = Pin<Box<dyn Stream<Item = Result<ServerMessage, Status>> + Send>>;

#[tonic::async_trait]
impl Workers for Service {
    type SessionStream = Messages;

    async fn session(
        &self,
        request: Request<Streaming<WorkerMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        drop(self.enter(&request)?);
        let mut incoming = request.into_inner();
        let hello = incoming.message().await?.and_then(|m| m.message).expect("a first message");
        let (tx, rx) = mpsc::channel(100);
        {
            let mut state = self.0.state.lock().unwrap();
            if let Some(status) = state.refuse_hello.take() {
                return Err(status);
            }
            let welcome = pb::Welcome { worker_id: WORKER_ID, heartbeat_millis: 500, lease_millis: 2000 };
            let message = Some(server_message::Message::Welcome(welcome));
            tx.try_send(Ok(ServerMessage { message })).unwrap();
            state.session = Some(tx);
        }
        let heard = self.0.heard.clone();
        heard.send(hello).await.unwrap();
        let shared = self.0.clone();
        tokio::spawn(async move {
            while let Ok(Some(WorkerMessage { message: Some(message) })) = incoming.message().await {
                if heard.send(message).await.is_err() {
                    return;
                }
            }
            shared.state.lock().unwrap().session = None;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(rx))))
    }
}

type Chunks = Pin<Box<dyn Stream<Item = Result<Chunk, Status>> + Send>>;

#[tonic::async_trait]
impl Blobs for Service {
    type GetStream = Chunks;
    type GetCheckpointStream = Chunks;

    async fn missing(&self, request: Request<ChunkHashes>) -> Result<Response<MissingReply>, Status> {
        let state = self.enter(&request)?;
        let hashes = &request.get_ref().hashes;
        let indices = (0..hashes.len() as u32).filter(|i| !state.chunks.contains_key(&hashes[*i as usize])).collect();
        Ok(Response::new(MissingReply { indices }))
    }

    async fn put_chunks(&self, request: Request<Streaming<Chunk>>) -> Result<Response<Empty>, Status> {
        drop(self.enter(&request)?);
        let mut chunks = request.into_inner();
        while let Some(Chunk { hash, data }) = chunks.message().await? {
            assert_eq!(blake3::hash(&data).as_bytes().as_slice(), hash);
            let mut state = self.0.state.lock().unwrap();
            state.chunks_received += 1;
            state.chunks.insert(hash, data);
        }
        Ok(Response::new(Empty {}))
    }

    async fn put_blob(&self, request: Request<BlobManifest>) -> Result<Response<Empty>, Status> {
        self.enter(&request)?.put_blobs += 1;
        self.0.put_blob.acquire().await.unwrap().forget();
        let mut state = self.enter(&request)?;
        let manifest = request.into_inner();
        if !manifest.chunks.iter().all(|hash| state.chunks.contains_key(hash)) {
            return Err(Status::failed_precondition("a chunk is not stored"));
        }
        let digest = taskvec_wire::digest(&manifest.digest)?;
        state.blobs.insert(digest, manifest);
        Ok(Response::new(Empty {}))
    }

    async fn get(&self, request: Request<BlobRequest>) -> Result<Response<Chunks>, Status> {
        let mut state = self.enter(&request)?;
        state.gets += 1;
        if let Some(status) = state.refuse_get.pop() {
            return Err(status);
        }
        let digest = taskvec_wire::digest(&request.get_ref().digest)?;
        let manifest = state.blobs.get(&digest).ok_or_else(|| Status::not_found("no such blob"))?;
        let chunk = |hash: &Vec<u8>| Ok(Chunk { hash: hash.clone(), data: state.chunks[hash].clone() });
        let chunks: Vec<_> = manifest.chunks.iter().map(chunk).collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(chunks))))
    }

    async fn get_checkpoint(&self, _: Request<CheckpointRequest>) -> Result<Response<Chunks>, Status> {
        Err(Status::unimplemented("workers ask by digest"))
    }
}

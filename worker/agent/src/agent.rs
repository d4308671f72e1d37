//! The worker's one decider: what the server says, what attempts come to, and when to leave.

use crate::{
    attempt::{self, Ended, Workshop},
    config::{WorkerConfig, host},
    control::{Control, Wish},
    data_dir::{DataDir, Identity},
    error::AgentError,
    link::Event,
    pack::{self, Seat},
    phase::{LAST_WORDS, Phase},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use taskvec_model::{id::AttemptRef, job::Progress};
use taskvec_wire::pb::{self, AttemptProgress, WorkerMessage, server_message, worker_message::Message};
use tokio::{
    sync::mpsc,
    task::{JoinError, JoinSet},
    time::Instant,
};

/// Progress that changed is told this often; unchanged progress with every heartbeat.
const PROGRESS: Duration = Duration::from_millis(500);

pub struct Agent {
    workshop: Arc<Workshop>,
    dir: DataDir,
    identity: Identity,
    greeting: pb::Hello,
    drain_grace: Duration,
    held: BTreeMap<AttemptRef, Held>,
    tasks: JoinSet<(AttemptRef, Ended)>,
    uplink: Uplink,
    phase: Phase,
    /// The server was told, or said itself, that this worker takes nothing new. It would drain whoever takes over this
    /// worker's identity, so nobody shall.
    draining: bool,
    beat: Beat,
}

/// An attempt that this worker answers for.
enum Held {
    Running(Arc<Control>),
    /// Its outcome is in the spool; `sent`: in this session.
    Spooled {
        sent: bool,
        progress: Progress,
    },
}

enum Uplink {
    Down,
    /// Hello was said.
    Greeting(mpsc::Sender<WorkerMessage>),
    /// Welcome was said. `draining`: the server knows that this worker takes nothing new.
    Up {
        tx: mpsc::Sender<WorkerMessage>,
        draining: bool,
    },
}

struct Beat {
    every: Duration,
    last: Instant,
    told: Vec<AttemptProgress>,
}

impl Agent {
    pub fn new(
        config: &WorkerConfig,
        dir: DataDir,
        workshop: Workshop,
        spooled: BTreeSet<AttemptRef>,
        (slots, threads_per_slot): (usize, usize),
    ) -> Result<Self, AgentError> {
        let identity = dir.identity()?;
        let spooled = workshop.spool.reclaimable(&identity, spooled);
        let greeting = pb::Hello {
            name: config.name.clone(),
            host: host(),
            devices: config.devices.clone(),
            slots: u32::try_from(slots).unwrap_or(u32::MAX),
            threads_per_slot: u32::try_from(threads_per_slot).unwrap_or(u32::MAX),
            pid: std::process::id(),
            version: taskvec_wire::VERSION.to_owned(),
            nonce: identity.nonce,
            worker_id: identity.worker_id,
            attempts: vec![],
            stack: config.stack,
            stack_bytes: config.stack_bytes_of(slots),
        };
        let held = spooled.into_iter().map(|a| (a, Held::Spooled { sent: false, progress: Progress::default() }));
        Ok(Self {
            held: held.collect(),
            workshop: Arc::new(workshop),
            dir,
            identity,
            greeting,
            drain_grace: config.drain_grace,
            tasks: JoinSet::new(),
            uplink: Uplink::Down,
            phase: Phase::Working,
            draining: false,
            beat: Beat { every: PROGRESS, last: Instant::now(), told: vec![] },
        })
    }

    /// Works until it has left. `leave` asks for a polite leave, `leave_now` for an immediate one.
    pub async fn work(
        mut self,
        mut events: mpsc::Receiver<Event>,
        leave: impl Future<Output = ()>,
        leave_now: impl Future<Output = ()>,
    ) -> Result<(), AgentError> {
        tokio::pin!(leave, leave_now);
        let (mut left, mut left_now) = (false, false);
        let mut tick = tokio::time::interval(PROGRESS);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !self.phase.is_over(self.held.is_empty(), Instant::now()) {
            let alarm = self.phase.alarm();
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.on_event(event)?,
                    None => return Err(AgentError::Bug("the connection task ended".into())),
                },
                Some(ended) = self.tasks.join_next() => self.on_ended(ended)?,
                _ = tick.tick() => self.heartbeat(),
                () = &mut leave, if !left => {
                    left = true;
                    self.leave();
                }
                () = &mut leave_now, if !left_now => {
                    left_now = true;
                    self.leave_now();
                }
                () = sleep_until(alarm), if alarm.is_some() => self.on_alarm(),
            }
            self.send_due().await;
        }
        self.say_goodbye(events).await;
        Ok(())
    }

    fn on_alarm(&mut self) {
        if self.phase.deadline_passes(Instant::now()) {
            tracing::warn!("the time to finish is over; what still runs is given back");
            self.ask_all(Wish::Release);
        }
    }

    fn leave(&mut self) {
        tracing::info!("asked to stop: finishing or handing over what runs, then leaving");
        self.phase = Phase::leaving(Instant::now(), self.drain_grace);
        self.ask_all(Wish::HandOver);
    }

    fn leave_now(&mut self) {
        tracing::info!("asked to stop at once: giving back what runs");
        self.phase = Phase::leaving_now(Instant::now());
        self.ask_all(Wish::Release);
    }

    fn ask_all(&self, wish: Wish) {
        for held in self.held.values() {
            if let Held::Running(control) = held {
                control.ask(wish);
            }
        }
    }

    fn on_event(&mut self, event: Event) -> Result<(), AgentError> {
        match event {
            Event::Opened(tx) => {
                let hello = pb::Hello { attempts: self.answered_for(), ..self.greeting.clone() };
                // A new channel has room; one that is closed again is followed by Closed.
                let _ = tx.try_send(WorkerMessage { message: Some(Message::Hello(hello)) });
                self.uplink = Uplink::Greeting(tx);
            }
            Event::Message(message) => self.on_message(*message),
            Event::Closed => self.uplink = Uplink::Down,
            Event::Fatal(error) => {
                self.ask_all(Wish::Discard);
                return Err(error);
            }
        }
        Ok(())
    }

    fn on_message(&mut self, message: server_message::Message) {
        use server_message::Message as From;
        match message {
            From::Welcome(welcome) => self.on_welcome(&welcome),
            From::Assign(assign) => self.on_assign(assign),
            From::Stop(pb::Stop { attempt: Some(attempt), reason }) => self.on_stop(attempt.into(), &reason),
            From::Answer(pb::Answer { attempt: Some(attempt), accepted, reason }) => {
                let attempt = attempt.into();
                if !accepted {
                    tracing::warn!("the server refused the outcome of {attempt}: {reason}");
                }
                if let Some(Held::Spooled { .. }) = self.held.get(&attempt) {
                    self.forget(attempt);
                }
            }
            From::Drain(_) => self.on_drain(),
            From::Stop(_) | From::Answer(_) => tracing::warn!("the server sent a message without its attempt"),
        }
    }

    fn on_welcome(&mut self, welcome: &pb::Welcome) {
        let Uplink::Greeting(tx) = &self.uplink else {
            return tracing::warn!("the server sent a second Welcome");
        };
        self.uplink = Uplink::Up { tx: tx.clone(), draining: false };
        self.identity.worker_id = welcome.worker_id;
        self.greeting.worker_id = welcome.worker_id;
        if self.draining {
            // Its successor starts afresh.
        } else if let Err(error) = self.dir.keep_identity(&self.identity) {
            tracing::warn!("a restart of this worker will not reclaim its finished jobs: {error}");
        }
        tracing::info!("connected as worker {} ({})", welcome.worker_id, self.greeting.name);
        self.beat.every = Duration::from_millis(u64::from(welcome.heartbeat_millis.max(50)));
        self.beat.told.clear();
        for held in self.held.values_mut() {
            if let Held::Spooled { sent, .. } = held {
                *sent = false;
            }
        }
    }

    fn on_assign(&mut self, assign: pb::Assign) {
        let seats = pack::seats(assign.starts.len(), &self.workshop);
        for (start, seat) in assign.starts.into_iter().zip(seats) {
            self.on_start(start, seat);
        }
    }

    fn on_start(&mut self, start: pb::Start, seat: Seat) {
        let Some(attempt) = start.attempt.map(AttemptRef::from) else {
            return tracing::warn!("the server assigned something without its attempt");
        };
        if self.held.contains_key(&attempt) {
            return tracing::warn!("{attempt} was assigned twice");
        }
        let control = Arc::new(Control::new());
        if matches!(self.phase, Phase::Leaving { .. }) || self.held.len() >= self.most_held() {
            control.ask(Wish::Release);
        }
        self.held.insert(attempt, Held::Running(control.clone()));
        let workshop = self.workshop.clone();
        match taskvec_wire::assignment(start) {
            Ok((_, assignment)) => {
                tracing::info!("{attempt} ({}) begins", assignment.work.kind());
                self.tasks.spawn(attempt::run(workshop, attempt, assignment, control, seat));
            }
            Err(error) => {
                self.tasks.spawn(attempt::refuse(workshop, attempt, error.to_string(), control));
            }
        }
    }

    /// A server gives each slot no more attempts than it takes. Some more can be here while stopped or ended ones are being
    /// cleared away; many more are a fault of the server and given back.
    fn most_held(&self) -> usize {
        4 * self.greeting.slots as usize * self.greeting.stack as usize + 16
    }

    fn on_stop(&mut self, attempt: AttemptRef, reason: &str) {
        match self.held.get(&attempt) {
            Some(Held::Running(control)) => {
                tracing::info!("{attempt} is not wanted any more: {reason}");
                control.ask(Wish::Discard);
            }
            Some(Held::Spooled { .. }) => {
                tracing::warn!("the outcome of {attempt} is not wanted any more: {reason}");
                self.forget(attempt);
            }
            None => {}
        }
    }

    fn on_drain(&mut self) {
        if matches!(self.phase, Phase::Working) {
            tracing::info!("the server asked this worker to finish what it has and leave");
            self.phase = Phase::Finishing;
        }
        if let Uplink::Up { draining, .. } = &mut self.uplink {
            *draining = true;
        }
        self.start_draining();
    }

    fn start_draining(&mut self) {
        self.draining = true;
        self.dir.forget_identity();
    }

    fn forget(&mut self, attempt: AttemptRef) {
        self.workshop.spool.remove(attempt);
        self.held.remove(&attempt);
    }

    fn on_ended(&mut self, ended: Result<(AttemptRef, Ended), JoinError>) -> Result<(), AgentError> {
        let (attempt, ended) = ended.map_err(|e| AgentError::Bug(e.to_string()))?;
        let Some(Held::Running(control)) = self.held.get(&attempt) else { return Ok(()) };
        if ended == Ended::Discarded || control.wish() == Wish::Discard {
            self.forget(attempt);
        } else {
            let progress = control.progress();
            self.held.insert(attempt, Held::Spooled { sent: false, progress });
        }
        Ok(())
    }

    /// The attempts whose leases this worker wants to keep, with their progress.
    fn progress(&self) -> Vec<AttemptProgress> {
        let told = self.held.iter().filter_map(|(attempt, held)| match held {
            Held::Running(control) if control.wish() == Wish::Discard => None,
            Held::Running(control) => Some(AttemptProgress::new(*attempt, control.progress())),
            Held::Spooled { progress, .. } => Some(AttemptProgress::new(*attempt, *progress)),
        });
        told.collect()
    }

    fn answered_for(&self) -> Vec<pb::Attempt> {
        self.progress().into_iter().filter_map(|p| p.attempt).collect()
    }

    fn heartbeat(&mut self) {
        let Uplink::Up { tx, .. } = &self.uplink else { return };
        let now = self.progress();
        // Half a tick early rather than half a tick late.
        let due = self.beat.last.elapsed() + PROGRESS / 2 >= self.beat.every;
        if !due && now == self.beat.told {
            return;
        }
        let message = Message::Heartbeat(pb::Heartbeat { attempts: now.clone() });
        // A full queue means that the connection stands still; the next tick tries again.
        if tx.try_send(WorkerMessage { message: Some(message) }).is_ok() {
            self.beat.last = Instant::now();
            self.beat.told = now;
        }
    }

    /// Sends what the server does not know yet, as far as the connection takes it.
    async fn send_due(&mut self) {
        let Uplink::Up { tx, draining } = &mut self.uplink else { return };
        let tx = tx.clone();
        if !*draining && !matches!(self.phase, Phase::Working) {
            let message = Some(Message::Draining(pb::Empty {}));
            *draining = tx.try_send(WorkerMessage { message }).is_ok();
            self.start_draining();
        }
        let unsent: Vec<AttemptRef> =
            self.held.iter().filter(|(_, h)| matches!(h, Held::Spooled { sent: false, .. })).map(|(a, _)| *a).collect();
        for attempt in unsent {
            let Ok(room) = tx.try_reserve() else { return };
            let spool = self.workshop.spool.clone();
            match tokio::task::spawn_blocking(move || spool.get(attempt)).await {
                Ok(Some(outcome)) => {
                    room.send(outcome);
                    if let Some(Held::Spooled { sent, .. }) = self.held.get_mut(&attempt) {
                        *sent = true;
                    }
                }
                // Unreadable: without this worker's heartbeats for it, its lease runs out and the job is done again.
                _ => drop(self.held.remove(&attempt)),
            }
        }
    }

    /// Tells the server that this worker has left, if it can, and forgets who it was, if nothing is left to reclaim.
    async fn say_goodbye(self, mut events: mpsc::Receiver<Event>) {
        let limit = Instant::now() + LAST_WORDS;
        let unconfirmed = self.held.len();
        if unconfirmed == 0 {
            self.dir.forget_identity();
        } else if self.draining {
            tracing::warn!(
                "the server did not confirm {unconfirmed} outcomes; if it missed them, the jobs are done again"
            );
            self.held.keys().for_each(|attempt| self.workshop.spool.remove(*attempt));
        } else {
            tracing::warn!(
                "the server did not confirm {unconfirmed} outcomes; the next worker on this data folder sends them"
            );
        }
        if let Uplink::Up { tx, .. } = self.uplink {
            let leaving = WorkerMessage { message: Some(Message::Leaving(pb::Empty {})) };
            let said = tokio::time::timeout_at(limit, tx.send(leaving)).await;
            drop(tx);
            if matches!(said, Ok(Ok(()))) {
                let closed = async { while events.recv().await.is_some_and(|e| !matches!(e, Event::Closed)) {} };
                let _ = tokio::time::timeout_at(limit, closed).await;
            }
        }
        self.workshop.slots.idle(LAST_WORDS).await;
        tracing::info!("left");
    }
}

async fn sleep_until(alarm: Option<Instant>) {
    match alarm {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

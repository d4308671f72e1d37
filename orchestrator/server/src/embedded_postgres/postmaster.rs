//! The running postmaster: started by us, or found alive from an earlier server of this data folder.

use super::{
    PostgresError,
    cluster::{Cluster, DATABASE, Endpoint, OWNER},
};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use std::{path::Path, process::ExitStatus, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
    process::Child,
    time::{Instant, sleep, timeout},
};

/// Replaying the log after a crash takes as long as it takes; this is for a server that hangs.
const START_LIMIT: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(20);
/// How often one that is not our child is asked whether it lives.
const FOUND_POLL: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) enum Postmaster {
    Started(Child, Pid),
    /// Not our child: watched by asking it.
    Found(Cluster, Pid),
}

/// What a postmaster replies to a client that knocks.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Accepts,
    /// Alive, but starting, recovering or stopping.
    NotYet,
    NoOne,
}

impl Postmaster {
    /// The living postmaster of the cluster, or a new one; either accepts connections.
    pub async fn launch(cluster: &Cluster) -> Result<Self, PostgresError> {
        if let Some(pid) = pid_in(&cluster.folder)
            && knock(cluster).await != Answer::NoOne
        {
            tracing::info!(pid = pid.as_raw_nonzero(), "PostgreSQL is still running");
            let mut found = Self::Found(cluster.clone(), pid);
            found.wait_until_it_accepts(cluster).await?;
            return Ok(found);
        }
        let child = tokio::process::Command::from(cluster.postmaster()?).spawn();
        let child = child.map_err(PostgresError::io("start", cluster.binaries.program("postgres")))?;
        let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let pid =
            pid.ok_or_else(|| PostgresError::DidNotStart { why: "it ended at once".into(), log: cluster.log_tail() })?;
        let mut started = Self::Started(child, pid);
        if let Err(error) = started.wait_until_it_accepts(cluster).await {
            signal_stop(pid);
            return Err(error);
        }
        Ok(started)
    }

    async fn wait_until_it_accepts(&mut self, cluster: &Cluster) -> Result<(), PostgresError> {
        let failed = |why: String| PostgresError::DidNotStart { why, log: cluster.log_tail() };
        let limit = Instant::now() + START_LIMIT;
        while knock(cluster).await != Answer::Accepts {
            if Instant::now() > limit {
                return Err(failed(format!("it does not accept connections after {} s", START_LIMIT.as_secs())));
            }
            tokio::select! {
                ended = self.ended() => return Err(failed(format!("it ended ({ended})"))),
                () = sleep(POLL) => {}
            }
        }
        Ok(())
    }

    pub fn pid(&self) -> Pid {
        match self {
            Self::Started(_, pid) | Self::Found(_, pid) => *pid,
        }
    }

    /// Waits for its end and says how it was. Cancel-safe.
    pub async fn ended(&mut self) -> String {
        match self {
            Self::Started(child, _) => child.wait().await.map_or_else(|e| e.to_string(), |s: ExitStatus| s.to_string()),
            Self::Found(cluster, _) => {
                while knock(cluster).await != Answer::NoOne {
                    sleep(FOUND_POLL).await;
                }
                "it does not answer any more".to_owned()
            }
        }
    }

    /// Fast shutdown: sessions are ended, nothing committed is lost.
    pub async fn stop(&mut self) {
        signal_stop(self.pid());
        self.ended().await;
    }
}

/// Asks for a fast shutdown. False where no such process is left.
pub(super) fn signal_stop(pid: Pid) -> bool {
    kill_process(pid, Signal::INT).is_ok()
}

/// Does a process have this id?
pub(super) fn is_alive(pid: Pid) -> bool {
    test_kill_process(pid).is_ok()
}

/// The process that `postmaster.pid` names: alive, unless it was killed.
pub(super) fn pid_in(folder: &Path) -> Option<Pid> {
    let text = std::fs::read_to_string(folder.join("postmaster.pid")).ok()?;
    Pid::from_raw(text.lines().next()?.trim().parse().ok()?)
}

/// Opens a session as far as the password prompt, as `pg_isready` does.
async fn knock(cluster: &Cluster) -> Answer {
    let talk = async {
        match &cluster.endpoint {
            Endpoint::Socket(run) => {
                ask(UnixStream::connect(run.join(format!(".s.PGSQL.{}", cluster.port))).await?).await
            }
            Endpoint::Loopback => ask(TcpStream::connect(("127.0.0.1", cluster.port)).await?).await,
        }
    };
    match timeout(Duration::from_secs(5), talk).await {
        Ok(Ok(answer)) => answer,
        // Nobody listens there.
        Ok(Err(_)) => Answer::NoOne,
        Err(_) => Answer::NotYet,
    }
}

/// Fails only where no connection was made: whoever accepts one is alive.
async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<Answer> {
    let parameters = format!("user\0{OWNER}\0database\0{DATABASE}\0\0");
    let mut message = u32::try_from(parameters.len() + 8).map_err(std::io::Error::other)?.to_be_bytes().to_vec();
    message.extend([0, 3, 0, 0]); // protocol 3.0
    message.extend(parameters.as_bytes());
    if stream.write_all(&message).await.is_err() {
        return Ok(Answer::NotYet);
    }
    // `R`: asks for a password. `E`: the database system is starting up.
    Ok(match reply(&mut stream).await {
        Ok(b'R') => Answer::Accepts,
        _ => Answer::NotYet,
    })
}

/// The kind of the first message. It is read to its end: PostgreSQL logs a client that leaves in the middle.
async fn reply(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<u8> {
    let kind = stream.read_u8().await?;
    let length = stream.read_u32().await?;
    tokio::io::copy(&mut stream.take(u64::from(length.saturating_sub(4))), &mut tokio::io::sink()).await?;
    Ok(kind)
}

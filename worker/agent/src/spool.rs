//! Outcomes on disk, from the moment an attempt has ended until the server has answered.
//!
//! One file per attempt, holding the message as it goes over the wire. An outcome enters the spool only after every
//! checkpoint it names is stored on the server, so that it can be sent again by a later process.

use crate::{
    data_dir::{Identity, remove_unfinished, write_atomically},
    error::{AgentError, AtPath},
};
use prost::Message;
use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
};
use taskvec_model::id::{AttemptRef, JobId};
use taskvec_wire::pb::WorkerMessage;

#[derive(Clone, Debug)]
pub struct Spool {
    folder: PathBuf,
}

impl Spool {
    /// Opens the spool and lists the outcomes it holds.
    pub fn open(folder: &Path) -> Result<(Self, BTreeSet<AttemptRef>), AgentError> {
        std::fs::create_dir_all(folder).at("cannot create", folder)?;
        remove_unfinished(folder).at("cannot clean", folder)?;
        let mut held = BTreeSet::new();
        for entry in std::fs::read_dir(folder).at("cannot read", folder)? {
            let name = entry.at("cannot read", folder)?.file_name();
            held.extend(name.to_str().and_then(parse_name));
        }
        Ok((Self { folder: folder.to_owned() }, held))
    }

    /// Those of `spooled` that the server still takes from this worker. Outcomes of one that drained belong to nobody: their
    /// jobs have been given to others.
    pub fn reclaimable(&self, identity: &Identity, spooled: BTreeSet<AttemptRef>) -> BTreeSet<AttemptRef> {
        if identity.worker_id != 0 {
            return spooled;
        }
        for attempt in spooled {
            tracing::warn!("the spooled outcome of {attempt} belongs to a worker that is gone; it is dropped");
            self.remove(attempt);
        }
        BTreeSet::new()
    }

    fn path(&self, attempt: AttemptRef) -> PathBuf {
        self.folder.join(format!("job-{}-attempt-{}", attempt.job, attempt.number))
    }

    pub fn put(&self, attempt: AttemptRef, outcome: &WorkerMessage) -> io::Result<()> {
        write_atomically(&self.path(attempt), &outcome.encode_to_vec())
    }

    /// The outcome of `attempt`. One that cannot be read is removed: its job is simply done again.
    pub fn get(&self, attempt: AttemptRef) -> Option<WorkerMessage> {
        let path = self.path(attempt);
        let read = std::fs::read(&path).map_err(|e| e.to_string());
        match read.and_then(|bytes| WorkerMessage::decode(bytes.as_slice()).map_err(|e| e.to_string())) {
            Ok(outcome) if outcome.message.is_some() => Some(outcome),
            Ok(_) => self.discard(attempt, "it is empty"),
            Err(reason) => self.discard(attempt, &reason),
        }
    }

    fn discard(&self, attempt: AttemptRef, reason: &str) -> Option<WorkerMessage> {
        tracing::warn!("the spooled outcome of {attempt} is unreadable and dropped: {reason}");
        self.remove(attempt);
        None
    }

    pub fn remove(&self, attempt: AttemptRef) {
        let path = self.path(attempt);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => tracing::warn!("cannot remove {}: {e}", path.display()),
            _ => {}
        }
    }
}

fn parse_name(name: &str) -> Option<AttemptRef> {
    let (job, number) = name.strip_prefix("job-")?.split_once("-attempt-")?;
    Some(AttemptRef { job: JobId(job.parse().ok()?), number: number.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use taskvec_wire::pb::{Failed, worker_message::Message as Outcome};

    #[test]
    fn outcomes_survive_a_restart_and_damaged_ones_are_dropped() {
        let temp = tempfile::tempdir().unwrap();
        let (spool, held) = Spool::open(temp.path()).unwrap();
        assert!(held.is_empty());
        let attempt = |job| AttemptRef { job: JobId(job), number: 2 };
        let failed = Failed { attempt: Some(attempt(5).into()), reason: "why".into(), ..Default::default() };
        let outcome = WorkerMessage { message: Some(Outcome::Failed(failed)) };
        spool.put(attempt(5), &outcome).unwrap();
        spool.put(attempt(6), &outcome).unwrap();
        std::fs::write(spool.path(attempt(6)), [0xff; 3]).unwrap();
        std::fs::write(temp.path().join("job-9-attempt-1.tmp"), "half").unwrap();

        let (spool, held) = Spool::open(temp.path()).unwrap();
        assert_eq!(held, BTreeSet::from([attempt(5), attempt(6)]));
        assert_eq!(spool.get(attempt(5)), Some(outcome));
        assert_eq!(spool.get(attempt(6)), None);
        spool.remove(attempt(5));
        assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0);
    }
}

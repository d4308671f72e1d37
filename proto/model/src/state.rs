//! States of sweeps, jobs and workers, as they are stored and shown.

use crate::names::names;
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SweepState {
    /// Its jobs are scheduled.
    Active,
    /// Running jobs end; no new ones start.
    Paused,
    /// Every job is done.
    Done,
    /// Every job has ended and at least one failed.
    Failed,
    /// Stopped by the user.
    Cancelled,
}

names!(
    SweepState,
    "sweep state",
    Active = "active",
    Paused = "paused",
    Done = "done",
    Failed = "failed",
    Cancelled = "cancelled"
);

impl SweepState {
    pub fn ended(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Needs jobs that have not ended.
    Waiting,
    /// Could start now (or after its back-off, or after the identical job that is running).
    Ready,
    Running,
    Done,
    /// Every allowed attempt failed.
    Failed,
    /// A job it needs did not succeed.
    Skipped,
    Cancelled,
}

names!(
    JobState,
    "job state",
    Waiting = "waiting",
    Ready = "ready",
    Running = "running",
    Done = "done",
    Failed = "failed",
    Skipped = "skipped",
    Cancelled = "cancelled",
);

impl JobState {
    pub fn ended(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Skipped | Self::Cancelled)
    }
}

/// How an attempt stands or ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttemptState {
    Running,
    Succeeded,
    Failed,
    /// Its lease ran out.
    Expired,
    /// Given back by a worker that was asked to leave.
    Released,
    Cancelled,
}

names!(
    AttemptState,
    "attempt state",
    Running = "running",
    Succeeded = "succeeded",
    Failed = "failed",
    Expired = "expired",
    Released = "released",
    Cancelled = "cancelled",
);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    Connected,
    /// Its connection is gone; its leases run on until they expire.
    Lost,
    /// Finishes what it has and takes nothing new.
    Draining,
    Left,
}

names!(WorkerState, "worker state", Connected = "connected", Lost = "lost", Draining = "draining", Left = "left");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_round_trip_through_their_names() {
        for state in JobState::ALL {
            assert_eq!(state.to_string().parse(), Ok(*state));
        }
        for state in SweepState::ALL {
            assert_eq!(state.to_string().parse(), Ok(*state));
        }
        assert!("runing".parse::<JobState>().is_err());
    }
}

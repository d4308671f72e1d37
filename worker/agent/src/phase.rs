//! Whether a worker works or is on its way out, and until when.

use std::time::Duration;
use tokio::time::Instant;

/// How long a leaving worker waits for the answers to what it gave back.
const ANSWERS: Duration = Duration::from_secs(5);
/// The same when it was told to leave at once.
pub const LAST_WORDS: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Working,
    /// The server asked this worker to finish what it has.
    Finishing,
    /// A signal asked this worker to leave.
    Leaving {
        /// When jobs that are not done are given back; none: they have been.
        deadline: Option<Instant>,
        /// When to go without the server's answers.
        give_up: Instant,
    },
}

impl Phase {
    /// Leaving politely: jobs have `grace` to come to an end.
    pub fn leaving(now: Instant, grace: Duration) -> Self {
        Self::Leaving { deadline: Some(now + grace), give_up: now + grace + ANSWERS }
    }

    /// Leaving at once: jobs have been given back.
    pub fn leaving_now(now: Instant) -> Self {
        Self::Leaving { deadline: None, give_up: now + LAST_WORDS }
    }

    /// Whether the worker can go, when it answers for nothing more (`idle`) or still for something.
    pub fn is_over(&self, idle: bool, now: Instant) -> bool {
        match self {
            Self::Working => false,
            Self::Finishing => idle,
            Self::Leaving { give_up, .. } => idle || now >= *give_up,
        }
    }

    /// When something changes by itself.
    pub fn alarm(&self) -> Option<Instant> {
        match self {
            Self::Leaving { deadline, give_up } => Some(deadline.unwrap_or(*give_up)),
            Self::Working | Self::Finishing => None,
        }
    }

    /// True once, when the deadline has passed.
    pub fn deadline_passes(&mut self, now: Instant) -> bool {
        match self {
            Self::Leaving { deadline, .. } => deadline.take_if(|at| now >= *at).is_some(),
            Self::Working | Self::Finishing => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaving_waits_for_jobs_then_for_answers_then_goes() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut phase = Phase::leaving(start, Duration::from_secs(20));
        assert!(phase.is_over(true, start) && !phase.is_over(false, at(20)));
        assert_eq!(phase.alarm(), Some(at(20)));
        assert!(!phase.deadline_passes(at(19)));
        assert!(phase.deadline_passes(at(20)) && !phase.deadline_passes(at(21)));
        assert_eq!(phase.alarm(), Some(at(25)));
        assert!(phase.is_over(false, at(25)));
        assert!(!Phase::Working.is_over(true, at(99)) && !Phase::Finishing.is_over(false, at(99)));
    }
}

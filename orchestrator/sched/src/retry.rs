//! Whether a failed attempt is followed by another, and when.

use crate::state::{Config, Phase};
use taskvec_model::{
    id::{AttemptRef, WorkerId},
    job::Retry,
    schedule::Millis,
};

/// What a failure leads to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Sequel {
    pub phase: Phase,
    pub failures: u32,
    /// For the user: what happened, on which attempt, and what follows.
    pub reason: String,
}

/// `what` continues "attempt 2 on worker 7 …"; `failures` counts those before this one.
pub(crate) fn after_failure(
    config: &Config,
    now: Millis,
    (attempt, worker): (AttemptRef, Option<WorkerId>),
    what: &str,
    retry: Retry,
    failures: u32,
) -> Sequel {
    let failures = failures.saturating_add(1);
    let place = worker.map(|worker| format!(" on worker {worker}")).unwrap_or_default();
    let happened = format!("attempt {}{place} {what}", attempt.number);
    if retry == Retry::Never {
        let reason = format!("{happened}; not tried again, since the same would happen");
        return Sequel { phase: Phase::Failed { reason: Some(reason.clone()) }, failures, reason };
    }
    if failures >= config.retry_limit {
        let tries = if failures == 1 { "try" } else { "tries" };
        let reason = format!("{happened}; given up after {failures} failed {tries}");
        return Sequel { phase: Phase::Failed { reason: Some(reason.clone()) }, failures, reason };
    }
    let pause = backoff(config, failures);
    let reason = format!("{happened}; try {} of {} follows in {}", failures + 1, config.retry_limit, Seconds(pause));
    Sequel { phase: Phase::BackOff { until: now.saturating_add(pause), reason: reason.clone() }, failures, reason }
}

/// `base · 2^(failures - 1)`, at most the maximum.
fn backoff(config: &Config, failures: u32) -> Millis {
    let factor = 1u64.checked_shl(failures.saturating_sub(1)).unwrap_or(u64::MAX);
    config.backoff_base.saturating_mul(factor).min(config.backoff_max)
}

/// Milliseconds, shown as seconds.
pub(crate) struct Seconds(pub Millis);

impl std::fmt::Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            whole if whole % 1000 == 0 => write!(f, "{} s", whole / 1000),
            millis => write!(f, "{:.1} s", millis as f64 / 1000.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use taskvec_model::id::JobId;

    fn fail(retry: Retry, failures: u32) -> Sequel {
        let config = Config { lease: 20_000, retry_limit: 3, backoff_base: 1_500, backoff_max: 2_500 };
        let who = (AttemptRef { job: JobId(5), number: 4 }, Some(WorkerId(7)));
        after_failure(&config, 10_000, who, "failed: out of memory", retry, failures)
    }

    #[test]
    fn tries_end_at_the_limit_and_pauses_double_up_to_the_maximum() {
        let first = "attempt 4 on worker 7 failed: out of memory; try 2 of 3 follows in 1.5 s".to_owned();
        assert_eq!(
            fail(Retry::Allowed, 0),
            Sequel { phase: Phase::BackOff { until: 11_500, reason: first.clone() }, failures: 1, reason: first }
        );
        let second = fail(Retry::Allowed, 1);
        assert_eq!(second.phase.deadline(), Some(12_500));
        let last = "attempt 4 on worker 7 failed: out of memory; given up after 3 failed tries".to_owned();
        assert_eq!(
            fail(Retry::Allowed, 2),
            Sequel { phase: Phase::Failed { reason: Some(last.clone()) }, failures: 3, reason: last }
        );
    }

    #[test]
    fn what_would_happen_again_is_not_tried_again() {
        let reason =
            "attempt 4 on worker 7 failed: out of memory; not tried again, since the same would happen".to_owned();
        assert_eq!(
            fail(Retry::Never, 0),
            Sequel { phase: Phase::Failed { reason: Some(reason.clone()) }, failures: 1, reason }
        );
    }

    #[test]
    fn enormous_counts_do_not_overflow() {
        let config = Config { lease: 1, retry_limit: u32::MAX, backoff_base: u64::MAX / 2, backoff_max: u64::MAX };
        for failures in [1, 2, 63, 64, 65, u32::MAX] {
            assert!(backoff(&config, failures) >= u64::MAX / 2, "{failures} failures");
        }
        assert_eq!(backoff(&Config { backoff_base: 0, ..config }, 40), 0);
    }
}

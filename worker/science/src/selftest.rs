//! A job that computes nothing, in a chosen manner: it shows how an installation schedules, retries and reports.

use crate::{Control, ScienceError, Sink};
use std::{
    thread::sleep,
    time::{Duration, Instant},
};
use taskvec_model::{job::Progress, spec::Behaviour};

/// How long it sleeps between looks at the sink.
const SLICE: Duration = Duration::from_millis(20);

/// Takes `millis`, then ends as `behaviour` says.
///
/// # Panics
/// With [`Behaviour::Panic`]: that is what it is for.
pub(crate) fn run(index: u32, behaviour: Behaviour, millis: u64, sink: &mut dyn Sink) -> Result<(), ScienceError> {
    let start = Instant::now();
    let whole = Duration::from_millis(millis);
    loop {
        let spent = start.elapsed().min(whole);
        let progress = Progress { done: spent.as_millis() as u64, total: millis, per_second: 1000.0, loss: None };
        if sink.progress(progress) == Control::Stop {
            return Err(ScienceError::Stopped);
        }
        if spent == whole {
            break;
        }
        sleep((whole - spent).min(SLICE));
    }
    match behaviour {
        Behaviour::Succeed => Ok(()),
        Behaviour::Fail => Err(ScienceError::Selftest(index)),
        Behaviour::Panic => panic!("selftest job {index} panicked, as its sweep file asks (behaviour: panic)"),
    }
}

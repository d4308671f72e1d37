//! The strings by which a running attempt is held: what it should do, and how far it is.

use crate::lock;
use std::{
    collections::VecDeque,
    sync::Mutex,
    time::{Duration, Instant},
};
use taskvec_model::job::Progress;
use tokio::sync::watch;

/// What is wanted of an attempt. It only gets more urgent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wish {
    Run,
    /// The worker wants to leave: training stops at its next step and is handed over, other jobs finish.
    HandOver,
    /// The worker leaves now: give the attempt back as it is.
    Release,
    /// The attempt is not wanted any more: whatever it does is thrown away.
    Discard,
}

#[derive(Debug)]
pub struct Control {
    wish: watch::Sender<Wish>,
    progress: Mutex<Progress>,
}

impl Control {
    pub fn new() -> Self {
        Self { wish: watch::Sender::new(Wish::Run), progress: Mutex::default() }
    }

    pub fn wish(&self) -> Wish {
        *self.wish.borrow()
    }

    pub fn ask(&self, wish: Wish) {
        self.wish.send_if_modified(|now| {
            let more = wish > *now;
            *now = wish.max(*now);
            more
        });
    }

    /// Waits until the wish is at least this urgent, and says what it is.
    pub async fn until(&self, at_least: Wish) -> Wish {
        let mut watched = self.wish.subscribe();
        match watched.wait_for(|wish| *wish >= at_least).await {
            Ok(wish) => *wish,
            // Cannot be: the sender is in `self`.
            Err(_) => Wish::Discard,
        }
    }

    pub fn progress(&self) -> Progress {
        *lock(&self.progress)
    }

    pub fn set_progress(&self, progress: Progress) {
        *lock(&self.progress) = progress;
    }
}

/// Steps per second over the last seconds.
#[derive(Debug, Default)]
pub struct Rate {
    samples: VecDeque<(Instant, u64)>,
}

impl Rate {
    const WINDOW: Duration = Duration::from_secs(5);
    const SPACING: Duration = Duration::from_millis(100);

    /// The rate, after `done` steps were done at `now`. 0 until two moments are known.
    pub fn update(&mut self, now: Instant, done: u64) -> f64 {
        while self.samples.len() > 1 && self.samples.front().is_some_and(|(at, _)| now - *at > Self::WINDOW) {
            self.samples.pop_front();
        }
        let rate = self.samples.front().map_or(0.0, |(at, before)| {
            let seconds = (now - *at).as_secs_f64();
            if seconds > 0.0 { done.saturating_sub(*before) as f64 / seconds } else { 0.0 }
        });
        if self.samples.back().is_none_or(|(at, _)| now - *at >= Self::SPACING) {
            self.samples.push_back((now, done));
        }
        rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_wish_only_gets_more_urgent() {
        let control = Control::new();
        control.ask(Wish::Release);
        control.ask(Wish::HandOver);
        assert_eq!(control.until(Wish::HandOver).await, Wish::Release);
        control.ask(Wish::Discard);
        assert_eq!(control.wish(), Wish::Discard);
    }

    #[test]
    fn the_rate_follows_a_change_of_pace_in_constant_memory() {
        let (mut rate, start) = (Rate::default(), Instant::now());
        let at = |millis| start + Duration::from_millis(millis);
        assert_eq!(rate.update(at(0), 0), 0.0);
        for i in 1..=1000 {
            let now = rate.update(at(10 * i), i);
            assert!((now - 100.0).abs() < 1e-6, "{now}");
        }
        for i in 1..=100 {
            rate.update(at(10_000 + 100 * i), 1000 + i);
        }
        let now = rate.update(at(20_100), 1101);
        assert!((now - 10.0).abs() < 0.5, "{now}");
        assert!(rate.samples.len() < 60);
    }
}

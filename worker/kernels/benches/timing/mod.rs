//! Time on the clock and of the processor.
#![allow(dead_code, reason = "each bench uses its part")]

use candle_core::Result;
use std::time::{Duration, Instant};

/// The fastest of the calls that fit into a quarter of a second.
pub fn fastest(call: impl FnMut() -> Result<()>) -> Result<Duration> {
    Ok(timed(call)?.0)
}

/// The same, and the mean of the processor time.
pub fn timed(mut call: impl FnMut() -> Result<()>) -> Result<(Duration, Option<Duration>)> {
    call()?;
    let (begin, cpu, mut best, mut calls) = (Instant::now(), cpu_time(), Duration::MAX, 0);
    while begin.elapsed() < Duration::from_millis(250) {
        let start = Instant::now();
        call()?;
        best = best.min(start.elapsed());
        calls += 1;
    }
    Ok((best, cpu.zip(cpu_time()).map(|(before, after)| (after - before) / calls)))
}

/// Processor time of all threads, where the system tells: what a step costs even while others use the machine.
pub fn cpu_time() -> Option<Duration> {
    let nanoseconds = |task: std::io::Result<std::fs::DirEntry>| {
        let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse().ok().map(Duration::from_nanos)
    };
    std::fs::read_dir("/proc/self/task").ok()?.map(nanoseconds).sum()
}

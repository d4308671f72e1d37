//! What an attempt did, for `job logs`: bounded, whatever the attempt does.

use crate::lock;
use std::{collections::VecDeque, sync::Mutex, time::Instant};

/// How much of the beginning, and of the end, is kept.
const HEAD_BYTES: usize = 16 << 10;
const TAIL_BYTES: usize = 46 << 10;
/// A single entry is cut here; a backtrace fits.
const ENTRY_BYTES: usize = 16 << 10;

/// Lines with the seconds since the attempt came to this worker. At most 64 KiB; the middle is left out first.
#[derive(Debug)]
pub struct AttemptLog {
    since: Instant,
    text: Mutex<Text>,
}

#[derive(Debug, Default)]
struct Text {
    head: String,
    tail: VecDeque<String>,
    tail_bytes: usize,
    left_out: usize,
}

impl AttemptLog {
    pub fn new(since: Instant) -> Self {
        Self { since, text: Mutex::default() }
    }

    pub fn elapsed(&self) -> f64 {
        self.since.elapsed().as_secs_f64()
    }

    pub fn add(&self, entry: &str) {
        let end = entry.floor_char_boundary(ENTRY_BYTES);
        lock(&self.text).add(format!("{:10.3} s  {}\n", self.elapsed(), &entry[..end]));
    }

    pub fn text(&self) -> String {
        let text = lock(&self.text);
        let mut out = text.head.clone();
        if text.left_out > 0 {
            out.push_str(&format!("… {} entries left out …\n", text.left_out));
        }
        out.extend(text.tail.iter().map(String::as_str));
        out
    }
}

impl Text {
    fn add(&mut self, line: String) {
        if self.tail.is_empty() && self.head.len() + line.len() <= HEAD_BYTES {
            self.head.push_str(&line);
            return;
        }
        self.tail_bytes += line.len();
        self.tail.push_back(line);
        while self.tail_bytes > TAIL_BYTES {
            let Some(oldest) = self.tail.pop_front() else { return };
            self.tail_bytes -= oldest.len();
            self.left_out += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_log_keeps_its_beginning_and_its_end() {
        let log = AttemptLog::new(Instant::now());
        for i in 0..5000 {
            log.add(&format!("entry {i} of many"));
        }
        log.add(&"ü".repeat(100_000));
        log.add("the end");
        let text = log.text();
        assert!(text.len() <= 64 << 10, "{}", text.len());
        assert!(text.contains("entry 0 of") && text.ends_with("the end\n") && text.contains("entries left out"));
    }
}

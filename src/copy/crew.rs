//! How many workers a copy has: as many as are of use. A worker brings a session
//! to every shard and costs something there too; so one more starts only while
//! this machine has a processor to spare, and no further one where the last one did
//! not make the copy faster.
use std::time::{Duration, Instant};

/// How long the processors are watched before one more worker starts.
const WINDOW: Duration = Duration::from_millis(300);
/// One more worker starts where so many processors were idle, on average.
const SPARE: f64 = 0.5;
/// One more worker was of use where the copy became faster by this factor.
const FASTER: f64 = 1.1;
/// How long a copy stays as it is after a worker that was of no use.
const CONTENT: Duration = Duration::from_secs(30);
/// What Linux knows of its processors, proc(5).
const STATISTICS: &str = "/proc/stat";

/// How many workers there may be, up to the number that the user allows.
pub(super) struct Crew {
    size: usize,
    window: Option<Window>,
    /// Bytes a second before the last worker came.
    before: Option<f64>,
    /// Nothing changes until then.
    content_until: Option<Instant>,
}

/// What was seen when a window began.
#[derive(Debug, Clone, Copy)]
struct Window {
    at: Instant,
    times: Times,
    sent: u64,
}

/// Ticks of all processors since the machine was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Times {
    idle: u64,
    all: u64,
}

impl Crew {
    /// One worker for each processor at first; no bound where the system doesn't
    /// tell how busy it is.
    pub(super) fn new() -> Self {
        let size = Times::now().map_or(usize::MAX, |_| processors());
        Self { size, window: None, before: None, content_until: None }
    }

    /// How many workers there may be now.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Looks how busy the machine is while `workers` copy, none of them just
    /// starting, and have sent so many bytes; true if there may be one more from now
    /// on.
    pub(super) fn grow(&mut self, workers: usize, settled: bool, sent: u64) -> bool {
        if !settled || workers < self.size {
            self.window = None;
            return false;
        }
        let Some(window) = self.window else {
            self.window = Times::now().map(|times| Window { at: Instant::now(), times, sent });
            return false;
        };
        let elapsed = window.at.elapsed();
        if elapsed < WINDOW {
            return false;
        }
        self.window = None;
        let idle = Times::now().map_or(0.0, |now| now.idle_since(window.times));
        let rate = sent.saturating_sub(window.sent) as f64 / elapsed.as_secs_f64();
        self.judge(idle * processors() as f64, rate)
    }

    /// Whether one more is wanted, where so many processors were idle at that rate.
    fn judge(&mut self, idle: f64, rate: f64) -> bool {
        if self.content_until.is_some_and(|until| Instant::now() < until) {
            return false;
        }
        self.content_until = None;
        if self.before.take().is_some_and(|before| rate < before * FASTER) {
            self.content_until = Some(Instant::now() + CONTENT);
            return false;
        }
        let grows = idle >= SPARE;
        if grows {
            self.size += 1;
            self.before = Some(rate);
        }
        grows
    }
}

impl Times {
    fn now() -> Option<Self> {
        Self::parse(&std::fs::read_to_string(STATISTICS).ok()?)
    }

    /// The first line: user, nice, system, idle, iowait, irq, softirq, steal.
    fn parse(text: &str) -> Option<Self> {
        let ticks: Vec<u64> = text
            .lines()
            .next()?
            .strip_prefix("cpu ")?
            .split_ascii_whitespace()
            .take(8)
            .map_while(|n| n.parse().ok())
            .collect();
        let idle = ticks.get(3)? + ticks.get(4)?;
        Some(Self { idle, all: ticks.iter().sum() })
    }

    /// The share of the time that processors were idle, 0 to 1.
    fn idle_since(self, before: Self) -> f64 {
        let all = self.all.saturating_sub(before.all);
        self.idle.saturating_sub(before.idle) as f64 / all.max(1) as f64
    }
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn crew() -> Crew {
        Crew { size: 1, window: None, before: None, content_until: None }
    }

    #[test]
    fn waiting_for_a_disk_counts_as_idle() {
        let before = Times::parse("cpu  100 0 50 800 40 5 5 0 0 0\ncpu0 1 1").unwrap();
        let after = Times::parse("cpu  150 0 50 830 60 5 5 0 0 0").unwrap();
        assert_eq!(before, Times { idle: 840, all: 1000 });
        assert!((after.idle_since(before) - 0.5).abs() < 1e-9);
        assert_eq!(Times::parse("intr 1 2 3"), None);
        assert_eq!(Times::parse(""), None);
    }

    #[test]
    fn a_crew_does_not_grow_while_workers_start() {
        let mut crew = crew();
        assert!(!crew.grow(1, false, 0));
        assert!(crew.window.is_none());
        assert!(!crew.grow(0, true, 0));
        assert!(crew.window.is_none());
        assert!(!crew.grow(1, true, 0));
        assert!(crew.window.is_some());
    }

    #[test]
    fn a_crew_grows_as_long_as_that_helps() {
        let mut crew = crew();
        assert!(!crew.judge(0.2, 100.0));
        assert!(crew.judge(1.0, 100.0));
        assert!(crew.judge(1.0, 150.0));
        assert!(!crew.judge(1.0, 151.0));
        assert!(!crew.judge(2.0, 200.0));
        assert_eq!(crew.size, 3);
    }
}

//! How many workers a copy has: as many as are of use. A worker brings a session
//! to every shard and costs something there too; so one more starts only while
//! this machine has a processor to spare.
use std::time::{Duration, Instant};

/// How long the processors are watched before one more worker starts.
const WINDOW: Duration = Duration::from_millis(200);
/// One more worker starts where so many processors were idle, on average.
const SPARE: f64 = 0.5;
/// What Linux knows of its processors, proc(5).
const STATISTICS: &str = "/proc/stat";

/// How many workers there may be, up to the number that the user allows.
pub(super) struct Crew {
    size: usize,
    since: Option<(Instant, Times)>,
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
        Self { size, since: None }
    }

    /// How many workers there may be now.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Looks how busy the machine is while `workers` copy, none of them just
    /// starting; true if there may be one more from now on.
    pub(super) fn grow(&mut self, workers: usize, settled: bool) -> bool {
        if !settled || workers < self.size {
            self.since = None;
            return false;
        }
        let Some((at, before)) = self.since else {
            self.since = Times::now().map(|now| (Instant::now(), now));
            return false;
        };
        if at.elapsed() < WINDOW {
            return false;
        }
        self.since = None;
        let idle = Times::now().map_or(0.0, |now| now.idle_since(before));
        let grows = idle * processors() as f64 >= SPARE;
        self.size += usize::from(grows);
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
        let mut crew = Crew { size: 1, since: None };
        assert!(!crew.grow(1, false));
        assert!(crew.since.is_none());
        assert!(!crew.grow(0, true));
        assert!(crew.since.is_none());
        assert!(!crew.grow(1, true));
        assert!(crew.since.is_some());
    }
}

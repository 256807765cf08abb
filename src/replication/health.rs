//! Whether a live flow is served, from looks at it time after time. One look doesn't tell:
//! an apply worker that fails, or that can't connect, is started again every few seconds
//! and is seen running for a moment each time.
use std::time::{Duration, Instant};

use crate::state::flow::Observation;

/// How long a flow has to be without a worker to be ill, and with one to be well again.
const PATIENCE: Duration = Duration::from_secs(15);
/// What the time between two looks counts at most: nobody looks during a cutover.
const LONGEST: Duration = Duration::from_secs(5);

/// What is wrong with the apply worker of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ailment {
    /// It ends with errors while it applies.
    Fails,
    /// None serves the flow: it can't be started, or can't connect.
    Absent,
}

/// What is remembered of a live flow.
pub struct Health {
    worker: Option<i32>,
    errors: Option<i64>,
    confirmed: Option<String>,
    /// Since when one worker has served it, without errors.
    steady: Option<Instant>,
    unserved: Duration,
    looked: Instant,
    ailment: Option<Ailment>,
}

impl Health {
    /// Of a flow that nothing is known of.
    pub fn new(now: Instant) -> Self {
        Self {
            worker: None,
            errors: None,
            confirmed: None,
            steady: None,
            unserved: Duration::ZERO,
            looked: now,
            ailment: None,
        }
    }

    /// What is wrong with it, after one more look.
    pub fn look(&mut self, seen: &Observation, now: Instant) -> Option<Ailment> {
        let has_failed = matches!((self.errors, seen.apply_errors), (Some(b), Some(n)) if n > b);
        let has_moved = self.confirmed.is_some() && self.confirmed != seen.confirmed_lsn;
        let is_same = seen.active && seen.worker.is_some() && seen.worker == self.worker;
        self.steady = match is_same && !has_failed {
            true => self.steady.or(Some(now)),
            false => None,
        };
        self.unserved = match self.steady {
            None if !has_failed => self.unserved + (now - self.looked).min(LONGEST),
            _ => Duration::ZERO,
        };
        let is_well = has_moved || self.steady.is_some_and(|since| now - since >= PATIENCE);
        if has_failed {
            self.ailment = Some(Ailment::Fails);
        } else if is_well {
            self.ailment = None;
            self.unserved = Duration::ZERO;
        } else if self.unserved >= PATIENCE {
            self.ailment = Some(Ailment::Absent);
        }
        self.worker = seen.worker;
        self.errors = seen.apply_errors;
        self.confirmed = seen.confirmed_lsn.clone();
        self.looked = now;
        self.ailment
    }

    /// What was wrong with it at the last look.
    pub fn ailment(&self) -> Option<Ailment> {
        self.ailment
    }

    /// One of its servers could not be looked at: its worker gets time again when that is back.
    pub fn unseen(&mut self, now: Instant) {
        self.steady = None;
        self.unserved = Duration::ZERO;
        self.looked = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A flow and a clock that goes on by a second with each look.
    struct Watched {
        health: Health,
        now: Instant,
        seen: Observation,
    }

    impl Watched {
        fn new() -> Self {
            let now = Instant::now();
            let seen = Observation {
                active: true,
                confirmed_lsn: Some("0/1".to_owned()),
                worker: Some(1),
                apply_errors: Some(7),
                ..Observation::default()
            };
            let mut watched = Self { health: Health::new(now), now, seen };
            assert_eq!(watched.seconds(3), None);
            watched
        }

        fn seconds(&mut self, count: u32) -> Option<Ailment> {
            let mut last = None;
            for _ in 0..count {
                self.now += Duration::from_secs(1);
                last = self.health.look(&self.seen, self.now);
            }
            last
        }

        fn serve(&mut self, worker: Option<i32>) {
            (self.seen.worker, self.seen.active) = (worker, worker.is_some());
        }
    }

    #[test]
    fn an_idle_flow_with_old_errors_is_well() {
        assert_eq!(Watched::new().seconds(60), None);
    }

    #[test]
    fn a_worker_that_does_not_come_back_is_told_of_though_it_is_seen_now_and_then() {
        let mut flow = Watched::new();
        for attempt in 2..5 {
            flow.serve(None);
            assert_eq!(flow.seconds(4), None);
            flow.serve(Some(attempt));
            flow.seconds(1);
        }
        flow.serve(None);
        assert_eq!(flow.seconds(1), Some(Ailment::Absent));
        flow.serve(Some(9));
        assert_eq!(flow.seconds(15), Some(Ailment::Absent));
        assert_eq!(flow.seconds(2), None);
    }

    #[test]
    fn a_worker_that_hangs_while_it_connects_serves_nothing() {
        let mut flow = Watched::new();
        flow.seen.active = false;
        assert_eq!(flow.seconds(20), Some(Ailment::Absent));
    }

    #[test]
    fn errors_count_at_once_until_changes_are_confirmed() {
        let mut flow = Watched::new();
        flow.seen.apply_errors = Some(8);
        assert_eq!(flow.seconds(1), Some(Ailment::Fails));
        flow.serve(Some(2));
        assert_eq!(flow.seconds(2), Some(Ailment::Fails));
        flow.seen.confirmed_lsn = Some("0/2".to_owned());
        assert_eq!(flow.seconds(1), None);
    }

    #[test]
    fn a_pause_between_looks_is_no_absence() {
        let mut flow = Watched::new();
        flow.now += Duration::from_secs(60);
        flow.serve(Some(2));
        assert_eq!(flow.seconds(5), None);
        flow.serve(None);
        flow.seconds(10);
        flow.health.unseen(flow.now);
        assert_eq!(flow.seconds(10), None);
    }
}

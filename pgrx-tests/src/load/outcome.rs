//! What became of the clients' work.

use std::time::{Duration, Instant};

use super::flag::{Active, Switch};
use super::model::State;
use crate::placement::Placement;

/// Numbers of one client, or of several together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Transactions whose COMMIT was acknowledged.
    pub acknowledged: u64,
    /// Of these, those that ran on the shards.
    pub on_shards: u64,
    /// Refused by the fence and run again on the new cluster.
    pub redirected: u64,
    /// Refused by the fence for clients that don't follow the flag.
    pub refused: u64,
    /// Lost with their connection before COMMIT was sent.
    pub broken: u64,
    /// Connection lost with COMMIT under way; looked up afterwards.
    pub in_doubt: u64,
    /// Of these, those that turned out committed.
    pub in_doubt_committed: u64,
}

/// What one client did.
#[derive(Debug, Clone)]
pub struct ClientOutcome {
    /// Its number; also the owner of its rows.
    pub client: u32,
    /// Whether it follows the flag.
    pub follows: bool,
    /// Its rows after all acknowledged transactions.
    pub state: State,
    /// When each acknowledgement came.
    pub acknowledged_at: Vec<Instant>,
    /// Statements that failed for another reason than the fence or a lost connection.
    pub failed: Vec<String>,
    /// Numbers.
    pub counts: Counts,
}

/// What all clients did.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// One for each client.
    pub clients: Vec<ClientOutcome>,
    /// Switches seen by the poller.
    pub switches: Vec<Switch>,
    /// Who was active when the clients ended.
    pub active: Active,
    /// How rows are placed on the source's shards, and on the shards.
    pub placements: [Placement; 2],
}

/// The pause around one switch, as clients saw it.
#[derive(Debug, Clone)]
pub struct Pause {
    /// The switch.
    pub switch: Switch,
    /// Longest gap between two acknowledged writes that any one client saw.
    pub longest: Duration,
    /// The gap that the switch itself lies in, of each client.
    pub across: Vec<Duration>,
}

/// How far from a switch a gap still counts as its pause.
const AROUND: Duration = Duration::from_secs(2);

impl Outcome {
    /// How rows are placed on the active cluster.
    pub fn placement(&self) -> &Placement {
        let [source, shards] = &self.placements;
        match self.active {
            Active::Source => source,
            Active::Shards => shards,
        }
    }

    /// Sums over all clients.
    pub fn counts(&self) -> Counts {
        let mut sum = Counts::default();
        for client in &self.clients {
            let one = &client.counts;
            sum.acknowledged += one.acknowledged;
            sum.on_shards += one.on_shards;
            sum.redirected += one.redirected;
            sum.refused += one.refused;
            sum.broken += one.broken;
            sum.in_doubt += one.in_doubt;
            sum.in_doubt_committed += one.in_doubt_committed;
        }
        sum
    }

    /// Failed statements of all clients.
    pub fn failed(&self) -> Vec<&str> {
        self.clients.iter().flat_map(|client| &client.failed).map(String::as_str).collect()
    }

    /// The pause around each switch.
    pub fn pauses(&self) -> Vec<Pause> {
        let at: Vec<Instant> = self.switches.iter().map(|switch| switch.at).collect();
        self.switches
            .iter()
            .enumerate()
            .map(|(number, switch)| {
                // Neighbouring switches share the time between them.
                let reach = |other: Option<&Instant>| {
                    other.map_or(AROUND, |other| {
                        let between = match *other > switch.at {
                            true => *other - switch.at,
                            false => switch.at - *other,
                        };
                        AROUND.min(between / 2)
                    })
                };
                let before = reach(number.checked_sub(1).and_then(|n| at.get(n)));
                let after = reach(at.get(number + 1));
                let followers = || self.clients.iter().filter(|client| client.follows);
                let longest = followers()
                    .filter_map(|client| {
                        longest_gap(&client.acknowledged_at, switch.at, before, after)
                    })
                    .max()
                    .unwrap_or_default();
                let across = followers()
                    .filter_map(|c| {
                        longest_gap(&c.acknowledged_at, switch.at, Duration::ZERO, Duration::ZERO)
                    })
                    .collect();
                Pause { switch: *switch, longest, across }
            })
            .collect()
    }

    /// The longest gap of each client that no switch was near to: what the clients'
    /// own pauses and the machine make of it.
    pub fn gaps_elsewhere(&self) -> Vec<Duration> {
        const NEAR: Duration = Duration::from_millis(500);
        let near = |from: Instant, to: Instant| {
            self.switches.iter().any(|s| s.at + NEAR >= from && s.at <= to + NEAR)
        };
        let longest = |client: &ClientOutcome| {
            let pairs = client.acknowledged_at.iter().zip(client.acknowledged_at.iter().skip(1));
            pairs.filter(|(from, to)| !near(**from, **to)).map(|(from, to)| *to - *from).max()
        };
        self.clients.iter().filter(|client| client.follows).filter_map(longest).collect()
    }

    /// Median and longest of the pauses; none where there was no switch.
    pub fn pause_summary(&self) -> Option<(Duration, Duration)> {
        let mut all: Vec<Duration> = self.pauses().iter().map(|pause| pause.longest).collect();
        all.sort();
        Some((*all.get(all.len() / 2)?, *all.last()?))
    }
}

fn longest_gap(
    acknowledged: &[Instant],
    switch: Instant,
    before: Duration,
    after: Duration,
) -> Option<Duration> {
    acknowledged
        .windows(2)
        .filter_map(|pair| match pair {
            [from, to] if *to + before >= switch && *from <= switch + after => Some(*to - *from),
            _ => None,
        })
        .max()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(acknowledged_ms: &[u64], switches_ms: &[u64]) -> Outcome {
        let begin = Instant::now();
        let at = |ms: &u64| begin + Duration::from_millis(*ms);
        Outcome {
            placements: Default::default(),
            clients: vec![ClientOutcome {
                client: 1,
                follows: true,
                state: State::default(),
                acknowledged_at: acknowledged_ms.iter().map(at).collect(),
                failed: Vec::new(),
                counts: Counts::default(),
            }],
            switches: switches_ms
                .iter()
                .map(|ms| Switch { at: at(ms), epoch: 1, to: Active::Shards })
                .collect(),
            active: Active::Shards,
        }
    }

    #[test]
    fn a_pause_is_the_longest_gap_around_its_switch() {
        let outcome = outcome(&[0, 900, 10_000, 10_150, 10_160, 20_000, 29_000], &[10_140]);
        let (median, longest) = outcome.pause_summary().unwrap_or_default();
        // 9100 ms before and 9840 ms after reach into the two seconds around it.
        assert_eq!(median, longest);
        assert_eq!(longest, Duration::from_millis(9_840));
    }

    #[test]
    fn gaps_between_two_switches_are_shared_out() {
        let outcome = outcome(&[0, 10, 110, 120, 130, 1_000, 1_300, 1_310], &[100, 1_200]);
        let pauses: Vec<_> = outcome.pauses().iter().map(|p| p.longest.as_millis()).collect();
        assert_eq!(pauses, [870, 870]);
    }
}

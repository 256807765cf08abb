//! Checks of what each server has left: slots, walsenders, workers, connections.
//! Shards that are databases of one server share them.
use std::collections::BTreeMap;

use crate::cluster::staying::Staying;
use crate::cluster::{ShardNo, Side};
use crate::error::Kind;
use crate::preflight::facts::{Facts, Server, ServerFacts};
use crate::preflight::finding::Finding;
use crate::preflight::{staying, Verb};
use crate::{copy, gucs};

/// Sessions of ours on a server apart from copy and schema: steering, fence,
/// snapshot, monitor.
const SESSIONS: i64 = 6;

/// A server with all of its databases that take part.
struct Instance<'a> {
    name: String,
    facts: &'a ServerFacts,
    /// Databases that are shards of the source, of the destination.
    sources: i64,
    destinations: i64,
    /// Flows that begin there on the way to the destination, for one wave, and end there on
    /// the way back.
    out: i64,
    /// Flows that end there on the way to the destination, and begin there on the way back.
    back: i64,
}

fn instances<'a>(facts: &'a Facts<'_>) -> Vec<Instance<'a>> {
    let staying = staying::found(facts);
    let mut by_system: BTreeMap<&str, Vec<(&Server<'_>, &ServerFacts)>> = BTreeMap::new();
    for (server, known) in facts.known() {
        by_system.entry(&known.system).or_default().push((server, known));
    }
    by_system
        .into_values()
        .filter_map(|members| {
            let (first, known) = members.first()?;
            let of = |side| members.iter().filter(|(s, _)| s.side == side).count() as i64;
            let nodes = || {
                let own = members.iter().filter(|(s, _)| s.side == Side::Source);
                own.map(|(s, _)| ShardNo(s.endpoint.shard))
            };
            let (sources, destinations) = (of(Side::Source), of(Side::Destination));
            let come: i64 = nodes().map(|node| flows_to(facts, &staying, node)).sum();
            Some(Instance {
                name: first.endpoint.to_string(),
                facts: known,
                sources,
                destinations,
                out: nodes().map(|node| flows_from(facts, &staying, node)).sum(),
                back: come + destinations * i64::from(facts.source.size()),
            })
        })
        .collect()
}

/// Flows from a shard of the source.
fn flows_from(facts: &Facts<'_>, staying: &Staying, node: ShardNo) -> i64 {
    facts.destination.numbers().filter(|shard| staying.has_flow(node, *shard)).count() as i64
}

/// Flows to a shard of the source that is one of the destination too.
fn flows_to(facts: &Facts<'_>, staying: &Staying, node: ShardNo) -> i64 {
    let Some(shard) = staying.of_node(node) else { return 0 };
    facts.source.numbers().filter(|other| staying.has_flow(*other, shard)).count() as i64
}

/// A shortage of something that a setting limits.
struct Limit<'a> {
    check_name: &'static str,
    setting: &'a str,
    what: &'a str,
    need: i64,
    used: i64,
    max: i64,
}

impl Limit<'_> {
    fn finding(&self, instance: &Instance<'_>) -> Option<Finding> {
        let free = (self.max - self.used).max(0);
        if self.need <= free {
            return None;
        }
        Some(
            Finding::error(
                self.check_name,
                Kind::Resources,
                format!("not enough {} on {}", self.what, instance.name),
            )
            .object(instance.name.clone())
            .detail(format!(
                "Needed are {}, free are {free}: {} of {} ({}) are in use.",
                self.need, self.used, self.max, self.setting
            ))
            .hint(format!(
                "On that server: ALTER SYSTEM SET {} = {}; then restart it.",
                self.setting,
                self.used + self.need
            )),
        )
    }
}

fn limits(facts: &Facts<'_>, limit: impl Fn(&Instance<'_>) -> Limit<'static>) -> Vec<Finding> {
    if !facts.verb.has_flows() {
        return Vec::new();
    }
    instances(facts).iter().filter_map(|i| limit(i).finding(i)).collect()
}

/// Sets of flows on the way there: one for each wave of the copy.
fn waves(facts: &Facts<'_>) -> i64 {
    match facts.verb {
        Verb::Replicate => 1,
        _ => copy::waves(facts.leaves().map(|t| t.heap_bytes).collect()),
    }
}

/// Free slots: a source shard has one for each destination shard and wave, a
/// destination shard one for each source shard, for the way back.
pub fn replication_slots(facts: &Facts<'_>) -> Vec<Finding> {
    let waves = waves(facts);
    limits(facts, |i| Limit {
        check_name: "replication_slots",
        setting: "max_replication_slots",
        what: "free replication slots",
        need: i.out * waves + i.back,
        used: i.facts.used_slots,
        max: i.facts.max_slots,
    })
}

/// Free walsenders: one for each slot that is read, in one direction at a time;
/// on a source shard one more, which exports the snapshot.
pub fn wal_senders(facts: &Facts<'_>) -> Vec<Finding> {
    let waves = waves(facts);
    limits(facts, |i| Limit {
        check_name: "wal_senders",
        setting: "max_wal_senders",
        what: "free walsenders",
        need: (i.out * waves + i.sources).max(i.back),
        used: i.facts.used_senders,
        max: i.facts.max_senders,
    })
}

/// Free background workers: apply workers for one direction, and on the source
/// the coordinator and its copy workers.
pub fn worker_processes(facts: &Facts<'_>) -> Vec<Finding> {
    let here = facts.here.0.clone();
    let (copying, waves) = (facts.copy_workers, waves(facts));
    limits(facts, move |i| {
        let coordinator = i64::from(i.facts.system == here);
        Limit {
            check_name: "worker_processes",
            setting: "max_worker_processes",
            what: "free background workers",
            need: coordinator + (coordinator * copying).max(i.out).max(i.back * waves),
            used: i.facts.used_workers,
            max: i.facts.max_workers,
        }
    })
}

/// Free apply workers: one for each subscription, in one direction at a time.
pub fn apply_workers(facts: &Facts<'_>) -> Vec<Finding> {
    let waves = waves(facts);
    limits(facts, |i| Limit {
        check_name: "apply_workers",
        setting: "max_logical_replication_workers",
        what: "free logical replication workers",
        need: i.out.max(i.back * waves),
        used: i.facts.used_apply_workers,
        max: i.facts.max_apply_workers,
    })
}

/// Free replication origins: one for each subscription.
pub fn replication_origins(facts: &Facts<'_>) -> Vec<Finding> {
    let waves = waves(facts);
    limits(facts, |i| Limit {
        check_name: "replication_origins",
        setting: if i.facts.version >= 180_000 {
            "max_active_replication_origins"
        } else {
            "max_replication_slots"
        },
        what: "free replication origins",
        need: i.out + i.back * waves,
        used: i.facts.used_origins,
        max: i.facts.max_origins,
    })
}

/// Free connections: for rows, indexes and steering.
pub fn connections(facts: &Facts<'_>) -> Vec<Finding> {
    let copying = facts.copy_workers;
    let nodes = i64::from(facts.source.size());
    let building = i64::from(gucs::MAX_INDEX_BUILDS.get());
    let most = i64::from(gucs::MAX_SHARD_SESSIONS.get());
    // Rows come to shards that stay as well, but no indexes are built there.
    let coming = if staying::receive(facts) { copying * nodes } else { 0 };
    limits(facts, move |i| Limit {
        check_name: "connections",
        setting: "max_connections",
        what: "free connections",
        need: i.sources * (SESSIONS + coming + if nodes > 1 { copying + 1 } else { 0 })
            + i.destinations * (SESSIONS + (copying * nodes + building).min(most.max(nodes + 1))),
        used: i.facts.used_connections,
        max: i.facts.max_connections,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn slots(need: i64, used: i64, max: i64) -> Option<Finding> {
        let facts = ServerFacts::default();
        let instance = Instance {
            name: "shard 0".into(),
            facts: &facts,
            sources: 1,
            destinations: 0,
            out: 4,
            back: 0,
        };
        let limit = Limit {
            check_name: "replication_slots",
            setting: "max_replication_slots",
            what: "free replication slots",
            need,
            used,
            max,
        };
        limit.finding(&instance)
    }

    #[test]
    fn just_enough_is_enough() {
        assert!(slots(4, 6, 10).is_none());
    }

    #[test]
    fn a_shortage_says_have_need_and_what_to_set() {
        let finding = slots(4, 8, 10).unwrap();
        assert_eq!(finding.kind, Kind::Resources);
        assert!(finding.detail.contains("Needed are 4, free are 2: 8 of 10"));
        assert!(finding.hint.unwrap().contains("ALTER SYSTEM SET max_replication_slots = 12;"));
    }
}

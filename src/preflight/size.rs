//! Checks of what each shard would get, and whether there is room for it.
use std::collections::BTreeMap;

use crate::cluster::Side;
use crate::error::Kind;
use crate::preflight::facts::{Facts, Table};
use crate::preflight::finding::Finding;
use crate::preflight::Verb;

/// Rows of a sample from which on its shares mean something.
const SAMPLE: i64 = 1_000;
/// How much more than its fair share a shard may get.
const SKEW: f64 = 1.5;

/// Rows and bytes that come to one shard.
#[derive(Clone, Copy, Default)]
struct Load {
    rows: f64,
    /// Sharded tables alone.
    sharded_rows: f64,
    sharded_bytes: f64,
    /// All tables, without and with their indexes.
    heap: f64,
    total: f64,
}

/// What each shard gets, by its number, and the rows that were sampled.
fn loads(facts: &Facts<'_>) -> (Vec<Load>, i64) {
    let shards = facts.destination.size() as usize;
    let mut out = vec![Load::default(); shards];
    let mut sampled = 0;
    for table in facts.leaves() {
        sampled += table.sampled;
        let estimate = table.row_estimate.max(table.sampled) as f64;
        for (shard, load) in out.iter_mut().enumerate() {
            let (of_rows, of_bytes) = shares(facts, table, shard);
            load.rows += estimate * of_rows;
            load.heap += table.heap_bytes as f64 * of_bytes;
            load.total += table.total_bytes as f64 * of_bytes;
            if facts.is_spread() && table.is_sharded() {
                load.sharded_rows += estimate * of_rows;
                load.sharded_bytes += table.heap_bytes as f64 * of_bytes;
            }
        }
    }
    (out, sampled)
}

/// The part of a table's rows and bytes that one shard gets.
fn shares(facts: &Facts<'_>, table: &Table, shard: usize) -> (f64, f64) {
    if !facts.is_spread() || !table.is_sharded() {
        return (1.0, 1.0);
    }
    let (rows, bytes) = table.sample.iter().fold((0, 0), |sum, s| (sum.0 + s.0, sum.1 + s.1));
    let part = |of: i64, all: i64| match all {
        0 => 1.0 / f64::from(facts.destination.size()),
        all => of as f64 / all as f64,
    };
    let (own_rows, own_bytes) = table.sample.get(shard).copied().unwrap_or_default();
    (part(own_rows, rows), part(own_bytes, bytes))
}

/// How rows are spread: for each shard its share, and a shard that gets too much.
pub fn skew(facts: &Facts<'_>) -> Vec<Finding> {
    if !facts.is_spread() {
        return Vec::new();
    }
    let (loads, sampled) = loads(facts);
    let all_rows: f64 = loads.iter().map(|l| l.sharded_rows).sum();
    let all_bytes: f64 = loads.iter().map(|l| l.sharded_bytes).sum();
    if sampled < SAMPLE || all_rows <= 0.0 || all_bytes <= 0.0 {
        return Vec::new();
    }
    let fair = 1.0 / f64::from(facts.destination.size());
    loads
        .iter()
        .zip(&facts.destination.shards)
        .map(|(load, endpoint)| {
            let share = load.sharded_rows / all_rows;
            let detail = format!(
                "About {:.0} % of the rows and {:.0} % of the bytes of sharded tables, by a sample of \
                 {sampled} rows.",
                100.0 * share,
                100.0 * load.sharded_bytes / all_bytes
            );
            let finding = if share > SKEW * fair {
                Finding::warning("skew", format!("{endpoint} would get more than its share"))
                    .hint(
                        "Choose a sharding key with more values, or with values of like size; or map \
                         keys otherwise.",
                    )
            } else {
                Finding::info("skew", format!("share of {endpoint}"))
            };
            finding.object(endpoint.to_string()).detail(detail)
        })
        .collect()
}

/// Bytes that a shard must, and should, have free.
struct Room {
    must: f64,
    should: f64,
}

/// What a verb brings to a shard: rows, indexes, or neither.
fn room(verb: Verb, schema_phase: Option<&str>, load: Load) -> Room {
    match (verb, schema_phase) {
        (Verb::Start | Verb::CopyData, _) => Room { must: load.heap, should: load.total * 1.2 },
        // Indexes over rows that are there; some may be there already.
        (Verb::SchemaSync, Some("post")) => {
            Room { must: 0.0, should: (load.total - load.heap) * 1.2 }
        }
        (Verb::SchemaSync | Verb::Replicate, _) => Room { must: 0.0, should: 0.0 },
    }
}

/// Every shard's disk has room for what comes.
pub fn disk_space(facts: &Facts<'_>) -> Vec<Finding> {
    let (loads, _) = loads(facts);
    let schema_phase = facts.options.schema_phase.as_deref();
    // Shards that are databases of one server share its disk.
    let mut servers: BTreeMap<&str, (String, i64, Load)> = BTreeMap::new();
    for (server, known) in facts.known_of(Side::Destination) {
        let Some(free) = server.free_bytes else { continue };
        let load = loads.get(server.endpoint.shard as usize).copied().unwrap_or_default();
        let entry = servers
            .entry(&known.system)
            .or_insert_with(|| (server.endpoint.to_string(), free, Load::default()));
        entry.2.heap += load.heap;
        entry.2.total += load.total;
    }
    servers
        .into_values()
        .filter_map(|(name, free, load)| {
            let room = room(facts.verb, schema_phase, load);
            let finding = if room.must > free as f64 {
                Finding::error(
                    "disk_space",
                    Kind::Server("53100".to_owned()),
                    format!("not enough disk space on {name}"),
                )
            } else if room.should > free as f64 {
                Finding::warning("disk_space", format!("disk space may not suffice on {name}"))
            } else {
                return None;
            };
            Some(
                finding
                    .object(name)
                    .detail(format!(
                        "Its tables are of about {}, {} with their indexes; {} are free where the \
                         server's data is.",
                        size(load.heap),
                        size(load.total),
                        size(free as f64)
                    ))
                    .hint("Free space on that server, or move rows to more shards."),
            )
        })
        .collect()
}

fn size(bytes: f64) -> String {
    let units = ["bytes", "kB", "MB", "GB", "TB", "PB"];
    let mut value = bytes;
    let mut unit = 0;
    while value >= 10_240.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.0} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_verb_brings_needs_room() {
        let load = Load { heap: 100.0, total: 150.0, ..Load::default() };
        let bytes = |verb, phase| {
            let room = room(verb, phase, load);
            (room.must.round(), room.should.round())
        };
        assert_eq!(bytes(Verb::Start, None), (100.0, 180.0));
        assert_eq!(bytes(Verb::CopyData, None), (100.0, 180.0));
        assert_eq!(bytes(Verb::SchemaSync, Some("pre")), (0.0, 0.0));
        assert_eq!(bytes(Verb::SchemaSync, Some("post")), (0.0, 60.0));
        assert_eq!(bytes(Verb::Replicate, None), (0.0, 0.0));
    }

    #[test]
    fn sizes_are_short() {
        assert_eq!(size(10_000.0), "10000 bytes");
        assert_eq!(size(20_480.0), "20 kB");
        assert_eq!(size(1.5e13), "14 TB");
    }
}

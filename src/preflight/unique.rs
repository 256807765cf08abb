//! Unique keys that repeat across the shards of the source: each holds them by itself, but
//! on the destination rows of several of them meet, under one unique index.
use std::time::{Duration, Instant};

use futures::future::try_join_all;
use serde::Deserialize;

use crate::cluster::{Cluster, Method, Placement, ShardNo};
use crate::error::{Error, Kind, Result};
use crate::preflight::facts::{Content, Facts, Table};
use crate::preflight::finding::{Finding, Severity};
use crate::preflight::sample;
use crate::remote::quote::{literal, qualified};
use crate::remote::{Connection, Endpoint};

/// How long one question may take.
const TIMEOUT: &str = "SET statement_timeout = '3s'";
/// How long all of them may.
const PATIENCE: Duration = Duration::from_secs(20);
/// Keys of an index that one shard of the source looks for on another: of rows at random,
/// and the highest ones, where ranges of keys that overlap do so.
const KEYS: i64 = 1_000;
/// Tables that a finding shows.
const SHOWN: usize = 5;

/// What is known of unique keys over all shards of the source.
#[derive(Debug, Default)]
pub struct UniqueKeys {
    clashes: Vec<Clash>,
    near: Vec<NearSequences>,
    /// Tables whose keys took too long to compare.
    unknown: Vec<String>,
}

/// A key that two shards of the source have, of rows that meet on the destination.
#[derive(Debug)]
struct Clash {
    table: String,
    index: String,
    key: String,
    shards: (Endpoint, Endpoint),
    /// Where they meet; none where all rows do on each shard.
    shard: Option<ShardNo>,
}

/// Sequences of one name that may hand out the same values.
#[derive(Debug)]
struct NearSequences {
    table: String,
    index: String,
    sequence: String,
}

/// A unique index that lacks a column of the source's sharding key.
#[derive(Debug, Deserialize)]
struct Index {
    oid: i64,
    name: String,
    keys: Vec<IndexKey>,
    predicate: Option<String>,
    sequences: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct IndexKey {
    expression: String,
    type_name: String,
}

/// A sequence on one shard of the source.
#[derive(Debug, Clone, Copy, Deserialize)]
struct Sequence {
    last_value: i64,
    is_called: bool,
    increment: i64,
    min: i64,
    max: i64,
    cycle: bool,
}

impl Sequence {
    fn next(self) -> i128 {
        let step = if self.is_called { self.increment } else { 0 };
        i128::from(self.last_value) + i128::from(step)
    }

    /// Whether two never hand out the same value from now on.
    fn is_apart_from(self, other: Self) -> bool {
        let step = i128::from(self.increment).abs();
        let other_remainder = self.increment == other.increment
            && (self.next() - other.next()).rem_euclid(step.max(1)) != 0;
        let lowest = |s: Self| if s.cycle || s.increment < 0 { s.min.into() } else { s.next() };
        let highest = |s: Self| if s.cycle || s.increment > 0 { s.max.into() } else { s.next() };
        other_remainder || lowest(self) > highest(other) || lowest(other) > highest(self)
    }
}

/// Compares the keys of the tables of `nodes`, whose keys are those of the source.
///
/// # Errors
/// The servers', but for those of what is no comparison there.
pub async fn gather(
    facts: &Facts<'_>,
    content: &Content,
    nodes: &[Table],
    sessions: &[(&Endpoint, &Connection)],
) -> Result<UniqueKeys> {
    let mut out = UniqueKeys::default();
    let Some((_, here)) = sessions.first() else { return Ok(out) };
    let spread: Vec<(&Table, &Table)> = nodes
        .iter()
        .filter(|t| t.is_sharded())
        .filter_map(|t| Some((t, content.tables.iter().find(|d| d.oid == t.oid)?)))
        .filter(|(source, destination)| may_meet(facts, source, destination))
        .collect();
    let wanted: Vec<serde_json::Value> = spread
        .iter()
        .map(|(source, _)| serde_json::json!({ "oid": source.oid, "key": source.key }))
        .collect();
    let wanted = serde_json::Value::Array(wanted).to_string();
    let text: String = here.value(include_str!("unique.sql"), &[&wanted]).await?;
    let indexes: Vec<Index> = serde_json::from_str(&text)?;
    let began = Instant::now();
    try_join_all(sessions.iter().map(|(_, s)| s.batch(TIMEOUT))).await?;
    for index in &indexes {
        let Some((_, table)) = spread.iter().find(|(t, _)| t.oid == index.oid) else { continue };
        out.near.extend(near(sessions, table, index).await?);
        let Some(search) = Search::of(facts.destination, table, index) else { continue };
        let found = match began.elapsed() < PATIENCE {
            true => search.clash(sessions).await?,
            false => None,
        };
        match found {
            Some(clash) => out.clashes.extend(clash),
            None => out.unknown.push(table.name.clone()),
        }
    }
    out.unknown.dedup();
    try_join_all(sessions.iter().map(|(_, s)| s.batch(super::gather::TIMEOUT))).await?;
    Ok(out)
}

/// Whether rows of different shards of the source come to the same shard. They don't
/// where each of its shards is split up: the remainder by M of a hash tells that by N.
fn may_meet(facts: &Facts<'_>, source: &Table, destination: &Table) -> bool {
    let (n, m) = (facts.source.size(), facts.destination.size());
    let by_hash = |t: &Table| t.key_method == Some(Method::Hash);
    let is_split = m % n == 0
        && source.key == destination.key
        && by_hash(source)
        && by_hash(destination)
        && destination.is_sharded();
    !is_split
}

/// The sequences of an index that may hand out the same values.
async fn near(
    sessions: &[(&Endpoint, &Connection)],
    table: &Table,
    index: &Index,
) -> Result<Vec<NearSequences>> {
    let mut out = Vec::new();
    for sequence in &index.sequences {
        if !are_apart(sessions, sequence).await? {
            out.push(NearSequences {
                table: table.name.clone(),
                index: index.name.clone(),
                sequence: sequence.clone(),
            });
        }
    }
    Ok(out)
}

/// Whether the sequences of that name never hand out the same value.
async fn are_apart(sessions: &[(&Endpoint, &Connection)], sequence: &str) -> Result<bool> {
    let sql = format!(
        "SELECT jsonb_build_object('last_value', s.last_value, 'is_called', s.is_called, \
                    'increment', p.seqincrement, 'min', p.seqmin, 'max', p.seqmax, \
                    'cycle', p.seqcycle)::text \
           FROM {sequence} AS s JOIN pg_sequence AS p ON p.seqrelid = {}::regclass",
        literal(sequence)
    );
    let sql = sql.as_str();
    let states = try_join_all(sessions.iter().map(|(_, session)| async move {
        let text = comparable(session.value::<String>(sql, &[]).await)?;
        Ok::<_, Error>(text.map(|text| serde_json::from_str::<Sequence>(&text)).transpose()?)
    }))
    .await?;
    let known: Vec<Sequence> = states.into_iter().flatten().collect();
    let pairs = known.iter().enumerate().flat_map(|(i, a)| known[..i].iter().map(move |b| (a, b)));
    Ok(pairs.into_iter().all(|(a, b)| a.is_apart_from(*b)))
}

/// The two questions about the keys of an index.
struct Search<'a> {
    table: &'a Table,
    index: &'a Index,
    cluster: &'a Cluster,
    placement: Placement,
    /// Keys with the places of their rows: one JSON array.
    keys: String,
    /// Those of such keys $1 that are here as well, with both places.
    found: String,
}

impl<'a> Search<'a> {
    /// None where it can't be told where rows are placed.
    fn of(cluster: &'a Cluster, table: &'a Table, index: &'a Index) -> Option<Self> {
        let placement = cluster.placement(table.sharding_key());
        let place = match placement {
            Placement::All => "'{}'::bigint[]".to_owned(),
            _ => sample::place(table, cluster, &placement)?,
        };
        let name = qualified(&table.schema_name, &table.table_name);
        let each = |text: fn(usize, &IndexKey) -> String, between: &str| {
            let all: Vec<String> = index.keys.iter().enumerate().map(|(n, k)| text(n, k)).collect();
            all.join(between)
        };
        let selected = each(|n, k| format!("{} AS k{n}", k.expression), ", ");
        let not_null = each(|_, k| format!("({}) IS NOT NULL", k.expression), " AND ");
        let conditions: String = [&index.predicate, &table.row_filter]
            .into_iter()
            .flatten()
            .map(|condition| format!(" AND ({condition})"))
            .collect();
        let rows = |sample: &str| {
            format!(
                "SELECT {selected}, {place} AS place FROM ONLY {name} AS t {sample} \
                  WHERE {not_null}{conditions}"
            )
        };
        let highest = each(|n, _| format!("k{n} DESC"), ", ");
        let keys = format!(
            "SELECT coalesce(jsonb_agg(to_jsonb(u)), '[]')::text \
               FROM ((SELECT * FROM ({}) AS r LIMIT {KEYS}) UNION ALL \
                     (SELECT * FROM ({}) AS r ORDER BY {highest} LIMIT {KEYS})) AS u",
            rows(&sample::of_rows(table)),
            rows("")
        );
        let found = format!(
            "SELECT concat_ws(', ', {}), s.place, u.place \
               FROM jsonb_to_recordset($1::text::jsonb) AS s ({}, place bigint[]) \
               JOIN ({}) AS u ON {}",
            each(|n, _| format!("quote_literal(s.k{n}::text)"), ", "),
            each(|n, k| format!("k{n} {}", k.type_name), ", "),
            rows(""),
            each(|n, _| format!("u.k{n} = s.k{n}"), " AND "),
        );
        Some(Self { table, index, cluster, placement, keys, found })
    }

    /// The first clash between two shards of the source; the outer none where it took too
    /// long to look for.
    async fn clash(&self, sessions: &[(&Endpoint, &Connection)]) -> Result<Option<Option<Clash>>> {
        for (from, asking) in sessions {
            let Some(keys) = comparable(asking.value::<String>(&self.keys, &[]).await)? else {
                return Ok(None);
            };
            for (to, asked) in sessions.iter().filter(|(to, _)| to.shard != from.shard) {
                let Some(found) = comparable(asked.query(&self.found, &[&keys]).await)? else {
                    return Ok(None);
                };
                for row in found {
                    let get = |e: tokio_postgres::Error| asked.error(&e);
                    let key: String = row.try_get(0).map_err(get)?;
                    let places = (row.try_get(1).map_err(get)?, row.try_get(2).map_err(get)?);
                    let Some(shard) = self.meet(places) else { continue };
                    return Ok(Some(Some(Clash {
                        table: self.table.name.clone(),
                        index: self.index.name.clone(),
                        key,
                        shards: ((*from).clone(), (*to).clone()),
                        shard,
                    })));
                }
            }
        }
        Ok(Some(None))
    }

    /// Where the rows of two places meet; the outer none where they don't.
    fn meet(&self, (one, other): (sample::Hashes, sample::Hashes)) -> Option<Option<ShardNo>> {
        if self.placement == Placement::All {
            return Some(None);
        }
        let of = |place| sample::shard(self.cluster, &self.placement, place);
        let shard = of(one)?;
        (of(other) == Some(shard)).then_some(Some(shard))
    }
}

/// None where it takes too long, or where the table is another one there, or can't be
/// compared that way.
fn comparable<T>(outcome: Result<T>) -> Result<Option<T>> {
    match outcome {
        Err(error)
            if matches!(
                error.sqlstate(),
                "42P01" | "3F000" | "42703" | "42704" | "42804" | "42P18" | "0A000"
            ) =>
        {
            Ok(None)
        }
        other => sample::in_time(other),
    }
}

/// Unique keys differ on all shards of the source whose rows meet.
pub fn node_unique(facts: &Facts<'_>) -> Vec<Finding> {
    let Some(keys) = facts.nodes.as_ref().map(|nodes| &nodes.unique) else { return Vec::new() };
    let clashes = keys.clashes.iter().map(|clash| clashing(facts, clash));
    let near = keys.near.iter().map(|near| near_sequences(facts, near));
    let unknown = (!keys.unknown.is_empty()).then(|| unknown(&keys.unknown));
    clashes.chain(near).chain(unknown).collect()
}

fn clashing(facts: &Facts<'_>, clash: &Clash) -> Finding {
    let Clash { table, index, key, shards: (one, other), shard } = clash;
    let place = match shard {
        Some(shard) => format!("both rows belong to shard {shard}"),
        None => "both rows come to the same shards".to_owned(),
    };
    let mut finding = Finding::error(
        "node_unique",
        Kind::Server("23505".to_owned()),
        format!(
            "keys of unique index \"{index}\" of table {table} are on several shards of the source"
        ),
    )
    .object(format!("index \"{index}\" on table {table}"))
    .detail(format!("Key {key} is on {one} and on {other}, for example, and {place}."))
    .hint("Change the keys on one of them, or make the sharding key a part of the index.");
    // Whether the shards have such an index is up to the user.
    if !facts.verb.makes_schema() {
        finding.severity = Severity::Warning;
    }
    finding
}

fn near_sequences(facts: &Facts<'_>, near: &NearSequences) -> Finding {
    let NearSequences { table, index, sequence } = near;
    let nodes = facts.source.size();
    Finding::warning(
        "node_unique",
        format!("sequence {sequence} may hand out the same values on several shards of the source"),
    )
    .object(format!("sequence {sequence}"))
    .detail(format!(
        "It feeds unique index \"{index}\" of table {table}, whose rows meet on the destination: \
         until the switch a value that is there already would stop the replication."
    ))
    .hint(format!(
        "Give each shard of the source other values: ALTER SEQUENCE {sequence} INCREMENT BY {nodes} \
         RESTART WITH ...; with another remainder by {nodes} on each."
    ))
}

fn unknown(tables: &[String]) -> Finding {
    Finding::warning(
        "node_unique",
        format!("unique keys of {} tables may be on several shards of the source", tables.len()),
    )
    .object(tables[..tables.len().min(SHOWN)].join(", "))
    .detail("It takes too long to compare them here, or they can't be.")
    .hint("See whether keys that don't hold the sharding key differ on all shards of the source.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(last_value: i64, increment: i64) -> Sequence {
        Sequence { last_value, is_called: true, increment, min: 1, max: i64::MAX, cycle: false }
    }

    #[test]
    fn sequences_are_apart_by_remainder_or_by_range() {
        assert!(sequence(10, 2).is_apart_from(sequence(7, 2)));
        assert!(!sequence(10, 2).is_apart_from(sequence(8, 2)));
        assert!(!sequence(10, 1).is_apart_from(sequence(5_000, 1)));
        assert!(!sequence(10, 2).is_apart_from(sequence(7, 3)));
        let low = Sequence { max: 1_000, ..sequence(10, 1) };
        assert!(low.is_apart_from(sequence(1_000, 1)));
        assert!(!low.is_apart_from(sequence(998, 1)));
        assert!(!Sequence { cycle: true, ..sequence(2_000, 1) }.is_apart_from(low));
    }

    #[test]
    fn a_sequence_at_its_end_overflows_nothing() {
        assert!(sequence(i64::MAX, 1).is_apart_from(sequence(1, 1)));
        let restarted = Sequence { is_called: false, ..sequence(11, 2) };
        assert!(restarted.is_apart_from(sequence(10, 2)));
    }
}

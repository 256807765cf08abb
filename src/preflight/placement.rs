//! Checks of keys that are mapped to shards, by list or by range: what is mapped makes
//! sense, and every row has a shard.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::cluster::keymap::Keys;
use crate::cluster::{Cluster, KeyMap, KeySql, Method, Placement, ShardingKey, Side};
use crate::error::{Error, Kind, Result};
use crate::pg::order;
use crate::preflight::facts::{Facts, KeyColumn};
use crate::preflight::finding::Finding;
use crate::preflight::sample::in_time;
use crate::remote::quote::{ident, literal, qualified};
use crate::remote::{Connection, Endpoint};
use crate::state::mapping;

/// How long rows without a shard are looked for in one table.
const TIMEOUT: &str = "SET statement_timeout = '20s'";
/// How long they are looked for in all of them.
const PATIENCE: Duration = Duration::from_secs(60);
/// Keys that a finding shows.
const SHOWN: i64 = 5;

/// A published table whose keys are mapped to the shards of one of the clusters.
#[derive(Debug)]
pub struct Mapped {
    side: Side,
    table: String,
    column: String,
    type_name: String,
    map: Arc<KeyMap>,
    /// What is wrong with the mapping, as keys of this table.
    wrong: Option<Error>,
    /// Rows that no shard takes; none where that took too long to look for.
    unplaced: Option<Unplaced>,
}

/// Rows that no shard takes.
#[derive(Debug, Clone, Default, Deserialize)]
struct Unplaced {
    rows: i64,
    keys: i64,
    /// The most frequent keys.
    shown: Vec<String>,
}

/// Finds the tables, and looks into them on all shards of the source.
///
/// # Errors
/// The servers'; those of the state tables.
pub async fn gather(
    facts: &Facts<'_>,
    here: &Connection,
    others: &[(&Endpoint, &Connection)],
) -> Result<Vec<Mapped>> {
    let mut all = tables(facts)?;
    let began = Instant::now();
    let nodes = std::iter::once(here).chain(others.iter().map(|(_, session)| *session));
    for session in nodes {
        session.batch(TIMEOUT).await?;
        for (mapped, filter) in &mut all {
            if mapped.wrong.is_some() || mapped.unplaced.is_none() {
                continue;
            }
            let found = match began.elapsed() < PATIENCE {
                true => in_time(look(session, mapped, filter.as_deref()).await)?,
                false => None,
            };
            mapped.unplaced = match (mapped.unplaced.take(), found) {
                (Some(before), Some(found)) => Some(before.and(found)),
                _ => None,
            };
        }
    }
    Ok(all.into_iter().map(|(mapped, _)| mapped).collect())
}

impl Unplaced {
    /// With those of another shard of the source.
    fn and(self, other: Self) -> Self {
        let shown: BTreeSet<String> = self.shown.into_iter().chain(other.shown).collect();
        Self {
            rows: self.rows + other.rows,
            keys: (self.keys + other.keys),
            shown: shown.into_iter().take(SHOWN as usize).collect(),
        }
    }
}

/// The tables, with the user's row filters.
fn tables(facts: &Facts<'_>) -> Result<Vec<(Mapped, Option<String>)>> {
    let mut all = Vec::new();
    let mut judged = Judged::new();
    for (cluster, table) in facts.keyed() {
        if let (Some(key), [column]) = (table.sharding_key(), table.key_columns.as_slice()) {
            let side = match std::ptr::eq(cluster, facts.source) {
                true => Side::Source,
                false => Side::Destination,
            };
            let of = KeyOf { table: qualified(&table.schema_name, &table.table_name), column };
            let mapped = of.mapped(side, cluster, key, &mut judged)?;
            all.extend(mapped.map(|m| (m, table.row_filter.clone())));
        }
    }
    Ok(all)
}

/// What is wrong with the mapping of a cluster's column, for keys of a type and collation:
/// tables of the same type don't ask again.
type Judged = BTreeMap<(String, String, u32, u32), Option<Error>>;

struct KeyOf<'t> {
    table: String,
    column: &'t KeyColumn,
}

impl KeyOf<'_> {
    fn mapped(
        self,
        side: Side,
        cluster: &Cluster,
        key: ShardingKey<'_>,
        judged: &mut Judged,
    ) -> Result<Option<Mapped>> {
        let Placement::Mapped(map) = cluster.placement(Some(key)) else { return Ok(None) };
        let KeyColumn { name, type_name, type_oid, collation, .. } = self.column;
        let (Some(type_name), Some(oid)) = (type_name, *type_oid) else { return Ok(None) };
        let collation = collation.unwrap_or(0);
        let about = (cluster.name.clone(), name.clone(), oid, collation);
        let wrong = match judged.get(&about) {
            Some(known) => known.clone(),
            None => {
                let wrong = self.wrong(cluster, &map, type_name, (oid, collation))?;
                judged.insert(about, wrong.clone());
                wrong
            }
        };
        Ok(Some(Mapped {
            side,
            table: self.table,
            column: name.clone(),
            type_name: type_name.clone(),
            map,
            wrong,
            unplaced: Some(Unplaced::default()),
        }))
    }

    /// What is wrong with a mapping for keys of this type.
    fn wrong(
        &self,
        cluster: &Cluster,
        map: &KeyMap,
        type_name: &str,
        (oid, collation): (u32, u32),
    ) -> Result<Option<Error>> {
        let (name, column) = (&cluster.name, &self.column.name);
        if map.shards().next().is_none() {
            return Ok(Some(
                Error::state(format!("no key of column \"{column}\" is mapped to a shard"))
                    .detail(format!("Cluster \"{name}\" would take no row at all."))
                    .hint(
                        "Map keys with reshard_map_values(), reshard_map_range() or \
                         reshard_map_default().",
                    ),
            ));
        }
        if let Some(outside) = map.shards().find(|s| s.0 >= cluster.size()) {
            return Ok(Some(
                Error::argument(format!(
                    "keys of column \"{column}\" are mapped to shard {outside}, which cluster \
                     \"{name}\" doesn't have"
                ))
                .detail(format!("Its shards are numbered 0 to {}.", cluster.size() - 1))
                .hint("Declare that shard, or take the mapping back; see reshard.placements."),
            ));
        }
        let texts: Vec<&str> = match &map.keys {
            Keys::Values(values) => values.iter().map(|v| v.key.as_str()).collect(),
            Keys::Ranges(ranges) => {
                let bounds = ranges.iter().flat_map(|r| r.lower.iter().chain(&r.upper));
                bounds.map(String::as_str).collect()
            }
        };
        let read = mapping::read(&texts, oid)?;
        let unreadable = texts.iter().zip(&read).find_map(|(t, r)| Some((t, r.error.as_ref()?)));
        if let Some((text, error)) = unreadable {
            return Ok(Some(
                Error::argument(format!(
                    "{} can't be read as a value of column \"{column}\" of table {}",
                    literal(text),
                    self.table
                ))
                .detail(format!("The column is of type {type_name}: {error}."))
                .hint("Take that mapping back, or give the table a sharding key of its own."),
            ));
        }
        // Whether the type has an order at all is looked at by another check.
        Ok(match order::check(map, oid, collation) {
            Err(error) if error.kind != Kind::MissingObject => Some(error),
            _ => None,
        })
    }
}

/// Counts the rows of a table on one server that no shard takes.
async fn look(session: &Connection, mapped: &Mapped, filter: Option<&str>) -> Result<Unplaced> {
    let key = ident(&mapped.column);
    let sql = KeySql { expression: &key, type_name: &mapped.type_name };
    let Some(condition) = mapped.map.takes_not(sql) else { return Ok(Unplaced::default()) };
    let and = filter.map_or(String::new(), |filter| format!(" AND ({filter})"));
    let text: String = session
        .value(
            &format!(
                "WITH unplaced AS (SELECT {key} AS key, count(*) AS rows FROM ONLY {} \
                                    WHERE {condition}{and} GROUP BY 1) \
                 SELECT jsonb_build_object( \
                     'rows', coalesce((SELECT sum(rows) FROM unplaced), 0), \
                     'keys', (SELECT count(*) FROM unplaced), \
                     'shown', coalesce((SELECT jsonb_agg(k.key) FROM ( \
                          SELECT coalesce(quote_literal(key::text), 'NULL') AS key \
                            FROM unplaced ORDER BY rows DESC, unplaced.key LIMIT {SHOWN}) AS k), \
                          '[]'))::text",
                mapped.table
            ),
            &[],
        )
        .await?;
    Ok(serde_json::from_str(&text)?)
}

fn cluster_of<'f>(facts: &'f Facts<'_>, side: Side) -> &'f Cluster {
    match side {
        Side::Source => facts.source,
        Side::Destination => facts.destination,
    }
}

/// What is mapped can be read as the columns' types, and does not contradict itself.
pub fn sharding_key_mapping(facts: &Facts<'_>) -> Vec<Finding> {
    let each = |m: &Mapped| {
        let error = m.wrong.as_ref()?;
        let object = format!("cluster \"{}\"", cluster_of(facts, m.side).name);
        Some(Finding::from_error("sharding_key_mapping", error).object(object))
    };
    let mut found: Vec<Finding> = facts.mapped.iter().filter_map(each).collect();
    // Partitions, and tables of the same type, say the same.
    let mut said = BTreeSet::new();
    found.retain(|f| said.insert(f.message.clone()));
    found
}

/// Every row has a shard.
pub fn sharding_key_rows(facts: &Facts<'_>) -> Vec<Finding> {
    facts.mapped.iter().filter(|m| m.wrong.is_none()).filter_map(|m| rows(facts, m)).collect()
}

fn rows(facts: &Facts<'_>, mapped: &Mapped) -> Option<Finding> {
    let Mapped { table, column, .. } = mapped;
    let cluster = &cluster_of(facts, mapped.side).name;
    let Some(unplaced) = &mapped.unplaced else {
        return Some(
            Finding::warning(
                "sharding_key_rows",
                format!("rows of table {table} may have no shard of cluster \"{cluster}\""),
            )
            .object(table.clone())
            .detail(format!(
                "It takes too long to look for values of \"{column}\" that are mapped to no shard. \
                 The copy stops at such a row."
            ))
            .hint(format!(
                "Name a default: SELECT reshard_map_default({}, {}, ...);",
                literal(cluster),
                literal(column)
            )),
        );
    };
    if unplaced.rows == 0 {
        return None;
    }
    let more = match unplaced.keys > unplaced.shown.len() as i64 {
        true => ", ...",
        false => "",
    };
    Some(
        Finding::error(
            "sharding_key_rows",
            Kind::Server("23514".to_owned()),
            format!(
                "{} rows of table {table} have no shard of cluster \"{cluster}\"",
                unplaced.rows
            ),
        )
        .object(table.clone())
        .detail(format!(
            "{} values of sharding key \"{column}\" are mapped to no shard: {}{more}.",
            unplaced.keys,
            unplaced.shown.join(", ")
        ))
        .hint(format!(
            "Map them, or name a default: SELECT reshard_map_default({}, {}, ...);",
            literal(cluster),
            literal(column)
        )),
    )
}

/// Every shard has keys.
pub fn sharding_key_shards(facts: &Facts<'_>) -> Vec<Finding> {
    let mapped = || facts.mapped.iter().filter(|m| m.side == Side::Destination);
    let by_hash = facts.leaves().any(|t| t.is_sharded() && t.key_method == Some(Method::Hash));
    if by_hash || mapped().next().is_none() || mapped().any(|m| m.wrong.is_some()) {
        return Vec::new();
    }
    facts
        .destination
        .shards
        .iter()
        .filter(|e| !mapped().any(|m| m.map.shards().any(|s| s.0 == e.shard)))
        .map(|endpoint| {
            let message = format!("no key is mapped to {endpoint}");
            Finding::warning("sharding_key_shards", &message)
                .object(endpoint.to_string())
                .detail("It would get the tables without sharding key alone.")
                .hint("Map keys to it, or drop the shard; see reshard.placements.")
        })
        .collect()
}

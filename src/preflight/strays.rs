//! Rows of a source of several shards that lie on another shard than their key says.
//! They are copied to where they belong; but what is written to them after a switch
//! comes back to the shard that the key names, where they are not.
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::cluster::rule::{listed, shown};
use crate::cluster::{Cluster, KeySql, Placement, ShardNo, ShardingKey};
use crate::error::{Error, Kind, Result};
use crate::preflight::facts::{Facts, Table};
use crate::preflight::finding::Finding;
use crate::preflight::sample;
use crate::remote::partition_key::{self, satisfies};
use crate::remote::quote::{ident, literal, qualified};
use crate::remote::{Connection, Endpoint};

/// How long one table is searched on one shard; after that a sample of it is.
const TIMEOUT: &str = "SET LOCAL statement_timeout = '3s'";
/// How long all of them are.
const PATIENCE: Duration = Duration::from_secs(20);

/// Rows of one table on the wrong shard.
#[derive(Debug)]
pub struct Strays {
    table: String,
    key: Vec<String>,
    shard: Endpoint,
    found: Found,
    /// Not all rows were looked at.
    sampled: bool,
}

#[derive(Debug, Deserialize)]
struct Found {
    rows: i64,
    /// A key, and its shard.
    example: Option<(String, i32)>,
}

/// Looks for them on all shards of the source, as long as there is time.
///
/// # Errors
/// The servers'.
pub async fn gather(facts: &Facts<'_>, nodes: &[(&Endpoint, &Connection)]) -> Result<Vec<Strays>> {
    let mut all = Vec::new();
    let began = Instant::now();
    let tables = facts.nodes.iter().flat_map(|nodes| &nodes.tables);
    for table in tables {
        let Some(key) = table.sharding_key() else { continue };
        for (endpoint, session) in nodes {
            if began.elapsed() > PATIENCE {
                return Ok(all);
            }
            let shard = ShardNo(endpoint.shard);
            let search = Search { cluster: facts.source, table, key, shard };
            let (found, sampled) = match look(session, &search, "").await? {
                Some(found) => (Some(found), false),
                None => (look(session, &search, &sample::of_rows(table)).await?, true),
            };
            all.extend(found.filter(|found| found.rows > 0).map(|found| Strays {
                table: table.name.clone(),
                key: key.columns.to_vec(),
                shard: (*endpoint).clone(),
                found,
                sampled,
            }));
        }
    }
    Ok(all)
}

/// What is looked for where.
struct Search<'a> {
    cluster: &'a Cluster,
    table: &'a Table,
    key: ShardingKey<'a>,
    shard: ShardNo,
}

/// None where it takes too long, or where the table is another one there, of which other
/// checks tell. What has to be made for it is rolled back.
async fn look(session: &Connection, search: &Search<'_>, sample: &str) -> Result<Option<Found>> {
    // Event triggers of the user have no say in a table that is rolled back.
    session
        .batch(&format!(
            "BEGIN READ WRITE; SET LOCAL session_replication_role = replica; {TIMEOUT}"
        ))
        .await?;
    let found = count(session, search, sample).await;
    session.batch("ROLLBACK").await?;
    match found {
        Err(Error { kind: Kind::Server(code), .. })
            if matches!(code.as_str(), "42P01" | "3F000" | "42703" | "42804") =>
        {
            Ok(None)
        }
        other => sample::in_time(other),
    }
}

async fn count(session: &Connection, search: &Search<'_>, sample: &str) -> Result<Found> {
    let Search { cluster, table, key, shard } = search;
    let name = qualified(&table.schema_name, &table.table_name);
    let expression = listed(key.columns, "t.");
    let loaded = partition_key::load(session, &[(name.clone(), key.columns)]).await?;
    let Some(there) = loaded.first() else {
        return Err(Error::internal("a sharding key is not known"));
    };
    let relation = ident(&there.relation("reshard_placement_"));
    let placement = cluster.placement(Some(*key));
    if matches!(placement, Placement::Hash { .. }) {
        session.batch(&format!("CREATE TEMPORARY TABLE {relation} {}", there.definition())).await?;
    }
    let relation = format!("pg_temp.{relation}");
    let takes = |shard: ShardNo| match &placement {
        Placement::All => "true".to_owned(),
        Placement::Hash { shards } => satisfies(&relation, *shards, shard, &expression),
        Placement::Mapped(map) => {
            map.takes(shard, KeySql { expression: &expression, type_name: there.type_name() })
        }
    };
    let whens: Vec<String> =
        cluster.numbers().map(|n| format!("WHEN {} THEN {n}", takes(n))).collect();
    let values: Vec<String> =
        key.columns.iter().map(|c| format!("quote_nullable(t.{}::text)", ident(c))).collect();
    let and = table.row_filter.as_ref().map_or(String::new(), |filter| format!(" AND ({filter})"));
    let text: String = session
        .value(
            &format!(
                "WITH stray AS (SELECT concat_ws(', ', {}) AS key, CASE {} END AS shard \
                                  FROM ONLY {name} AS t {sample} WHERE NOT {}{and}) \
                 SELECT jsonb_build_object('rows', count(*), \
                            'example', (SELECT jsonb_build_array(s.key, s.shard) \
                                          FROM stray AS s WHERE s.shard IS NOT NULL LIMIT 1))::text \
                   FROM stray",
                values.join(", "),
                whens.join(" "),
                takes(*shard),
            ),
            &[],
        )
        .await?;
    Ok(serde_json::from_str(&text)?)
}

/// Rows lie on the shards of the source that their keys name.
pub fn node_rows(facts: &Facts<'_>) -> Vec<Finding> {
    let each = |s: &Strays| {
        let some = if s.sampled { "At least " } else { "" };
        let example = s.found.example.as_ref().map_or(String::new(), |(key, shard)| {
            format!(
                " The one with {} ({key}) belongs to shard {shard}, for example.",
                shown(&s.key)
            )
        });
        Finding::warning(
            "node_rows",
            format!("rows of table {} on {} belong to other shards", s.table, s.shard),
        )
        .object(s.table.clone())
        .detail(format!(
            "{some}{} of its rows there have a sharding key of another shard.{example} They are \
             copied to the right shard; but changes of them after a switch would not come back to \
             where they are.",
            s.found.rows
        ))
        .hint(format!(
            "Move them on the source: INSERT them on the shard that reshard_shard_for({}, ...) names, \
             and DELETE them on this one.",
            literal(&facts.source.name)
        ))
    };
    facts.strays.iter().map(each).collect()
}

//! The source against the union of the shards, table by table and row by row.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::cluster::{Rig, Server};
use crate::error::{Error, Result};
use crate::placement::Placement;
use crate::session::{identifier, literal, Session};
use crate::wait::{wait_for, Seen};

/// What differs in one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Name of the table.
    pub table: String,
    /// What, with examples.
    pub what: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.table, self.what)
    }
}

/// Examples in a difference.
const EXAMPLES: usize = 5;

/// All ordinary tables of the user, as (schema, name).
pub(super) const USER_TABLES: &str = "
SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence = 'p'
  AND n.nspname NOT IN ('reshard', 'pg_catalog', 'information_schema') ORDER BY 1, 2";

/// Compares each table of the source, the union of its shards, with that of the shards: rows as
/// text, duplicates counted. A table without column `key` must be equal on every
/// shard; in the others each row must lie where the rig's placement puts its key.
pub async fn compare(rig: &Rig, key: &str) -> Result<Vec<Difference>> {
    let source = rig.source.connect().await?;
    let mut shards = Vec::new();
    for shard in &rig.shards {
        shards.push(shard.connect().await?);
    }
    let mut nodes = Vec::new();
    for node in &rig.nodes {
        nodes.push(node.connect().await?);
    }
    let mut differences = Vec::new();
    for row in source.rows(USER_TABLES).await? {
        let name: Vec<String> = row.into_iter().flatten().collect();
        let [schema, table] = name.as_slice() else {
            continue;
        };
        let full = format!("{}.{}", identifier(schema), identifier(table));
        let key_type = key_type(&source, &full, key).await?;
        let mut expected = rows_of(&source, &full).await?;
        for node in &nodes {
            let there = rows_of(node, &full).await?;
            match key_type {
                Some(_) => {
                    there.into_iter().for_each(|(row, n)| *expected.entry(row).or_default() += n)
                }
                None => differences.extend(difference(&expected, &there).map(|what| Difference {
                    table: full.clone(),
                    what: format!("on another node: {what}"),
                })),
            }
        }
        let found = one_table(&shards, rig, &full, key, key_type.as_deref(), &expected).await?;
        differences.extend(found.into_iter().map(|what| Difference { table: full.clone(), what }));
    }
    Ok(differences)
}

/// Compares until nothing differs: the flow may have a last change under way.
pub async fn compare_when_quiet(rig: &Rig, key: &str, deadline: Duration) -> Result<()> {
    wait_for(deadline, "source and shards to be equal", || async {
        let differences = compare(rig, key).await?;
        Ok(match differences.is_empty() {
            true => Seen::Done(()),
            false => {
                let all: Vec<String> = differences.iter().map(Difference::to_string).collect();
                Seen::NotYet(all.join("\n"))
            }
        })
    })
    .await
}

async fn one_table(
    shards: &[Session],
    rig: &Rig,
    table: &str,
    key: &str,
    key_type: Option<&str>,
    expected: &BTreeMap<String, i64>,
) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    let mut union: BTreeMap<String, i64> = BTreeMap::new();
    for (number, shard) in shards.iter().enumerate() {
        let here = match rows_of(shard, table).await {
            Ok(here) => here,
            Err(error) if error.sqlstate() == Some("42P01") => {
                problems.push(format!("shard {number} has no such table"));
                continue;
            }
            Err(error) => return Err(error),
        };
        if key_type.is_none() {
            problems
                .extend(difference(expected, &here).map(|text| format!("shard {number}: {text}")));
        }
        for (row, count) in here {
            *union.entry(row).or_default() += count;
        }
    }
    if let Some(key_type) = key_type {
        problems.extend(difference(expected, &union));
        problems.extend(misplaced(shards, &rig.placement, table, key, key_type).await?);
    }
    Ok(problems)
}

async fn rows_of(session: &Session, table: &str) -> Result<BTreeMap<String, i64>> {
    let mut rows = BTreeMap::new();
    for row in session.column(&format!("SELECT t::text FROM ONLY {table} t")).await? {
        *rows.entry(row).or_default() += 1;
    }
    Ok(rows)
}

pub(super) fn difference(
    expected: &BTreeMap<String, i64>,
    found: &BTreeMap<String, i64>,
) -> Option<String> {
    let short = |text: &str| text.chars().take(200).collect::<String>();
    let missing: Vec<String> = expected
        .iter()
        .filter(|(row, count)| found.get(*row).copied().unwrap_or(0) < **count)
        .map(|(row, _)| short(row))
        .collect();
    let surplus: Vec<String> = found
        .iter()
        .filter(|(row, count)| expected.get(*row).copied().unwrap_or(0) < **count)
        .map(|(row, _)| short(row))
        .collect();
    if missing.is_empty() && surplus.is_empty() {
        return None;
    }
    Some(format!(
        "{} rows missing {:?}, {} rows too many {:?}",
        missing.len(),
        missing.iter().take(EXAMPLES).collect::<Vec<_>>(),
        surplus.len(),
        surplus.iter().take(EXAMPLES).collect::<Vec<_>>()
    ))
}

pub(super) async fn key_type(session: &Session, table: &str, key: &str) -> Result<Option<String>> {
    session
        .text(&format!(
            "SELECT format_type(atttypid, atttypmod) FROM pg_attribute
             WHERE attrelid = {}::regclass AND attname = {} AND NOT attisdropped",
            literal(table),
            literal(key)
        ))
        .await
}

/// Asks each shard which of its rows the placement would put elsewhere.
async fn misplaced(
    shards: &[Session],
    placement: &Placement,
    table: &str,
    key: &str,
    key_type: &str,
) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    for (number, shard) in shards.iter().enumerate() {
        let condition = match placement.partitioned(&identifier(key), key_type) {
            _ if shards.len() == 1 => "true".to_owned(),
            Some((partitioned, columns)) => {
                shard.execute(&partitioned).await?;
                format!(
                    "satisfies_hash_partition('pg_temp.placement'::regclass, {}, {number}, {columns})",
                    shards.len(),
                )
            }
            None => placement.condition(&identifier(key), number).unwrap_or_default(),
        };
        let sql = format!("SELECT count(*) FROM ONLY {table} WHERE ({condition}) IS NOT TRUE");
        let count: i64 = shard.one(&sql).await?;
        if count > 0 {
            problems.push(format!("shard {number} has {count} rows of other shards"));
        }
    }
    Ok(problems)
}

/// Number of rows and sum of their hashes over several servers: equal multisets of
/// rows have equal fingerprints, in whatever way they lie on the servers.
pub async fn fingerprint(servers: &[&Server], table: &str, filter: &str) -> Result<(u64, String)> {
    let query = format!(
        "SELECT count(*), coalesce(sum(hashtextextended(t::text, 42)::numeric), 0)
         FROM {table} t WHERE {filter}"
    );
    let parts = futures::future::try_join_all(servers.iter().map(|server| async {
        let rows = server.connect().await?.rows(&query).await?;
        let mut fields = rows.into_iter().next().unwrap_or_default().into_iter();
        let count = fields.next().flatten().and_then(|text| text.parse::<u64>().ok());
        let sum = fields.next().flatten().and_then(|text| text.parse::<i128>().ok());
        match (count, sum) {
            (Some(count), Some(sum)) => Ok((count, sum)),
            _ => Err(Error::Unexpected(format!("no fingerprint of {table}"))),
        }
    }))
    .await?;
    let count = parts.iter().map(|(count, _)| count).sum();
    let sum: i128 = parts.iter().map(|(_, sum)| sum).sum();
    Ok((count, sum.to_string()))
}

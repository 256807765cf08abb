//! What the rows of the source say, added up over all of its shards: sizes, foreign keys
//! whose rows would part, keys that are null, and how a sample is spread.
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::future::try_join_all;

use crate::error::Result;
use crate::preflight::facts::{Content, Facts, ForeignKey, Table};
use crate::preflight::gather::{tables, TIMEOUT};
use crate::preflight::sample;
use crate::remote::quote::{ident, qualified};
use crate::remote::{Connection, Endpoint};

/// How long rows are searched for that break a foreign key.
const FOREIGN_KEY_TIMEOUT: &str = "2s";
/// How long they are searched for in all of them, on one shard.
const PATIENCE: Duration = Duration::from_secs(20);

/// What one shard of the source says.
struct Found {
    tables: Vec<Table>,
    /// Of each foreign key, in their order.
    crosses: Vec<Option<bool>>,
}

/// Looks into the rows of all shards of the source at the same time.
///
/// # Errors
/// The servers'.
pub async fn gather(
    facts: &Facts<'_>,
    content: &mut Content,
    here: &Connection,
    others: &[(Endpoint, Connection)],
) -> Result<()> {
    let seen = &*content;
    let own = look(facts, here, seen, seen.tables.clone());
    let theirs = try_join_all(others.iter().map(|(_, session)| async move {
        match tables(session, facts.publication, &facts.rules).await {
            Ok(tables) => look(facts, session, seen, tables).await.map(Some),
            // Without the extension: another check names that shard.
            Err(error) if matches!(error.sqlstate(), "3F000" | "42883" | "42P01") => Ok(None),
            Err(error) => Err(error),
        }
    }));
    let (own, theirs) = futures::try_join!(own, theirs)?;
    content.tables = own.tables;
    for (key, crosses) in content.foreign_keys.iter_mut().zip(own.crosses) {
        key.crosses = crosses;
    }
    for found in theirs.into_iter().flatten() {
        add(facts, content, found);
    }
    Ok(())
}

async fn look(
    facts: &Facts<'_>,
    session: &Connection,
    content: &Content,
    mut tables: Vec<Table>,
) -> Result<Found> {
    let mut crosses = vec![None; content.foreign_keys.len()];
    if facts.is_spread() {
        session.batch(&format!("SET statement_timeout = '{FOREIGN_KEY_TIMEOUT}'")).await?;
        let began = Instant::now();
        for (found, key) in crosses.iter_mut().zip(&content.foreign_keys) {
            if began.elapsed() > PATIENCE {
                break;
            }
            *found = crosses_shards(session, &content.tables, key).await?;
        }
        sample::look(session, &mut tables, facts.destination).await?;
        session.batch(TIMEOUT).await?;
    }
    Ok(Found { tables, crosses })
}

/// Adds what another shard of the source says. Of a table that each of them has whole,
/// the rows of one alone move.
fn add(facts: &Facts<'_>, content: &mut Content, found: Found) {
    for (key, crosses) in content.foreign_keys.iter_mut().zip(found.crosses) {
        key.crosses = either(key.crosses, crosses);
    }
    let Some(nodes) = &facts.nodes else { return };
    let by_name: BTreeMap<&str, &Table> =
        found.tables.iter().filter(|t| t.leaf).map(|t| (t.name.as_str(), t)).collect();
    for table in content.tables.iter_mut().filter(|t| !nodes.key_of(t).is_empty()) {
        if let Some(there) = by_name.get(table.name.as_str()) {
            add_table(table, there);
        }
    }
}

fn add_table(table: &mut Table, there: &Table) {
    table.heap_bytes += there.heap_bytes;
    table.total_bytes += there.total_bytes;
    table.row_estimate += there.row_estimate;
    table.has_null_keys = either(table.has_null_keys, there.has_null_keys);
    table.sampled += there.sampled;
    if table.sample.len() < there.sample.len() {
        table.sample.resize(there.sample.len(), (0, 0));
    }
    for (sum, more) in table.sample.iter_mut().zip(&there.sample) {
        *sum = (sum.0 + more.0, sum.1 + more.1);
    }
}

/// Whether something is so on one of two shards; none where that isn't known.
fn either(one: Option<bool>, other: Option<bool>) -> Option<bool> {
    match (one, other) {
        (Some(true), _) | (_, Some(true)) => Some(true),
        (Some(false), Some(false)) => Some(false),
        _ => None,
    }
}

/// Whether a foreign key between sharded tables, in which the sharding keys
/// aren't part, has rows whose sharding keys differ.
async fn crosses_shards(
    session: &Connection,
    tables: &[Table],
    foreign_key: &ForeignKey,
) -> Result<Option<bool>> {
    let of = |oid| tables.iter().find(|t| t.oid == oid && t.is_sharded());
    let (Some(from), Some(to)) = (of(foreign_key.from), of(foreign_key.to)) else {
        return Ok(None);
    };
    let (Some(from_key), Some(to_key)) = (&from.key, &to.key) else { return Ok(None) };
    let comparable = from.has_types_of(to) && from.is_placed_like(to);
    if foreign_key.holds_keys(from_key, to_key) || !comparable {
        return Ok(None);
    }
    let joined: Vec<String> = foreign_key
        .from_columns
        .iter()
        .zip(&foreign_key.to_columns)
        .map(|(f, t)| format!("f.{} = t.{}", ident(f), ident(t)))
        .collect();
    let differing: Vec<String> = from_key
        .iter()
        .zip(to_key)
        .map(|(f, t)| format!("f.{} IS DISTINCT FROM t.{}", ident(f), ident(t)))
        .collect();
    let sql = format!(
        "SELECT EXISTS (SELECT 1 FROM {} AS f JOIN {} AS t ON {} WHERE {})",
        qualified(&from.schema_name, &from.table_name),
        qualified(&to.schema_name, &to.table_name),
        joined.join(" AND "),
        differing.join(" OR "),
    );
    match session.value(&sql, &[]).await {
        Ok(found) => Ok(Some(found)),
        // It takes too long, the operators aren't in pg_catalog, or the tables are others
        // there: not known.
        Err(error)
            if matches!(
                error.sqlstate(),
                "57014" | "42883" | "55P03" | "42P01" | "3F000" | "42703"
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_shards_of_the_source_say_is_added_up() {
        let mut one = Table {
            heap_bytes: 10,
            row_estimate: 1,
            has_null_keys: Some(false),
            sampled: 1,
            sample: vec![(1, 8), (0, 0)],
            ..Table::default()
        };
        let other = Table {
            heap_bytes: 20,
            total_bytes: 30,
            row_estimate: 2,
            has_null_keys: Some(true),
            sampled: 2,
            sample: vec![(1, 9), (1, 7)],
            ..Table::default()
        };
        add_table(&mut one, &other);
        assert_eq!((one.heap_bytes, one.total_bytes, one.row_estimate), (30, 30, 3));
        assert_eq!((one.has_null_keys, one.sampled), (Some(true), 3));
        assert_eq!(one.sample, [(2, 17), (1, 7)]);
        let mut unseen = Table::default();
        add_table(&mut unseen, &other);
        assert_eq!(unseen.sample, other.sample);
    }

    #[test]
    fn what_one_shard_does_not_know_is_not_known() {
        assert_eq!(either(Some(false), None), None);
        assert_eq!(either(None, Some(true)), Some(true));
        assert_eq!(either(Some(false), Some(false)), Some(false));
    }
}

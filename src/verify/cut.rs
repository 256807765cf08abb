//! Cuts tables into chunks of about the same size: ranges of the key between keys of a
//! small sample of their blocks. A table without a key is one chunk.
use tokio_postgres::types::ToSql;

use crate::error::Result;
use crate::gucs;
use crate::pg::xact::transaction;
use crate::remote::Connection;
use crate::state::table::Table;
use crate::state::verification;
use crate::verify::shape::{KeyColumn, Shape};

/// Most chunks of one table.
const CHUNKS: i64 = 100_000;
/// Blocks in the sample for each chunk, and at least.
const BLOCKS_EACH: i64 = 8;
const BLOCKS: i64 = 200;
/// Keys in the sample, at most.
const KEYS: i64 = 1_000_000;

/// Cuts a table and writes its chunks. `nodes` are the source shards that have rows of
/// it, `all` all servers.
///
/// # Errors
/// The servers'.
pub(super) async fn cut(
    task: i64,
    table: &Table,
    shape: &Shape,
    nodes: &[&Connection],
    all: &[&Connection],
    sample: f64,
) -> Result<()> {
    let size = i64::from(gucs::VERIFY_CHUNK_SIZE.get()) << 20;
    let nodes_count = i64::try_from(nodes.len()).unwrap_or(1).max(1);
    let bytes = shape.bytes.saturating_mul(nodes_count);
    let chunks = (bytes / size + 1).min(CHUNKS);
    let bounds = match &shape.key {
        Some(key) if chunks > 1 => bounds(table, shape, key, nodes, all, chunks).await?,
        _ => Vec::new(),
    };
    let names: Option<Vec<String>> =
        shape.key.as_ref().map(|key| key.iter().map(|k| k.column.name.clone()).collect());
    transaction(|| {
        verification::cut(task, table.table_id, bytes, names.as_deref(), &bounds, sample)
    })
}

/// Keys that leave about as many rows between them, in an order that all servers agree
/// about: else a row could be in no chunk.
async fn bounds(
    table: &Table,
    shape: &Shape,
    key: &[KeyColumn],
    nodes: &[&Connection],
    all: &[&Connection],
    chunks: i64,
) -> Result<Vec<Vec<String>>> {
    let blocks = (chunks * BLOCKS_EACH).max(BLOCKS);
    let percent = (100.0 * blocks as f64 / shape.blocks.max(1) as f64).min(100.0);
    let columns: Vec<String> =
        key.iter().map(|k| format!("CAST({} AS text)", k.column.reference())).collect();
    let sql = format!(
        "SELECT ARRAY[{}] FROM ONLY {} AS t TABLESAMPLE SYSTEM ({percent}) REPEATABLE (0) LIMIT {KEYS}",
        columns.join(", "),
        table.qualified()
    );
    let mut keys: Vec<Vec<String>> = Vec::new();
    for node in nodes {
        for row in node.query(&sql, &[]).await? {
            keys.push(row.try_get(0).map_err(|e| node.error(&e))?);
        }
    }
    let Some(first) = nodes.first() else { return Ok(Vec::new()) };
    let ranks = ranks(first, table, key, &keys).await?;
    let mut sorted: Vec<(i64, Vec<String>)> = ranks.into_iter().zip(keys).collect();
    sorted.sort_unstable();
    sorted.dedup_by(|a, b| a.0 == b.0);
    let step = (sorted.len() / usize::try_from(chunks).unwrap_or(1)).max(1);
    let mut bounds: Vec<Vec<String>> =
        sorted.into_iter().skip(step - 1).step_by(step).map(|(_, key)| key).collect();
    for server in all {
        let ranks = self::ranks(server, table, key, &bounds).await?;
        let kept = rising(&ranks);
        bounds = kept.into_iter().filter_map(|n| bounds.get(n).cloned()).collect();
    }
    Ok(bounds)
}

/// Where keys are in the order of a server.
async fn ranks(
    session: &Connection,
    table: &Table,
    key: &[KeyColumn],
    keys: &[Vec<String>],
) -> Result<Vec<i64>> {
    let names: Vec<&str> = key.iter().map(|k| k.column.name.as_str()).collect();
    let collations: Vec<String> = session
        .value(
            "SELECT array_agg(coalesce((SELECT format('COLLATE %I.%I', n.nspname, l.collname) \
                       FROM pg_collation AS l JOIN pg_namespace AS n ON n.oid = l.collnamespace \
                      WHERE l.oid = a.attcollation), '') ORDER BY k.nr) \
               FROM unnest($2::text[]) WITH ORDINALITY AS k (name, nr) \
               LEFT JOIN pg_attribute AS a ON a.attrelid = to_regclass($1) AND a.attname = k.name",
            &[&table.qualified(), &names],
        )
        .await?;
    let lists: Vec<Vec<&str>> = (0..key.len())
        .map(|n| keys.iter().filter_map(|k| k.get(n).map(String::as_str)).collect())
        .collect();
    let arrays: Vec<String> = (1..=key.len()).map(|n| format!("${n}::text[]")).collect();
    let columns: Vec<String> = (1..=key.len()).map(|n| format!("k{n}")).collect();
    let typed: Vec<String> = key
        .iter()
        .zip(&columns)
        .zip(&collations)
        .map(|((k, column), collation)| format!("CAST(k.{column} AS {}) {collation}", k.cast))
        .collect();
    let sql = format!(
        "SELECT rank() OVER (ORDER BY {}) FROM unnest({}) WITH ORDINALITY AS k ({}, nr) ORDER BY k.nr",
        typed.join(", "),
        arrays.join(", "),
        columns.join(", ")
    );
    let parameters: Vec<&(dyn ToSql + Sync)> =
        lists.iter().map(|l| l as &(dyn ToSql + Sync)).collect();
    session
        .query(&sql, &parameters)
        .await?
        .iter()
        .map(|row| row.try_get(0).map_err(|e| session.error(&e)))
        .collect()
}

/// Positions of a longest strictly rising sequence.
fn rising(ranks: &[i64]) -> Vec<usize> {
    // The last elements of rising sequences, by length, and what is before each element.
    let mut ends: Vec<usize> = Vec::new();
    let mut before: Vec<Option<usize>> = Vec::with_capacity(ranks.len());
    for (n, rank) in ranks.iter().enumerate() {
        let length = ends.partition_point(|end| ranks.get(*end).is_some_and(|r| r < rank));
        before.push(length.checked_sub(1).and_then(|l| ends.get(l).copied()));
        match ends.get_mut(length) {
            Some(end) => *end = n,
            None => ends.push(n),
        }
    }
    let mut out = Vec::with_capacity(ends.len());
    let mut at = ends.last().copied();
    while let Some(n) = at {
        out.push(n);
        at = before.get(n).copied().flatten();
    }
    out.reverse();
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_that_a_server_orders_otherwise_are_left_out() {
        assert_eq!(rising(&[1, 2, 3]), vec![0, 1, 2]);
        assert_eq!(rising(&[1, 5, 2, 3]), vec![0, 2, 3]);
        assert_eq!(rising(&[2, 2, 1]).len(), 1);
        assert_eq!(rising(&[9, 1, 2, 8, 3]), vec![1, 2, 4]);
        assert!(rising(&[]).is_empty());
    }
}

//! Looks into the rows of sharded tables on one shard of the source: keys that are all
//! null, and how a sample of them is spread over the destination. Bounded in time.
use std::time::{Duration, Instant};

use crate::cluster::placement::{shard_of_hashes, HASH_PARTITION_SEED};
use crate::cluster::rule::listed;
use crate::cluster::{Cluster, KeySql, Placement, ShardNo};
use crate::error::{Error, Result};
use crate::preflight::facts::Table;
use crate::remote::quote::{ident, qualified};
use crate::remote::Connection;

/// What tells the shard of a row, as a server answers.
pub(super) type Hashes = Vec<Option<i64>>;

/// Rows of a table that are looked at.
const ROWS: i64 = 5_000;
/// Tables that are sampled, the largest ones.
const TABLES: usize = 20;
/// How long one question may take.
const TIMEOUT: &str = "SET statement_timeout = '2s'";
/// How long all of them may take; of the smaller tables less is known then.
const PATIENCE: Duration = Duration::from_secs(20);

/// Fills in what can be said of each sharded table.
///
/// # Errors
/// The server's, but for those of a single table that can't be read in time.
pub async fn look(session: &Connection, tables: &mut [Table], cluster: &Cluster) -> Result<()> {
    session.batch(TIMEOUT).await?;
    let mut sharded: Vec<&mut Table> =
        tables.iter_mut().filter(|t| t.leaf && t.is_sharded()).collect();
    sharded.sort_by_key(|t| std::cmp::Reverse(t.heap_bytes));
    let began = Instant::now();
    for (i, table) in sharded.into_iter().enumerate() {
        if began.elapsed() > PATIENCE {
            break;
        }
        if !table.key_columns.iter().any(|c| c.not_null) && table.heap_bytes > 0 {
            table.has_null_keys = in_time(null_keys(session, table).await)?;
        }
        if i < TABLES && table.heap_bytes > 0 {
            let found = in_time(spread(session, table, cluster).await)?.unwrap_or_default();
            table.sampled = found.iter().map(|(rows, _)| rows).sum();
            table.sample = projected(&found, table.sampled, table.row_estimate);
        }
    }
    Ok(())
}

/// What a sample says of all rows, so that those of several shards of the source can be
/// added up.
fn projected(sample: &[(i64, i64)], sampled: i64, estimate: i64) -> Vec<(i64, i64)> {
    let factor = estimate.max(sampled) as f64 / sampled.max(1) as f64;
    let of = |count: i64| (count as f64 * factor).round() as i64;
    sample.iter().map(|(rows, bytes)| (of(*rows), of(*bytes))).collect()
}

/// None where it took too long, or is locked, or can't be hashed that way, or where a
/// mapped key can't be read: then another check says so.
pub(super) fn in_time<T>(outcome: Result<T>) -> Result<Option<T>> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(Error { kind: crate::error::Kind::Server(code), .. })
            if matches!(code.as_str(), "57014" | "55P03" | "42883") || code.starts_with("22") =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

async fn null_keys(session: &Connection, table: &Table) -> Result<bool> {
    let Some(key) = &table.key else { return Ok(false) };
    let name = qualified(&table.schema_name, &table.table_name);
    let nulls: Vec<String> = key.iter().map(|c| format!("t.{} IS NULL", ident(c))).collect();
    let sql =
        format!("SELECT EXISTS (SELECT 1 FROM ONLY {name} AS t WHERE {})", nulls.join(" AND "));
    session.value(&sql, &[]).await
}

/// Rows and bytes of a sample that each shard would get.
async fn spread(session: &Connection, table: &Table, cluster: &Cluster) -> Result<Vec<(i64, i64)>> {
    let placement = cluster.placement(table.sharding_key());
    let Some(place) = place(table, cluster, &placement) else { return Ok(Vec::new()) };
    let name = qualified(&table.schema_name, &table.table_name);
    // Column by column: a whole row would be put together from its out-of-line values.
    let bytes: Option<String> = session
        .value(
            "SELECT string_agg(format('coalesce(pg_column_size(t.%I), 0)', a.attname), ' + ') \
               FROM pg_attribute AS a \
              WHERE a.attrelid = $1::bigint::oid AND a.attnum > 0 AND NOT a.attisdropped",
            &[&table.oid],
        )
        .await?;
    let sql = format!(
        "SELECT {place}, ({})::bigint \
           FROM ONLY {name} AS t {} LIMIT {ROWS}",
        bytes.unwrap_or_else(|| "0".to_owned()),
        of_rows(table)
    );
    let mut out = vec![(0, 0); cluster.size() as usize];
    for row in session.query(&sql, &[]).await? {
        let get = |e: tokio_postgres::Error| session.error(&e);
        let place: Hashes = row.try_get(0).map_err(get)?;
        let bytes: i64 = row.try_get(1).map_err(get)?;
        // Rows that no shard takes are looked for by another check.
        let shard = shard(cluster, &placement, place);
        if let Some((rows, size)) = shard.and_then(|shard| out.get_mut(shard.index())) {
            *rows += 1;
            *size += bytes;
        }
    }
    Ok(out)
}

/// Blocks of a table at random: twice as many as are needed by the estimate.
pub(super) fn of_rows(table: &Table) -> String {
    let percent = match table.row_estimate {
        0 => 100.0,
        estimate => (200.0 * ROWS as f64 / estimate as f64).clamp(0.001, 100.0),
    };
    format!("TABLESAMPLE SYSTEM ({percent})")
}

/// The shard of a row, by what [`place`] says of it.
pub(super) fn shard(cluster: &Cluster, placement: &Placement, place: Hashes) -> Option<ShardNo> {
    match placement {
        Placement::Hash { .. } => {
            let hashes = place.into_iter().map(|hash| hash.map(|h| h as u64));
            Some(shard_of_hashes(hashes, cluster.size()))
        }
        _ => place.into_iter().flatten().next().and_then(|p| u32::try_from(p).ok()).map(ShardNo),
    }
}

/// SQL for what tells the shard of a row `t`: the hashes of its key, or its number.
pub(super) fn place(table: &Table, cluster: &Cluster, placement: &Placement) -> Option<String> {
    let key = table.key.as_deref()?;
    match (placement, table.key_columns.as_slice()) {
        (Placement::Hash { .. }, columns) => {
            let seed = HASH_PARTITION_SEED as i64;
            let hashes: Vec<String> = columns
                .iter()
                .map(|c| Some(format!("{}(t.{}, {seed})", c.hash.as_ref()?, ident(&c.name))))
                .collect::<Option<_>>()?;
            Some(format!("ARRAY[{}]::bigint[]", hashes.join(", ")))
        }
        (Placement::Mapped(map), [column]) => {
            let type_name = column.type_name.as_deref()?;
            let key = KeySql { expression: &listed(key, "t."), type_name };
            let whens: Vec<String> = cluster
                .numbers()
                .map(|shard| format!("WHEN {} THEN {shard}", map.takes(shard, key)))
                .collect();
            Some(format!("ARRAY[CASE {} END]::bigint[]", whens.join(" ")))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_stands_for_all_rows() {
        assert_eq!(projected(&[(30, 600), (10, 100)], 40, 400), [(300, 6_000), (100, 1_000)]);
        assert_eq!(projected(&[(3, 30), (1, 10)], 4, 0), [(3, 30), (1, 10)]);
        assert_eq!(projected(&[], 0, 400), []);
    }
}

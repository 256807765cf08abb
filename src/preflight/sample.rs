//! Looks into the rows of sharded tables: keys that are null, and how a sample
//! of them is spread over the shards. Bounded in time.
use crate::cluster::placement::{Placement, HASH_PARTITION_SEED};
use crate::error::{Error, Result};
use crate::preflight::facts::Table;
use crate::remote::quote::{ident, qualified};
use crate::remote::Connection;

/// Rows of a table that are looked at.
const ROWS: i64 = 5_000;
/// Tables that are sampled, the largest ones.
const TABLES: usize = 20;
/// How long one question may take.
const TIMEOUT: &str = "SET statement_timeout = '2s'";

/// Fills in what can be said of each sharded table.
///
/// # Errors
/// The server's, but for those of a single table that can't be read in time.
pub async fn look(session: &Connection, tables: &mut [Table], shards: u32) -> Result<()> {
    session.batch(TIMEOUT).await?;
    let mut sharded: Vec<&mut Table> =
        tables.iter_mut().filter(|t| t.leaf && t.is_sharded()).collect();
    sharded.sort_by_key(|t| std::cmp::Reverse(t.heap_bytes));
    for (i, table) in sharded.into_iter().enumerate() {
        if !table.key_not_null && table.heap_bytes > 0 {
            table.has_null_keys = in_time(null_keys(session, table).await)?;
        }
        if i < TABLES && table.heap_bytes > 0 {
            table.sample = in_time(spread(session, table, shards).await)?.unwrap_or_default();
        }
    }
    Ok(())
}

/// None where it took too long, or is locked, or can't be hashed that way.
fn in_time<T>(outcome: Result<T>) -> Result<Option<T>> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(Error { kind: crate::error::Kind::Server(code), .. })
            if matches!(code.as_str(), "57014" | "55P03" | "42883") =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

async fn null_keys(session: &Connection, table: &Table) -> Result<bool> {
    let Some(key) = &table.key else { return Ok(false) };
    let name = qualified(&table.schema_name, &table.table_name);
    let sql =
        format!("SELECT EXISTS (SELECT 1 FROM ONLY {name} AS t WHERE t.{} IS NULL)", ident(key));
    session.value(&sql, &[]).await
}

/// Rows and bytes of a sample that each shard would get.
async fn spread(session: &Connection, table: &Table, shards: u32) -> Result<Vec<(i64, i64)>> {
    let (Some(key), Some(hash)) = (&table.key, &table.key_hash) else { return Ok(Vec::new()) };
    let name = qualified(&table.schema_name, &table.table_name);
    // Blocks at random: twice as many as are needed by the estimate.
    let percent = match table.row_estimate {
        0 => 100.0,
        estimate => (200.0 * ROWS as f64 / estimate as f64).clamp(0.001, 100.0),
    };
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
        "SELECT {hash}(t.{}, {}), ({})::bigint \
           FROM ONLY {name} AS t TABLESAMPLE SYSTEM ({percent}) LIMIT {ROWS}",
        ident(key),
        HASH_PARTITION_SEED as i64,
        bytes.unwrap_or_else(|| "0".to_owned())
    );
    let placement = Placement::Hash { shards };
    let mut out = vec![(0, 0); shards as usize];
    for row in session.query(&sql, &[]).await? {
        let get = |e: tokio_postgres::Error| session.error(&e);
        let hash: Option<i64> = row.try_get(0).map_err(get)?;
        let bytes: i64 = row.try_get(1).map_err(get)?;
        let shard = placement.shard_of_hash(hash.map(|h| h as u64)).map_or(0, |s| s.index());
        if let Some((rows, size)) = out.get_mut(shard) {
            *rows += 1;
            *size += bytes;
        }
    }
    Ok(out)
}

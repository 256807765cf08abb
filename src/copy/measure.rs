//! How large tables are on a source shard, for cutting them into parts.
use serde::Serialize;

use crate::cluster::ShardNo;
use crate::error::Result;
use crate::remote::Connection;
use crate::state::table::Table;

/// A table as it lies on one source shard.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    table_id: i32,
    source_shard: i32,
    /// Its oid there.
    relation: i64,
    /// Its blocks, without out-of-line values.
    blocks: i64,
    /// Its bytes, with them.
    pub(super) bytes: i64,
}

/// Measures tables on one source shard, after its snapshot was exported. A table
/// that is gone has no blocks.
///
/// # Errors
/// The server's.
pub async fn measure(
    session: &Connection,
    shard: ShardNo,
    tables: &[&Table],
) -> Result<Vec<Measured>> {
    let names: Vec<String> = tables.iter().map(|t| t.qualified()).collect();
    let rows = session
        .query(
            "SELECT coalesce(c.oid::bigint, 0), \
                    coalesce(pg_relation_size(c.oid) / current_setting('block_size')::bigint, 0), \
                    coalesce(pg_table_size(c.oid), 0) \
               FROM unnest($1::text[]) WITH ORDINALITY AS t (name, nr) \
               LEFT JOIN pg_class AS c ON c.oid = to_regclass(t.name) \
              ORDER BY t.nr",
            &[&names],
        )
        .await?;
    let get = |e: tokio_postgres::Error| session.error(&e);
    tables
        .iter()
        .zip(&rows)
        .map(|(table, row)| {
            Ok(Measured {
                table_id: table.table_id,
                source_shard: shard.as_i32(),
                relation: row.try_get(0).map_err(get)?,
                blocks: row.try_get(1).map_err(get)?,
                bytes: row.try_get(2).map_err(get)?,
            })
        })
        .collect()
}

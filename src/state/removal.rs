//! Rows that have moved away from shards that stay, on their way out: one row per shard and
//! table, so that it goes on where it was.
use crate::cluster::ShardNo;
use crate::error::Result;
use crate::pg::db::{self, Arg};

/// Writes a row for each table that is not known yet, with the number of its blocks.
///
/// # Errors
/// SPI's.
pub fn begin(task: i64, shard: ShardNo, table_id: i32, blocks: i64) -> Result<()> {
    db::execute(
        "INSERT INTO reshard.removal (task_id, source_shard, table_id, blocks) \
         VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
        &[Arg::I64(task), Arg::I32(shard.as_i32()), Arg::I32(table_id), Arg::I64(blocks)],
    )
    .map(|_| ())
}

/// Where a table's next batch begins, and its number of blocks; none once it is done.
///
/// # Errors
/// SPI's.
pub fn next(task: i64, shard: ShardNo, table_id: i32) -> Result<Option<(i64, i64)>> {
    db::row(
        "SELECT pg_catalog.jsonb_build_array(r.blocks_done, r.blocks) FROM reshard.removal AS r \
          WHERE r.task_id = $1 AND r.source_shard = $2 AND r.table_id = $3 \
            AND r.finished_at IS NULL",
        &[Arg::I64(task), Arg::I32(shard.as_i32()), Arg::I32(table_id)],
    )
}

/// A batch is done: rows up to a block are gone.
///
/// # Errors
/// SPI's.
pub fn done(task: i64, shard: ShardNo, table_id: i32, blocks: i64, rows: u64) -> Result<()> {
    db::execute(
        "UPDATE reshard.removal AS r \
            SET blocks_done = $4, rows = r.rows + $5, \
                finished_at = CASE WHEN $4 >= r.blocks THEN clock_timestamp() END \
          WHERE r.task_id = $1 AND r.source_shard = $2 AND r.table_id = $3",
        &[
            Arg::I64(task),
            Arg::I32(shard.as_i32()),
            Arg::I32(table_id),
            Arg::I64(blocks),
            Arg::I64(i64::try_from(rows).unwrap_or(i64::MAX)),
        ],
    )
    .map(|_| ())
}

/// All rows that a task has removed.
///
/// # Errors
/// SPI's.
pub fn rows(task: i64) -> Result<i64> {
    db::bigint(
        "SELECT coalesce(sum(r.rows), 0)::bigint FROM reshard.removal AS r WHERE r.task_id = $1",
        &[Arg::I64(task)],
    )
    .map(Option::unwrap_or_default)
}

//! Tables of a migration: every leaf and ordinary table that moves.
use serde::Deserialize;

use crate::cluster::rule::once;
use crate::cluster::{Method, ShardNo, ShardingKey, Side};
use crate::error::Result;
use crate::pg::db::{self, Arg};
use crate::remote::quote::qualified;

/// A row of `reshard.copy_table`.
#[derive(Debug, Clone, Deserialize)]
pub struct Table {
    /// Its number in the migration.
    pub table_id: i32,
    /// The wave that it is copied in; `None` while it waits for one.
    pub wave: Option<i32>,
    /// Its schema.
    pub schema_name: String,
    /// Its name.
    pub table_name: String,
    /// Columns that move.
    pub columns: Vec<String>,
    /// The user's publication lists columns.
    pub column_list: bool,
    /// Columns of the sharding key of the destination; `None` for an omni table.
    pub key_columns: Option<Vec<String>>,
    /// How its values are placed.
    pub key_method: Option<Method>,
    /// Those of a source of several shards; `None` where each of them has the table
    /// whole, or where there is one.
    pub source_key: Option<Vec<String>>,
    /// How its values are placed on the source.
    pub source_method: Option<Method>,
    /// The one shard of a source of several that its rows come from, where each of them has it
    /// whole.
    pub source_shard: Option<ShardNo>,
    /// Row filter of the user's publication.
    pub row_filter: Option<String>,
    /// The columns that it looks at.
    pub filter_columns: Vec<String>,
    /// `pg_class.relreplident` before the migration.
    pub identity: String,
    /// The index of a replica identity `i`.
    pub identity_index: Option<String>,
    /// Its size on the source as last seen, out-of-line values included.
    pub bytes_total: i64,
    /// `pending`, `running`, `copied`, `ready`, ...
    pub status: String,
}

impl Table {
    /// Quoted, schema-qualified name.
    pub fn qualified(&self) -> String {
        qualified(&self.schema_name, &self.table_name)
    }

    /// What spreads it over the shards of a side.
    pub fn sharding_key(&self, side: Side) -> Option<ShardingKey<'_>> {
        match side {
            Side::Source => ShardingKey::of(self.source_key.as_deref(), self.source_method),
            Side::Destination => ShardingKey::of(self.key_columns.as_deref(), self.key_method),
        }
    }

    /// Whether a side has it in parts, one on each shard, and not whole everywhere.
    pub fn is_sharded(&self, side: Side) -> bool {
        self.sharding_key(side).is_some()
    }

    /// Whether its rows come from this shard of the source. Where each shard has it whole
    /// they come from one alone.
    pub fn comes_from(&self, node: ShardNo) -> bool {
        self.source_shard.is_none_or(|only| only == node)
    }

    /// The columns of its sharding keys of these sides, each once.
    pub fn key_columns(&self, sides: &[Side]) -> Vec<String> {
        let keys = sides.iter().filter_map(|s| self.sharding_key(*s)).flat_map(|k| k.columns);
        once(keys)
    }

    /// The columns that publications of the source filter its rows by, each once: those of
    /// its sharding keys of these sides, and of the user's filter.
    pub fn filtered_by(&self, sides: &[Side]) -> Vec<String> {
        once(self.key_columns(sides).iter().chain(&self.filter_columns))
    }

    /// Whether its rows are on all shards.
    pub fn is_copied(&self) -> bool {
        matches!(self.status.as_str(), "copied" | "ready")
    }
}

/// All tables of a migration.
pub fn load(task: i64) -> Result<Vec<Table>> {
    db::rows(
        "SELECT pg_catalog.to_jsonb(t) FROM reshard.copy_table AS t WHERE t.task_id = $1 \
          ORDER BY t.table_id",
        &[Arg::I64(task)],
    )
}

/// How many tables move.
pub fn count(task: i64) -> Result<i64> {
    db::bigint(
        "SELECT pg_catalog.count(*) FROM reshard.copy_table AS t WHERE t.task_id = $1",
        &[Arg::I64(task)],
    )
    .map(Option::unwrap_or_default)
}

/// The highest number of a table so far.
pub fn last_id(task: i64) -> Result<i64> {
    db::bigint(
        "SELECT pg_catalog.max(t.table_id)::bigint FROM reshard.copy_table AS t WHERE t.task_id = $1",
        &[Arg::I64(task)],
    )
    .map(Option::unwrap_or_default)
}

/// Forgets tables that were listed after that number, apart from one.
pub fn forget_others(task: i64, last: i64, relation: i64) -> Result<()> {
    db::execute(
        "DELETE FROM reshard.copy_table \
          WHERE task_id = $1 AND table_id > $2 AND relation::bigint <> $3",
        &[Arg::I64(task), Arg::I64(last), Arg::I64(relation)],
    )
    .map(|_| ())
}

/// Puts tables into a wave.
pub fn assign_wave(task: i64, tables: &[Table], wave: i32) -> Result<()> {
    db::execute(
        "UPDATE reshard.copy_table SET wave = $3 \
          WHERE task_id = $1 AND table_id::text = ANY ($2)",
        &[
            Arg::I64(task),
            Arg::Texts(tables.iter().map(|t| t.table_id.to_string()).collect()),
            Arg::I32(wave),
        ],
    )
    .map(|_| ())
}

/// Notes that a copied table has its keys and indexes.
pub fn set_ready(task: i64, table_id: i32) -> Result<()> {
    db::execute(
        "UPDATE reshard.copy_table SET status = 'ready' \
          WHERE task_id = $1 AND table_id = $2 AND status = 'copied'",
        &[Arg::I64(task), Arg::I32(table_id)],
    )
    .map(|_| ())
}

/// Has a copied table wait for another wave.
pub fn set_rewritten(task: i64, table_id: i32, cause: &str) -> Result<()> {
    db::execute(
        "UPDATE reshard.copy_table SET status = 'rewritten', error = $3 \
          WHERE task_id = $1 AND table_id = $2 AND status = 'copied'",
        &[Arg::I64(task), Arg::I32(table_id), Arg::Text(cause)],
    )
    .map(|_| ())
}

/// Sets the status of tables that are in another one.
pub fn set_status(task: i64, from: &str, to: &str) -> Result<()> {
    db::execute(
        "UPDATE reshard.copy_table SET status = $3 WHERE task_id = $1 AND status = $2",
        &[Arg::I64(task), Arg::Text(from), Arg::Text(to)],
    )
    .map(|_| ())
}

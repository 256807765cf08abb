//! Which tables a task copies, and in which parts.
use serde::Deserialize;

use crate::cluster::ShardingRule;
use crate::error::{Error, Result};
use crate::gucs;
use crate::pg::db::{self, Arg};

/// A part is not made smaller than this, in bytes.
const SMALLEST_PART: i64 = 8 * 1024 * 1024;
/// So many parts a worker at least, where tables are large enough: the last ones
/// end at about the same time.
const PARTS_PER_WORKER: i64 = 8;

/// Writes a row of `reshard.copy_table` for each table that the publication
/// covers and that the task does not have yet. Runs in the caller's transaction.
///
/// Partitioned tables are planned leaf by leaf, whatever
/// `publish_via_partition_root` says; the root's row filter and column list hold
/// for its leaves. `rules` are those of the destination cluster: a rule for a
/// table (or a partitioned table above it) comes before a rule for a column
/// name; a table that no rule holds for is an omni table.
///
/// # Errors
/// 42704 where the publication does not exist, 55000 where it leaves out a
/// sharding key or covers a table without columns.
pub fn plan(task_id: i64, publication: &str, rules: &[ShardingRule]) -> Result<()> {
    if !db::truth(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_publication WHERE pubname = $1)",
        &[Arg::Text(publication)],
    )? {
        return Err(Error::missing(format!("publication \"{publication}\" does not exist"))
            .hint("Create it first: CREATE PUBLICATION ... FOR TABLE ...;"));
    }
    let rules: Vec<serde_json::Value> = rules
        .iter()
        .map(|r| {
            serde_json::json!({
                "schema_name": r.schema_name,
                "table_name": r.table_name,
                "column_name": r.column_name,
            })
        })
        .collect();
    // Row filters are kept as text: every name in them has to be qualified.
    with_catalog_search_path(|| {
        db::execute(
            include_str!("plan.sql"),
            &[Arg::I64(task_id), Arg::Text(publication), Arg::Json(rules.into())],
        )
    })?;
    check(task_id)
}

fn with_catalog_search_path<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let before = db::text("SELECT pg_catalog.current_setting('search_path')", &[])?;
    set_search_path("pg_catalog")?;
    let value = work()?;
    set_search_path(before.as_deref().unwrap_or(""))?;
    Ok(value)
}

fn set_search_path(path: &str) -> Result<()> {
    db::text("SELECT pg_catalog.set_config('search_path', $1, true)", &[Arg::Text(path)])
        .map(|_| ())
}

fn check(task_id: i64) -> Result<()> {
    #[derive(Deserialize)]
    struct Wrong {
        table: String,
        key: Option<String>,
    }
    let wrong: Option<Wrong> = db::row(
        "SELECT pg_catalog.jsonb_build_object('table', \
                pg_catalog.format('%I.%I', t.schema_name, t.table_name), 'key', t.key_column) \
           FROM reshard.copy_table AS t \
          WHERE t.task_id = $1 AND (t.columns = '{}' OR t.key_column <> ALL (t.columns)) \
          ORDER BY t.table_id LIMIT 1",
        &[Arg::I64(task_id)],
    )?;
    match wrong {
        None => Ok(()),
        Some(Wrong { table, key: Some(key) }) => Err(Error::state(format!(
            "the publication leaves out the sharding key of table {table}"
        ))
        .detail(format!("Its sharding key is \"{key}\"."))
        .hint("Add that column to the table and to the publication's column list, or give the table another sharding key.")),
        Some(Wrong { table, key: None }) => {
            Err(Error::state(format!("table {table} has no columns to copy"))
                .hint("Take the table out of the publication."))
        }
    }
}

/// Cuts the wave's tables that are still `pending` into parts, by ranges of
/// blocks; empty tables become `copied` at once. Runs in the caller's
/// transaction, after the wave's snapshot has been exported. Repeating it does
/// no harm.
///
/// # Errors
/// SPI's.
pub fn plan_parts(task_id: i64, wave: i32) -> Result<()> {
    let total = db::bigint(
        "SELECT pg_catalog.sum(coalesce(pg_catalog.pg_table_size(t.relation), 0))::bigint \
           FROM reshard.copy_table AS t \
          WHERE t.task_id = $1 AND t.wave = $2 AND t.status = 'pending'",
        &[Arg::I64(task_id), Arg::I32(wave)],
    )?
    .unwrap_or(0);
    let size = part_size(
        total,
        i64::from(gucs::COPY_PART_SIZE.get()) * 1024 * 1024,
        i64::from(gucs::MAX_COPY_WORKERS.get()),
    );
    db::execute(
        include_str!("plan_parts.sql"),
        &[Arg::I64(task_id), Arg::I32(wave), Arg::I64(size)],
    )?;
    db::execute(
        "UPDATE reshard.copy_table AS t \
            SET status = 'copied', started_at = clock_timestamp(), finished_at = clock_timestamp() \
          WHERE t.task_id = $1 AND t.wave = $2 AND t.status = 'pending' AND t.blocks = 0",
        &[Arg::I64(task_id), Arg::I32(wave)],
    )?;
    Ok(())
}

/// Bytes of a part: as set, but smaller where that leaves workers without one.
fn part_size(total: i64, set: i64, workers: i64) -> i64 {
    set.min(SMALLEST_PART.max(total / (workers.max(1) * PARTS_PER_WORKER)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: i64 = 1024 * 1024;

    #[test]
    fn large_copies_have_parts_of_the_set_size() {
        assert_eq!(part_size(1_000_000 * MB, 64 * MB, 4), 64 * MB);
    }

    #[test]
    fn small_copies_have_a_part_for_everyone() {
        assert_eq!(part_size(640 * MB, 64 * MB, 4), 20 * MB);
        assert_eq!(part_size(10 * MB, 64 * MB, 4), 8 * MB);
        assert_eq!(part_size(10 * MB, MB, 4), MB);
    }
}

//! Which tables a task copies, and in which parts.
use serde::Deserialize;

use crate::copy::measure::Measured;
use crate::error::{Error, Result};
use crate::gucs;
use crate::pg::db::{self, Arg};
use crate::state::table::Table;

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
/// for its leaves. The sharding rules are those of the destination: a rule for a
/// table (or a partitioned table above it) comes before a rule for a column
/// name; a table that no rule holds for is an omni table.
///
/// # Errors
/// 42704 where the publication does not exist, 55000 where it leaves out a
/// sharding key.
pub fn plan(task_id: i64, publication: &str, destination: &str) -> Result<()> {
    if !db::truth(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_publication WHERE pubname = $1)",
        &[Arg::Text(publication)],
    )? {
        return Err(Error::missing(format!("publication \"{publication}\" does not exist"))
            .hint("Create it first: CREATE PUBLICATION ... FOR TABLE ...;"));
    }
    db::execute(
        include_str!("plan.sql"),
        &[Arg::I64(task_id), Arg::Text(publication), Arg::Text(destination)],
    )?;
    check(task_id)
}

/// Of the tables that wait, those that go into the next wave: the largest first,
/// as many as `reshard.wave_size` allows, at least one.
pub fn next_wave(waiting: impl Iterator<Item = Table>) -> Vec<Table> {
    let mut tables: Vec<Table> = waiting.collect();
    tables.sort_by_key(|t| (-t.bytes_total, t.table_id));
    let sizes: Vec<i64> = tables.iter().map(|t| t.bytes_total).collect();
    tables.truncate(in_next_wave(&sizes, wave_size()));
    tables
}

/// How many waves tables of these sizes, in bytes, are copied in.
pub fn waves(mut sizes: Vec<i64>) -> i64 {
    sizes.sort_unstable_by_key(|size| -size);
    let limit = wave_size();
    let (mut rest, mut waves) = (sizes.as_slice(), 0);
    while !rest.is_empty() {
        rest = &rest[in_next_wave(rest, limit)..];
        waves += 1;
    }
    waves.max(1)
}

/// Bytes of tables that one snapshot is held for; `None` is no limit.
fn wave_size() -> Option<i64> {
    Some(i64::from(gucs::WAVE_SIZE.get()) * 1024 * 1024).filter(|size| *size > 0)
}

fn in_next_wave(sizes: &[i64], limit: Option<i64>) -> usize {
    let Some(limit) = limit else { return sizes.len() };
    let mut total = 0;
    let fit = sizes.iter().take_while(|size| {
        total += **size;
        total <= limit
    });
    fit.count().max(1).min(sizes.len())
}

fn check(task_id: i64) -> Result<()> {
    #[derive(Deserialize)]
    struct Wrong {
        table: String,
        column: String,
    }
    let wrong: Option<Wrong> = db::row(
        "SELECT pg_catalog.jsonb_build_object('table', \
                pg_catalog.format('%I.%I', t.schema_name, t.table_name), 'column', k.name) \
           FROM reshard.copy_table AS t \
          CROSS JOIN LATERAL pg_catalog.unnest(t.key_columns) WITH ORDINALITY AS k (name, nr) \
          WHERE t.task_id = $1 AND k.name <> ALL (t.columns) \
          ORDER BY t.table_id, k.nr LIMIT 1",
        &[Arg::I64(task_id)],
    )?;
    match wrong {
        None => Ok(()),
        Some(Wrong { table, column }) => Err(Error::state(format!(
            "the publication leaves out the sharding key of table {table}"
        ))
        .detail(format!("Column \"{column}\" is part of it."))
        .hint("Add that column to the table and to the publication's column list, or give the table another sharding key.")),
    }
}

/// Notes by which columns, and how, the source spreads the tables over its shards.
///
/// # Errors
/// SPI's.
pub fn plan_source_keys(task_id: i64, source: &str) -> Result<()> {
    db::execute(
        "UPDATE reshard.copy_table AS t \
            SET (source_key, source_method) = \
                (SELECT k.column_names, k.method FROM reshard.sharding_key_of(t.relation, $2) AS k) \
          WHERE t.task_id = $1",
        &[Arg::I64(task_id), Arg::Text(source)],
    )
    .map(|_| ())
}

/// Cuts the wave's tables that are still `pending` into parts, by ranges of
/// blocks; empty tables become `copied` at once. Runs in the caller's
/// transaction, after they were measured on each of the source's shards. Repeating
/// it does no harm.
///
/// # Errors
/// SPI's.
pub fn plan_parts(task_id: i64, wave: i32, nodes: u32, measured: &[Measured]) -> Result<()> {
    let size = part_size(
        measured.iter().map(|m| m.bytes).sum(),
        i64::from(gucs::COPY_PART_SIZE.get()) * 1024 * 1024,
        i64::from(gucs::copy_workers(nodes)) * i64::from(nodes),
    );
    let measured = serde_json::to_value(measured)?;
    db::execute(
        include_str!("plan_parts.sql"),
        &[Arg::I64(task_id), Arg::I32(wave), Arg::I64(size), Arg::Json(measured)],
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
    fn a_wave_takes_the_largest_tables_that_fit() {
        assert_eq!(in_next_wave(&[5, 4, 3], None), 3);
        assert_eq!(in_next_wave(&[5, 4, 3], Some(9)), 2);
        assert_eq!(in_next_wave(&[5, 4, 3], Some(1)), 1);
        assert_eq!(in_next_wave(&[0, 0], Some(1)), 2);
        assert_eq!(in_next_wave(&[], Some(1)), 0);
    }

    #[test]
    fn small_copies_have_a_part_for_everyone() {
        assert_eq!(part_size(640 * MB, 64 * MB, 4), 20 * MB);
        assert_eq!(part_size(10 * MB, 64 * MB, 4), 8 * MB);
        assert_eq!(part_size(10 * MB, MB, 4), MB);
    }
}

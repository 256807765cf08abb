//! Parts as workers see them: claimed, done, to be tried again, given up. Each
//! function runs in a short transaction of its own.
//!
//! Claims and ends of parts take turns (one advisory lock a task), so that two
//! workers never choose the same part, and so that the one that ends a table's
//! last part knows it.
use serde::{Deserialize, Serialize};

use crate::cluster::{Method, ShardNo, ShardingKey};
use crate::error::{Error, Policy, Result};
use crate::gucs;
use crate::pg::db::{self, Arg};
use crate::pg::scan::Blocks;
use crate::pg::{encode, xact};
use crate::remote::quote;
use crate::state::event::{self, Severity};

/// Parts below this size together are claimed in one go, in bytes.
const BATCH_BYTES: i64 = 4 * 1024 * 1024;
/// Parts that are claimed in one go at most.
const BATCH_PARTS: i32 = 32;
/// First key of the advisory lock: "copy".
const LOCK_CLASS: i32 = 0x636F_7079;
/// The longest wait between two tries, in milliseconds.
const LONGEST_DELAY: u64 = 60_000;

/// A part with all that a worker needs to copy it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Part {
    pub(crate) table_id: i32,
    pub(crate) part_no: i32,
    block_from: u32,
    block_to: Option<u32>,
    /// Tries so far, this one included; begins anew when the task is resumed.
    pub(crate) attempts: i32,
    /// It was begun before: a shard may have it.
    pub(crate) again: bool,
    pub(crate) relation: u32,
    pub(crate) schema_name: String,
    pub(crate) table_name: String,
    pub(crate) columns: Vec<String>,
    pub(crate) key_columns: Option<Vec<String>>,
    pub(crate) key_method: Option<Method>,
    pub(crate) row_filter: Option<String>,
    format: String,
}

impl Part {
    /// The table's name, quoted and qualified.
    pub(crate) fn name(&self) -> String {
        quote::qualified(&self.schema_name, &self.table_name)
    }

    /// What its rows are placed by; `None` where every shard gets all of them.
    pub(crate) fn key(&self) -> Option<ShardingKey<'_>> {
        ShardingKey::of(self.key_columns.as_deref(), self.key_method)
    }

    /// The blocks to read.
    pub(crate) fn blocks(&self) -> Blocks {
        Blocks { from: self.block_from, to: self.block_to }
    }

    /// How many blocks that is, where it is known.
    pub(crate) fn block_count(&self) -> Option<u32> {
        self.block_to.map(|to| to.saturating_sub(self.block_from))
    }

    /// The form of its COPY.
    pub(crate) fn format(&self) -> encode::Format {
        if self.format == "text" {
            encode::Format::Text
        } else {
            encode::Format::Binary
        }
    }
}

/// What the next claim has to say.
pub(crate) enum Claim {
    /// These parts are this worker's now.
    Parts(Vec<Part>),
    /// Nothing now; look again after so many milliseconds, a part has to wait.
    Later(i64),
    /// Nothing is left to claim.
    Nothing,
}

fn take_turn(task_id: i64) -> Result<()> {
    db::execute(
        "SELECT pg_catalog.pg_advisory_xact_lock($1, ($2 % 2147483647)::int)",
        &[Arg::I32(LOCK_CLASS), Arg::I64(task_id)],
    )
    .map(|_| ())
}

/// Claims the next parts of the wave on a source shard, for a process there: the
/// largest table first, but rather one that no other worker is at. On the shards,
/// sessions that load one table wait for each other where it and its TOAST index
/// grow.
pub(crate) fn claim(task_id: i64, wave: i32, node: ShardNo, pid: i32) -> Result<Claim> {
    xact::transaction_async(|| {
        take_turn(task_id)?;
        let parts: Vec<Part> = db::rows(
            "WITH open AS NOT MATERIALIZED ( \
                 SELECT p.table_id, p.part_no, p.claim_order, p.bytes_total, \
                        p.started_at IS NOT NULL AS again, \
                        p.table_id IN (SELECT r.table_id FROM reshard.copy_part AS r \
                                        WHERE r.task_id = $1 AND r.status = 'running') AS shared \
                   FROM reshard.copy_part AS p \
                   JOIN reshard.copy_table AS t USING (task_id, table_id) \
                  WHERE p.task_id = $1 AND t.wave = $2 AND p.status = 'pending' \
                    AND p.source_shard = $6 AND t.status IN ('pending', 'running') \
                    AND (p.not_before IS NULL OR p.not_before <= clock_timestamp()) \
             ), own AS MATERIALIZED ( \
                 SELECT o.* FROM open AS o WHERE NOT o.shared ORDER BY o.claim_order LIMIT $5 \
             ), head AS ( \
                 SELECT * FROM own \
                 UNION ALL \
                 (SELECT o.* FROM open AS o WHERE NOT EXISTS (SELECT FROM own) \
                   ORDER BY o.claim_order LIMIT $5) \
             ), chosen AS ( \
                 SELECT h.table_id, h.part_no, h.again \
                   FROM (SELECT *, row_number() OVER (ORDER BY claim_order, table_id, part_no) AS n, \
                                sum(bytes_total) OVER (ORDER BY claim_order, table_id, part_no) AS total \
                           FROM head) AS h \
                  WHERE h.n = 1 OR h.total <= $4 \
             ), begun AS ( \
                 UPDATE reshard.copy_table AS t \
                    SET status = 'running', started_at = coalesce(t.started_at, clock_timestamp()) \
                  WHERE t.task_id = $1 AND t.status = 'pending' \
                    AND t.table_id IN (SELECT table_id FROM chosen) \
             ) \
             UPDATE reshard.copy_part AS p \
                SET status = 'running', attempts = p.attempts + 1, worker_pid = $3, \
                    started_at = clock_timestamp(), finished_at = NULL \
               FROM chosen AS c \
               JOIN reshard.copy_table AS t ON t.task_id = $1 AND t.table_id = c.table_id \
              WHERE p.task_id = $1 AND p.table_id = c.table_id AND p.part_no = c.part_no \
             RETURNING pg_catalog.jsonb_build_object( \
                 'table_id', p.table_id, 'part_no', p.part_no, 'block_from', p.block_from, \
                 'block_to', p.block_to, 'attempts', p.attempts, 'again', c.again, \
                 'relation', p.relation::bigint, \
                 'schema_name', t.schema_name, 'table_name', t.table_name, 'columns', t.columns, \
                 'key_columns', t.key_columns, \
                 'key_method', t.key_method, 'row_filter', t.row_filter, 'format', t.format)",
            &[
                Arg::I64(task_id),
                Arg::I32(wave),
                Arg::I32(pid),
                Arg::I64(BATCH_BYTES),
                Arg::I32(BATCH_PARTS),
                Arg::I32(node.as_i32()),
            ],
        )?;
        if !parts.is_empty() {
            return Ok(Claim::Parts(parts));
        }
        let wait = db::bigint(
            "SELECT CASE WHEN count(*) > 0 THEN pg_catalog.ceil(1000 * extract(epoch FROM \
                        greatest(min(p.not_before) - clock_timestamp(), '1 ms')))::bigint END \
               FROM reshard.copy_part AS p JOIN reshard.copy_table AS t USING (task_id, table_id) \
              WHERE p.task_id = $1 AND t.wave = $2 AND p.status = 'pending' \
                AND p.source_shard = $3 AND t.status IN ('pending', 'running')",
            &[Arg::I64(task_id), Arg::I32(wave), Arg::I32(node.as_i32())],
        )?;
        Ok(wait.map_or(Claim::Nothing, Claim::Later))
    })
}

/// Marks a part as committed on all shards, and its table as copied where it was
/// the last one.
pub(crate) fn done(task_id: i64, part: &Part, rows: u64, bytes: u64) -> Result<()> {
    xact::transaction_async(|| {
        take_turn(task_id)?;
        db::execute(
            "UPDATE reshard.copy_part AS p \
                SET status = 'done', rows = $4, bytes = $5, worker_pid = NULL, \
                    blocks_done = p.blocks, \
                    finished_at = clock_timestamp(), sqlstate = NULL, error = NULL, hint = NULL \
              WHERE p.task_id = $1 AND p.table_id = $2 AND p.part_no = $3",
            &[
                Arg::I64(task_id),
                Arg::I32(part.table_id),
                Arg::I32(part.part_no),
                Arg::I64(i64::try_from(rows).unwrap_or(i64::MAX)),
                Arg::I64(i64::try_from(bytes).unwrap_or(i64::MAX)),
            ],
        )?;
        db::execute(
            "UPDATE reshard.copy_table AS t SET status = 'copied', finished_at = clock_timestamp() \
              WHERE t.task_id = $1 AND t.table_id = $2 AND t.status = 'running' \
                AND NOT EXISTS (SELECT FROM reshard.copy_part AS p \
                                 WHERE p.task_id = $1 AND p.table_id = $2 AND p.status <> 'done')",
            &[Arg::I64(task_id), Arg::I32(part.table_id)],
        )?;
        Ok(())
    })
}

/// Puts a part back after an error, to be tried again; gives it up where the
/// error does not pass by itself or the part is out of tries.
pub(crate) fn failed(task_id: i64, part: &Part, error: &Error) -> Result<()> {
    let tries = gucs::COPY_ATTEMPTS.get();
    let give_up = error.policy() == Policy::Fail || part.attempts >= tries;
    let wait = delay(part.attempts, u64::try_from(gucs::COPY_RETRY_DELAY.get()).unwrap_or(1));
    xact::transaction_async(|| {
        take_turn(task_id)?;
        db::execute(
            "UPDATE reshard.copy_part \
                SET status = $4, worker_pid = NULL, sqlstate = $5, error = $6, hint = $7, \
                    finished_at = clock_timestamp(), \
                    not_before = clock_timestamp() + $8 * interval '1 millisecond' \
              WHERE task_id = $1 AND table_id = $2 AND part_no = $3",
            &[
                Arg::I64(task_id),
                Arg::I32(part.table_id),
                Arg::I32(part.part_no),
                Arg::Text(if give_up { "failed" } else { "pending" }),
                Arg::Text(error.sqlstate()),
                Arg::Text(&error.one_line()),
                Arg::OptText(error.hint.as_deref()),
                Arg::F64(wait as f64),
            ],
        )?;
        event::write(
            Some(task_id),
            Severity::Warning,
            "copy_part_failed",
            &format!(
                "part {} of table {}, try {} of {tries}: {}",
                part.part_no,
                part.name(),
                part.attempts,
                error.one_line()
            ),
            serde_json::json!({ "table_id": part.table_id, "part_no": part.part_no }),
        )
    })
}

/// Milliseconds until the next try: doubled at each one.
fn delay(attempts: i32, first: u64) -> u64 {
    let doublings = u32::try_from(attempts.saturating_sub(1)).unwrap_or(0).min(20);
    first.saturating_mul(1 << doublings).min(LONGEST_DELAY.max(first))
}

/// Takes a table out of the wave: its file is another one than under the
/// snapshot. What was copied of it is worthless; the next wave copies it.
pub(crate) fn rewritten(task_id: i64, part: &Part) -> Result<()> {
    xact::transaction_async(|| {
        take_turn(task_id)?;
        db::execute(
            "UPDATE reshard.copy_table SET status = 'rewritten', \
                    error = 'table was truncated, rewritten or dropped while it was copied' \
              WHERE task_id = $1 AND table_id = $2 AND status = 'running'",
            &[Arg::I64(task_id), Arg::I32(part.table_id)],
        )?;
        db::execute(
            "DELETE FROM reshard.copy_part \
              WHERE task_id = $1 AND table_id = $2 \
                AND (status = 'pending' OR part_no = $3)",
            &[Arg::I64(task_id), Arg::I32(part.table_id), Arg::I32(part.part_no)],
        )?;
        Ok(())
    })
}

/// Notes that the wave's snapshot can't be imported any more, and gives this
/// process' parts back: that was no try.
pub(crate) fn snapshot_lost(task_id: i64, wave: i32, node: ShardNo, pid: i32) -> Result<()> {
    xact::transaction_async(|| {
        take_turn(task_id)?;
        db::execute(
            "UPDATE reshard.wave SET snapshot = NULL WHERE task_id = $1 AND wave = $2",
            &[Arg::I64(task_id), Arg::I32(wave)],
        )?;
        release(task_id, node, pid, 1)
    })
}

/// Gives a process' parts back, and so many of the tries that each has had.
fn release(task_id: i64, node: ShardNo, pid: i32, tries: i32) -> Result<()> {
    db::execute(
        "UPDATE reshard.copy_part SET status = 'pending', worker_pid = NULL, \
                attempts = greatest(0, attempts - $4) \
          WHERE task_id = $1 AND status = 'running' AND worker_pid = $2 AND source_shard = $3",
        &[Arg::I64(task_id), Arg::I32(pid), Arg::I32(node.as_i32()), Arg::I32(tries)],
    )
    .map(|_| ())
}

/// Frees parts of an earlier process with this one's id.
pub(crate) fn free_own(task_id: i64, node: ShardNo, pid: i32) -> Result<()> {
    xact::transaction_async(|| release(task_id, node, pid, 0))
}

/// Forgets what was copied of tables: they wait for another wave.
pub(crate) fn forget_tables(task_id: i64, tables: &[i32]) -> Result<()> {
    take_turn(task_id)?;
    let of_tables =
        [Arg::I64(task_id), Arg::Texts(tables.iter().map(ToString::to_string).collect())];
    db::execute(
        "DELETE FROM reshard.copy_part WHERE task_id = $1 AND table_id::text = ANY ($2)",
        &of_tables,
    )?;
    db::execute(
        "UPDATE reshard.copy_table SET status = 'pending', wave = NULL, error = NULL, \
                started_at = NULL, finished_at = NULL \
          WHERE task_id = $1 AND table_id::text = ANY ($2)",
        &of_tables,
    )
    .map(|_| ())
}

/// Puts parts that were given up back; what is left has all its tries again, at once.
///
/// # Errors
/// Those of the state tables.
pub fn reopen_failed(task_id: i64) -> Result<()> {
    db::execute(
        "UPDATE reshard.copy_part SET status = 'pending', attempts = 0, not_before = NULL \
          WHERE task_id = $1 AND status IN ('failed', 'pending')",
        &[Arg::I64(task_id)],
    )?;
    db::execute(
        "UPDATE reshard.copy_table SET status = 'running', error = NULL \
          WHERE task_id = $1 AND status = 'failed'",
        &[Arg::I64(task_id)],
    )
    .map(|_| ())
}

/// Whether a part was given up because of a row that no shard takes.
///
/// # Errors
/// Those of the state tables.
pub fn met_unplaced(task_id: i64) -> Result<bool> {
    db::truth(
        "SELECT true FROM reshard.copy_part \
          WHERE task_id = $1 AND status = 'failed' AND sqlstate = '23514' LIMIT 1",
        &[Arg::I64(task_id)],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_doubles_up_to_a_minute() {
        assert_eq!(delay(1, 500), 500);
        assert_eq!(delay(2, 500), 1000);
        assert_eq!(delay(5, 500), 8000);
        assert_eq!(delay(30, 500), 60_000);
        assert_eq!(delay(1, 120_000), 120_000);
    }
}

//! What `reshard_wait()` asks, besides the task itself.
use crate::error::Result;
use crate::pg::db::{self, Arg};
use crate::pg::xact::is_current;

/// Whether this transaction sees one state only.
pub fn snapshot_is_fixed() -> Result<bool> {
    db::truth("SELECT pg_catalog.current_setting('transaction_isolation') <> 'read committed'", &[])
}

/// Whether something that was asked of a task waits for a worker.
pub fn has_intents(task: i64) -> Result<bool> {
    db::truth(
        "SELECT true FROM reshard.intent WHERE task_id = $1 AND handled_at IS NULL",
        &[Arg::I64(task)],
    )
}

/// Why a task did not end, where that is what was asked of it last.
pub fn refused_end(task: i64) -> Result<Option<String>> {
    db::row(
        "SELECT pg_catalog.to_jsonb(i.error) FROM reshard.intent AS i \
          WHERE i.id = (SELECT pg_catalog.max(l.id) FROM reshard.intent AS l WHERE l.task_id = $1) \
            AND i.verb IN ('complete', 'cancel') AND i.error IS NOT NULL",
        &[Arg::I64(task)],
    )
}

/// Whether the current transaction itself, in a subtransaction maybe, has made or changed
/// the task, or has asked something of it that waits for a worker.
pub fn is_own(task: i64) -> Result<bool> {
    let written: Vec<u32> = db::rows(
        "SELECT pg_catalog.to_jsonb(w.xid::text::bigint) \
           FROM (SELECT t.xmin FROM reshard.task AS t WHERE t.id = $1 \
                  UNION ALL \
                 SELECT i.xmin FROM reshard.task AS t \
                   JOIN reshard.intent AS i ON i.task_id IN (t.id, t.parent_id) \
                  WHERE t.id = $1 AND i.handled_at IS NULL) AS w (xid)",
        &[Arg::I64(task)],
    )?;
    Ok(written.into_iter().any(is_current))
}

//! What `reshard_wait()` asks, besides the task itself.
use crate::error::Result;
use crate::pg::db::{self, Arg};

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

/// Whether the current transaction itself made the task.
pub fn is_own(task: i64) -> Result<bool> {
    db::truth(
        "SELECT t.xmin::text = pg_catalog.pg_current_xact_id_if_assigned()::pg_catalog.xid::text \
           FROM reshard.task AS t WHERE t.id = $1",
        &[Arg::I64(task)],
    )
}

//! What `reshard_wait()` asks, besides the task itself.
use crate::error::Result;
use crate::pg::db::{self, Arg};
use crate::pg::xact::is_current;
use crate::state::intent::Verb;

/// Whether this transaction sees one state only.
pub fn snapshot_is_fixed() -> Result<bool> {
    db::truth("SELECT pg_catalog.current_setting('transaction_isolation') <> 'read committed'", &[])
}

/// Whether something that was asked of a task, or of the migration that it is a part of,
/// waits for a worker.
pub fn has_intents(task: i64) -> Result<bool> {
    db::truth(
        "SELECT true FROM reshard.task AS t \
           JOIN reshard.intent AS i ON i.handled_at IS NULL \
            AND i.task_id = CASE t.type WHEN 'verify' THEN t.id ELSE coalesce(t.parent_id, t.id) END \
          WHERE t.id = $1",
        &[Arg::I64(task)],
    )
}

/// What the last thing that was asked of a task failed with, where that is one of these verbs.
pub fn refused(task: i64, verbs: &[Verb]) -> Result<Option<String>> {
    let verbs = verbs.iter().map(|verb| verb.as_str().to_owned()).collect();
    db::row(
        "SELECT pg_catalog.to_jsonb(i.error) FROM reshard.intent AS i \
          WHERE i.id = (SELECT pg_catalog.max(l.id) FROM reshard.intent AS l WHERE l.task_id = $1) \
            AND i.verb = ANY ($2) AND i.error IS NOT NULL",
        &[Arg::I64(task), Arg::Texts(verbs)],
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

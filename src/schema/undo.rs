//! Drops what a task's statements made on a shard, for a cancelled migration.
use crate::error::Result;
use crate::pg::xact::transaction;
use crate::remote::{connect, Endpoint, Purpose};
use crate::schema::inverse;
use crate::state::schema::{self, Statement};

/// Why an object is not dropped by itself: what it belongs to is gone already (a table,
/// a schema, a type or function, another object), or it is the part of a partition and
/// goes with the one of the table above it.
const PASSED_OVER: &[&str] = &["42P01", "3F000", "42704", "42883", "42P16", "2BP01"];

/// Drops all objects that statements of this task made on one shard, the latest
/// first. What was there before the task is left alone; what is gone is no error.
///
/// # Errors
/// The shard's.
pub async fn drop_created(task: i64, shard: &Endpoint) -> Result<()> {
    let made = transaction(|| schema::made(task, shard.shard))?;
    if made.is_empty() {
        return Ok(());
    }
    let session = connect(shard, Purpose::Schema).await?;
    session.batch("SET client_min_messages = error").await?;
    for statement in made.iter().rev() {
        if let Some(sql) = inverse::of(statement) {
            match session.batch(&sql).await {
                Err(error) if PASSED_OVER.contains(&error.sqlstate()) => {}
                outcome => outcome?,
            }
        }
    }
    match made.iter().any(alters_public) {
        true => session.batch("SELECT reshard.restore_public_schema()").await,
        false => Ok(()),
    }
}

/// Whether it changed the one schema that every database begins with.
fn alters_public(statement: &Statement) -> bool {
    matches!(statement.kind.as_str(), "owner" | "comment" | "grant")
        && statement.schema_name.is_none()
        && statement.object_name.as_deref() == Some("public")
        && statement.sql.contains(" SCHEMA public ")
}

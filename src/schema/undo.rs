//! Drops what a task has made on a shard, for a cancelled migration.
use crate::cluster::ShardNo;
use crate::error::Result;
use crate::pg::xact::transaction;
use crate::remote::quote::literal;
use crate::remote::{Connection, Endpoint};
use crate::schema::inverse;
use crate::schema::session::{Owner, Session};
use crate::schema::stage::Phase;
use crate::state;
use crate::state::schema::Statement;
use crate::state::task::{Task, Type};

/// Why an object is not dropped by itself: what it belongs to is gone already (a table,
/// a schema, a type or function, another object), or it is the part of a partition and
/// goes with the one of the table above it.
const PASSED_OVER: &[&str] = &["42P01", "3F000", "42704", "42883", "42P16", "2BP01"];

/// What drops the objects that came with replayed DDL ($1 token, $2 task), the latest first.
const DROP_REPLAYED: &str = "SELECT CASE m.object ->> 'kind' \
         WHEN 'schema' THEN format('DROP SCHEMA IF EXISTS %s', m.object ->> 'name') \
         WHEN 'index' THEN format('DROP INDEX IF EXISTS %s', m.object ->> 'name') \
         WHEN 'column' THEN format('ALTER TABLE IF EXISTS %s DROP COLUMN IF EXISTS %I CASCADE', \
                                   m.object ->> 'name', m.object ->> 'column') \
         ELSE format('DROP TABLE IF EXISTS %s CASCADE', m.object ->> 'name') END \
    FROM reshard.ddl AS d \
   CROSS JOIN LATERAL jsonb_array_elements(d.made) WITH ORDINALITY AS m (object, nr) \
   WHERE d.token = $1 AND d.task_id = $2 ORDER BY d.id DESC, m.nr DESC";

/// Drops all objects that statements of this task made on one shard, the latest first:
/// those of replayed DDL, then those of the schema. What was there before the task is left
/// alone; what is gone is no error. No session may run statements of the task any more.
///
/// # Errors
/// The shard's.
pub async fn drop_created(task: &Task, shard: &Endpoint) -> Result<()> {
    let session = Session::open(shard, &[]).await?;
    let there = session.connection();
    // They come before anything else and go after it.
    if !there.value("SELECT to_regclass('reshard.applied_statement') IS NOT NULL", &[]).await? {
        return Ok(());
    }
    let owner = Owner { token: transaction(state::token)?, task: task.id };
    session.wait_for_earlier(&owner).await?;
    for phase in [Phase::Pre, Phase::Post] {
        session.reconcile(&owner, ShardNo(shard.shard), phase).await?;
    }
    there.batch("SET client_min_messages = error").await?;
    // The tables of a replicate task stay as they are, with all that has come to them.
    if task.kind != Type::Replicate {
        for row in there.query(DROP_REPLAYED, &[&owner.token, &owner.task]).await? {
            let sql: String = row.try_get(0).map_err(|e| there.error(&e))?;
            drop_one(there, &sql).await?;
        }
    }
    let made = transaction(|| state::schema::made(task.id, shard.shard))?;
    for sql in made.iter().rev().filter_map(inverse::of) {
        drop_one(there, &sql).await?;
    }
    match made.iter().any(Statement::changes_shared) {
        true => restore_shared(there, &owner).await,
        false => Ok(()),
    }
}

async fn drop_one(there: &Connection, sql: &str) -> Result<()> {
    match there.batch(sql).await {
        Err(error) if PASSED_OVER.contains(&error.sqlstate()) => Ok(()),
        outcome => outcome,
    }
}

async fn restore_shared(there: &Connection, owner: &Owner) -> Result<()> {
    let (token, task) = (literal(&owner.token), owner.task);
    there
        .batch(&format!(
            "SELECT reshard.restore_public_schema({token}, {task}), \
                    reshard.restore_default_privileges({token}, {task})"
        ))
        .await
}

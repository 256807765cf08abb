//! Empties tables on the shards: what was copied, for another wave, and what
//! extensions put there.
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use futures::future::try_join_all;

use crate::cluster::ShardNo;
use crate::copy::part;
use crate::error::{Context, Result};
use crate::pg::xact;
use crate::remote::{blockers, quote, Connection, Purpose};
use crate::state::{self, table::Table};

/// How long a table is waited for: longer than a session of ours goes on that
/// nobody serves any more (`tcp_keepalives_idle` and so on of [`remote::connect`]).
const PATIENCE: Duration = Duration::from_secs(15);

/// Empties tables on all shards and forgets their parts, there and here; their
/// status is `pending` afterwards, and they wait for another wave.
///
/// What has arrived, only the shards know: a crash of this server may have taken
/// the claims of parts back ([`xact::transaction_async`]), never their rows. The
/// shards come first: after a crash in between they are asked again.
///
/// # Errors
/// The shards', with the shard named; 55P03 where somebody is at a table, who is named.
pub async fn reset_tables(task_id: i64, tables: &[&Table], shards: &[Connection]) -> Result<()> {
    let owner = Owner { token: xact::transaction(state::token)?, task_id };
    let begun = try_join_all(shards.iter().map(|shard| owner.begun_on(shard, tables))).await?;
    let mut untouched = Vec::new();
    for table in tables {
        let id = table.table_id;
        let holders = shards.iter().zip(&begun).filter(|(_, begun)| begun.contains(&id));
        let emptied = try_join_all(holders.map(|(shard, _)| owner.empty(shard, table)))
            .await
            .context(format!("could not empty table {} for another copy", table.qualified()))?;
        match emptied.is_empty() {
            true => untouched.push(id),
            false => xact::transaction(|| part::forget_tables(task_id, &[id]))?,
        }
    }
    xact::transaction(|| part::forget_tables(task_id, &untouched))
}

/// Whose parts they are: a task of this database.
struct Owner {
    token: String,
    task_id: i64,
}

impl Owner {
    /// Which of the tables have rows on a shard, or may yet get some from a session
    /// whose worker is gone.
    async fn begun_on(&self, shard: &Connection, tables: &[&Table]) -> Result<BTreeSet<i32>> {
        let ids: Vec<i32> = tables.iter().map(|t| t.table_id).collect();
        let names: Vec<String> = tables.iter().map(|t| t.qualified()).collect();
        // Before the marks: what ends in between has left its mark, or nothing.
        let loading: Vec<i32> = shard
            .value(
                "SELECT coalesce(array_agg(DISTINCT t.id), '{}') \
                   FROM unnest($1::int[], $2::text[]) AS t (id, name) \
                   JOIN pg_locks AS l ON l.relation = to_regclass(t.name) \
                  WHERE l.locktype = 'relation' AND l.mode = 'RowExclusiveLock' AND l.granted \
                    AND l.pid IS DISTINCT FROM pg_backend_pid() \
                    AND l.database = (SELECT oid FROM pg_database \
                                       WHERE datname = current_database())",
                &[&ids, &names],
            )
            .await?;
        let marked: Vec<i32> = shard
            .value(
                "SELECT coalesce(array_agg(DISTINCT table_id), '{}') FROM reshard.copied_part \
                  WHERE token = $1 AND task_id = $2 AND table_id = ANY ($3)",
                &[&self.token, &self.task_id, &ids],
            )
            .await?;
        Ok(loading.into_iter().chain(marked).collect())
    }

    /// Empties a table on one shard. A transaction that is still about to commit
    /// rows is waited for, since the table is locked for that.
    async fn empty(&self, shard: &Connection, table: &Table) -> Result<()> {
        let name = table.qualified();
        let referenced: bool = shard
            .value(
                "SELECT EXISTS (SELECT FROM pg_constraint AS c \
                         WHERE c.contype = 'f' AND c.confrelid = to_regclass($1) \
                           AND c.conrelid <> c.confrelid)",
                &[&name],
            )
            .await?;
        let rows = match referenced {
            // TRUNCATE refuses it, even where no row refers to it.
            true => format!(
                "LOCK TABLE ONLY {name} IN ACCESS EXCLUSIVE MODE; \
                 SET LOCAL session_replication_role = replica; DELETE FROM ONLY {name}"
            ),
            false => format!("TRUNCATE ONLY {name}"),
        };
        let sql = format!(
            "BEGIN; SET LOCAL lock_timeout = {}; {rows}; DELETE FROM reshard.copied_part \
              WHERE token = {} AND task_id = {} AND table_id = {}; COMMIT",
            PATIENCE.as_millis(),
            quote::literal(&self.token),
            self.task_id,
            table.table_id
        );
        let Err(error) = shard.batch(&sql).await else { return Ok(()) };
        if shard.is_closed() {
            return Err(error);
        }
        shard.batch("ROLLBACK").await?;
        match error.sqlstate() {
            "55P03" => Err(blockers::error_of_table(shard, &name)
                .await?
                .hint("End these transactions on that server.")),
            _ => Err(error),
        }
    }
}

/// Forgets what a shard that is in both clusters knows of a task's parts.
///
/// # Errors
/// The server's.
pub async fn forget_parts(shard: &Connection, token: &str, task_id: i64) -> Result<()> {
    shard
        .execute(
            "DELETE FROM reshard.copied_part WHERE token = $1 AND task_id = $2",
            &[&token, &task_id],
        )
        .await
        .map(drop)
}

/// Takes the rows `t` of a table that have come to a shard, and meet a condition, away again,
/// with the marks of their parts. None comes any more.
///
/// # Errors
/// The server's.
pub async fn remove_arrivals(
    shard: &Connection,
    (token, task_id): (&str, i64),
    table: &Table,
    condition: &str,
) -> Result<()> {
    shard
        .batch(&format!(
            "BEGIN; SET LOCAL session_replication_role = replica; \
             DELETE FROM ONLY {} AS t WHERE {condition}; DELETE FROM reshard.copied_part \
              WHERE token = {} AND task_id = {task_id} AND table_id = {}; COMMIT",
            table.qualified(),
            quote::literal(token),
            table.table_id
        ))
        .await
}

/// Empties tables that wait to be copied and that an extension of a shard has filled
/// when it was made there: the source's rows take their place.
///
/// # Errors
/// The shards'.
pub async fn empty_extension_tables(
    shards: &[(ShardNo, Rc<Connection>)],
    tables: &[Table],
) -> Result<()> {
    let waiting = tables.iter().filter(|t| t.status == "pending" && t.wave.is_none());
    let names: Vec<String> = waiting.map(Table::qualified).collect();
    if names.is_empty() {
        return Ok(());
    }
    try_join_all(shards.iter().map(|(_, session)| async {
        let filled: Vec<String> = session
            .value(
                "SELECT coalesce(array_agg(t.name), '{}') FROM unnest($1::text[]) AS t (name) \
                  WHERE EXISTS (SELECT 1 FROM pg_depend AS d \
                         WHERE d.classid = 'pg_class'::regclass AND d.objid = to_regclass(t.name) \
                           AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e')",
                &[&names],
            )
            .await?;
        // Their own foreign keys and triggers have no say in it, nor has the fence.
        let session_of_copy = quote::literal(Purpose::Copy.application_name());
        for name in filled {
            session
                .batch(&format!(
                    "SET LOCAL application_name = {session_of_copy}; \
                     SET LOCAL session_replication_role = replica; DELETE FROM ONLY {name}"
                ))
                .await?;
        }
        Ok(())
    }))
    .await
    .map(drop)
}

//! Empties tables on the shards: what was copied, for another wave, and what
//! extensions put there.
use futures::future::try_join_all;

use crate::cluster::Cluster;
use crate::copy::part;
use crate::error::{Context, Error, Result};
use crate::pg::db::{self, Arg};
use crate::pg::xact;
use crate::remote::{self, quote, Connection, Purpose};
use crate::state::{self, table::Table};

/// Empties a table on all shards and forgets its parts, there and here; its
/// status is `pending` afterwards, and it waits for another wave.
///
/// The shards come first: after a crash in between the table is emptied again.
/// A transaction of an ended worker that is still about to commit is waited for,
/// since TRUNCATE needs the table for itself.
///
/// # Errors
/// The shard's, with the shard named.
pub async fn reset_table(task_id: i64, table_id: i32, shards: &[Connection]) -> Result<()> {
    let (name, status, token) = xact::transaction(|| {
        let row: Option<(String, String, String)> = db::row(
            "SELECT pg_catalog.jsonb_build_array(t.schema_name, t.table_name, t.status) \
               FROM reshard.copy_table AS t WHERE t.task_id = $1 AND t.table_id = $2",
            &[Arg::I64(task_id), Arg::I32(table_id)],
        )?;
        let (schema, table, status) =
            row.ok_or_else(|| Error::missing(format!("task {task_id} has no table {table_id}")))?;
        Ok((quote::qualified(&schema, &table), status, state::token()?))
    })?;
    if status == "pending" {
        // No worker has begun with it: there is nothing on the shards.
        return xact::transaction(|| part::forget_table(task_id, table_id));
    }
    let sql = format!(
        "BEGIN; TRUNCATE ONLY {name}; DELETE FROM reshard.copied_part \
          WHERE token = {} AND task_id = {task_id} AND table_id = {table_id}; COMMIT",
        quote::literal(&token)
    );
    try_join_all(shards.iter().map(|shard| async {
        let emptied = shard.batch(&sql).await;
        if emptied.is_err() {
            // The first error is the one to tell; a lost session needs no rollback.
            drop(shard.batch("ROLLBACK").await);
        }
        emptied
    }))
    .await
    .context(format!("could not empty table {name} for another copy"))?;
    xact::transaction(|| part::forget_table(task_id, table_id))
}

/// Empties tables that wait to be copied and that an extension of a shard has filled
/// when it was made there: the source's rows take their place.
///
/// # Errors
/// The shards'.
pub async fn empty_extension_tables(shards: &Cluster, tables: &[Table]) -> Result<()> {
    let waiting = tables.iter().filter(|t| t.status == "pending" && t.wave.is_none());
    let names: Vec<String> = waiting.map(Table::qualified).collect();
    if names.is_empty() {
        return Ok(());
    }
    try_join_all(shards.shards.iter().map(|shard| async {
        let session = remote::connect(shard, Purpose::Copy).await?;
        let filled: Vec<String> = session
            .value(
                "SELECT coalesce(array_agg(t.name), '{}') FROM unnest($1::text[]) AS t (name) \
                  WHERE EXISTS (SELECT 1 FROM pg_depend AS d \
                         WHERE d.classid = 'pg_class'::regclass AND d.objid = to_regclass(t.name) \
                           AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e')",
                &[&names],
            )
            .await?;
        // Their own foreign keys and triggers have no say in it.
        for name in filled {
            session
                .batch(&format!("SET session_replication_role = replica; DELETE FROM ONLY {name}"))
                .await?;
        }
        Ok(())
    }))
    .await
    .map(drop)
}

//! Unique indexes that are built for the time of a run, so that a table gets a replica
//! identity with its sharding key without FULL: over its primary key and those columns.
use crate::error::{Error, Result};
use crate::remote::quote::{ident, qualified};
use crate::remote::Connection;
use crate::replication::locked;
use crate::state::table::Table;

/// What their names begin with; the planner of schemas leaves them out.
const PREFIX: &str = "reshard_identity_";

/// Whether an index is one of ours.
pub fn is_ours(index: &str) -> bool {
    index.starts_with(PREFIX)
}

/// Builds the index of a table, while it is written to; its name. What an interrupted
/// build left is dropped first. Repeatable.
///
/// # Errors
/// The server's.
pub async fn build(session: &Connection, table: &Table, key: &[String]) -> Result<String> {
    let index = format!("{PREFIX}{}", table.table_id);
    let name = qualified(&table.schema_name, &index);
    let valid: Option<bool> = session
        .value(
            "SELECT (SELECT i.indisvalid FROM pg_index AS i WHERE i.indexrelid = to_regclass($1))",
            &[&name],
        )
        .await?;
    match valid {
        Some(true) => return Ok(index),
        Some(false) => session.batch(&format!("DROP INDEX CONCURRENTLY {name}")).await?,
        None => {}
    }
    let mut columns: Vec<String> = session
        .value(
            "SELECT coalesce(array_agg(a.attname::text ORDER BY a.attnum), '{}') \
               FROM pg_index AS i JOIN pg_attribute AS a ON a.attrelid = i.indrelid \
                AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]) \
              WHERE i.indrelid = to_regclass($1) AND i.indisprimary",
            &[&table.qualified()],
        )
        .await?;
    if columns.is_empty() {
        return Err(Error::state(format!(
            "table {} has no primary key on {}",
            table.qualified(),
            session.label()
        )));
    }
    for column in key {
        if !columns.contains(column) {
            columns.push(column.clone());
        }
    }
    let columns: Vec<String> = columns.iter().map(|column| ident(column)).collect();
    session
        .batch(&format!(
            "CREATE UNIQUE INDEX CONCURRENTLY {} ON {} ({})",
            ident(&index),
            table.qualified(),
            columns.join(", ")
        ))
        .await?;
    Ok(index)
}

/// Drops those of these tables; they must not be replica identities any more.
///
/// # Errors
/// The server's; 55P03 where a table can't be locked.
pub async fn drop_all(session: &Connection, tables: &[Table]) -> Result<()> {
    let names: Vec<String> = tables.iter().map(Table::qualified).collect();
    let rows = session
        .query(
            "SELECT t.name, format('%I.%I', n.nspname, x.relname) \
               FROM unnest($1::text[]) AS t (name) \
               JOIN pg_index AS i ON i.indrelid = to_regclass(t.name) \
               JOIN pg_class AS x ON x.oid = i.indexrelid \
               JOIN pg_namespace AS n ON n.oid = x.relnamespace \
              WHERE starts_with(x.relname::text, $2)",
            &[&names, &PREFIX],
        )
        .await?;
    for row in rows {
        let get = |e: tokio_postgres::Error| session.error(&e);
        let table: String = row.try_get(0).map_err(get)?;
        let index: String = row.try_get(1).map_err(get)?;
        locked::batch(session, &table, &format!("DROP INDEX {index}")).await?;
    }
    Ok(())
}
